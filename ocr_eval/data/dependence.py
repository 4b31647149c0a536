"""How far two variables determine each other, and whether that is more than chance. Pure.

Of B given A, over N subjects who show both:

    U(B|A) = I(A; B) / H(B)                        Theil's uncertainty coefficient: 0 independent, 1 A decides B
    corrected U = (U - E U) / (1 - E U)            E over all tables with the same margins, in which nothing is linked

Raw U is far above 0 where many values meet few subjects (.10 for two independent columns of 5 values and 60 subjects).
E U is exact: the counts of such tables are hypergeometric (Vinh, Epps and Bailey, JMLR 2010). Whether a link is more
than chance is tested with random tables of the same margins. All tests of a family draw in turn, until each is decided
or the family has drawn as much as it may; one that is then open has no p.

Dimension letters:  N subjects,  R values of A,  C values of B,  T random tables.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from scipy.stats import random_table

from ocr_eval.common import streams

#: A link counts at this p-value, after Holm's correction.
SIGNIFICANT = 0.05
#: Random tables of a test at most, or as many as a family needs that the smallest p survives Holm's correction.
TABLES = 10_000
#: Random tables that are as extreme, after which no more are drawn (Besag and Clifford 1991).
_ENOUGH = 20
#: Cells of random tables that a family of tests draws, about: some twenty seconds.
BUDGET = 2e8
#: Cells per subject from which tables are drawn by shuffling subjects, since most of their cells are empty, and what a
#: subject costs then, in cells.
_SPARSE, _SHUFFLED = 4, 2
_CELLS_AT_ONCE = 2_000_000

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Paired:
    """Two variables of N subjects, as numbers of their values from 0 on, each of which occurs. [N]"""

    a: Ints
    b: Ints

    @cached_property
    def rows(self) -> Ints:
        """Subjects of each value of A. [R]"""
        return np.bincount(self.a)

    @cached_property
    def columns(self) -> Ints:
        """Subjects of each value of B. [C]"""
        return np.bincount(self.b)

    @cached_property
    def counts(self) -> Ints:
        """Subjects of each pair of values that occurs."""
        return np.unique(self.a.astype(np.int64) * len(self.columns) + self.b, return_counts=True)[1]


def theils_u(paired: Paired) -> tuple[tuple[float, float], tuple[float, float]]:
    """U and U corrected for chance: of B given A, and of A given B; 0 where the known one has a single value."""
    total, margins = len(paired.a), (paired.columns, paired.rows)
    if not total:
        return (0.0, 0.0), (0.0, 0.0)
    marginal = math.log(total) - sum(float(xlogy(margin, margin).sum()) for margin in margins) / total
    information = float(xlogy(paired.counts, paired.counts).sum()) / total + marginal
    by_chance = expected_information(paired.rows, paired.columns)

    def told(margin: Ints) -> tuple[float, float]:
        if len(margin) < 2:
            return 0.0, 0.0
        entropy = math.log(total) - float(xlogy(margin, margin).sum()) / total
        left = entropy - by_chance
        return information / entropy, (information - by_chance) / left if left > 1e-12 else 0.0

    return told(paired.columns), told(paired.rows)


def expected_information(rows_R: Ints, columns_C: Ints) -> float:
    """Mean of I over all tables with these margins, nats.

    A count n of row a and column b is hypergeometric, so E I = sum over a, b, n of P(n) n/N ln(N n / (a b)). Counts
    further from their mean than ten standard deviations and thirty are skipped: all have a probability below 1e-18.
    """
    total = int(rows_R.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    columns, as_often = np.unique(columns_C, return_counts=True)
    expected = 0.0
    for a, times in zip(*np.unique(rows_R, return_counts=True), strict=True):
        mean = a * (columns / total)
        away = 10 * np.sqrt(mean * (1 - a / total)) + 30
        low = np.maximum(np.maximum(1, a + columns - total), np.floor(mean - away).astype(int))
        sizes = np.minimum(np.minimum(a, columns), np.ceil(mean + away).astype(int)) - low + 1
        b, weights = np.repeat(columns, sizes), np.repeat(as_often * int(times), sizes)
        n = np.arange(len(b)) - np.repeat(np.cumsum(sizes) - sizes - low, sizes)
        ways = log_factorial[a] + log_factorial[total - a] - log_factorial[total]
        ways = ways + log_factorial[b] + log_factorial[total - b]
        for each in (n, a - n, b - n, total - a - b + n):
            ways -= log_factorial[each]
        expected += float((weights * np.exp(ways) * n / total * np.log(total * n / (float(a) * b))).sum())
    return expected


@dataclass(frozen=True)
class Chance:
    """How likely a link is by chance.

    Attributes:
        p: of "no link"; None where the tests of the family were too large to decide this one.
        tables: random tables it was compared with; 0 where a variable has one value, so that nothing can be linked.
    """

    p: float | None
    tables: int


def chances(family: Mapping[str, Paired]) -> dict[str, Chance]:
    """p of "no link" of each: the share of random tables with the same margins whose information is as large.

    A p beside others is small enough only where many random tables are drawn; a test that could not draw as many, and
    in which few were as extreme, is left undecided, for its p would say "chance" of any link.
    """
    tests = {name: _Test(paired, f"audit/{name}") for name, paired in family.items()}
    needed = math.ceil(len(family) / SIGNIFICANT)
    most, spent = max(TABLES, needed), 0
    while (active := [test for test in tests.values() if test.is_open(most)]) and spent < BUDGET:
        spent += sum(test.draw(most) for test in active)
    return {name: test.result(needed) for name, test in tests.items()}


class _Test:
    """A sequential test: of fixed margins the information rises with sum n ln n alone."""

    def __init__(self, paired: Paired, stream: str) -> None:
        self.paired, self.drawn, self.as_large = paired, 0, 0
        self.can_be_linked = min(len(paired.rows), len(paired.columns)) > 1
        self._cells = len(paired.rows) * len(paired.columns)
        self._is_sparse = self._cells > _SPARSE * len(paired.a)
        self._seen = float(xlogy(paired.counts, paired.counts).sum())
        self._rng = np.random.default_rng(streams.integer(stream))

    def is_open(self, most: int) -> bool:
        return self.can_be_linked and self.drawn < most and self.as_large < _ENOUGH

    def draw(self, most: int) -> int:
        """Draw as many tables as so far, at least a hundred, as far as they fit; the cells that this took."""
        each = _SHUFFLED * len(self.paired.a) if self._is_sparse else self._cells
        size = min(most - self.drawn, max(1, min(max(100, self.drawn), _CELLS_AT_ONCE // each)))
        found_T = self._shuffled(size) if self._is_sparse else self._tables(size)
        self.as_large += int((found_T >= self._seen - 1e-9 * (1 + abs(self._seen))).sum())
        self.drawn += size
        return size * each

    def _tables(self, size: int) -> NDArray[np.float64]:
        tables = random_table(self.paired.rows, self.paired.columns)
        found_TRC = tables.rvs(size, random_state=self._rng).astype(np.float64)
        return xlogy(found_TRC, found_TRC).sum(axis=(1, 2))

    def _shuffled(self, size: int) -> NDArray[np.float64]:
        subjects = len(self.paired.a)
        b_TN = self._rng.permuted(np.tile(self.paired.b, (size, 1)), axis=1)
        pairs = np.sort(self.paired.a.astype(np.int64) * len(self.paired.columns) + b_TN, axis=1)
        is_last = np.ones(pairs.shape, bool)  # of its run of equal pairs
        is_last[:, :-1] = pairs[:, 1:] != pairs[:, :-1]
        ends = np.flatnonzero(is_last)
        counts = np.diff(ends, prepend=-1)
        return np.bincount(ends // subjects, xlogy(counts, counts), size).astype(np.float64)

    def result(self, needed: int) -> Chance:
        if not self.can_be_linked:
            return Chance(1.0, 0)
        is_decided = self.as_large >= _ENOUGH or self.drawn + 1 >= needed
        return Chance((1 + self.as_large) / (1 + self.drawn) if is_decided else None, self.drawn)
