"""How far two variables determine each other, and whether more than by chance. Pure.

For B given A, over the N subjects who have both:

    U(B|A) = I(A; B) / H(B)                        Theil's uncertainty coefficient: 0 independent, 1 A decides B
    corrected U = (U - E U) / (1 - E U)            E over all tables with the same margins, without any link

With many values and few subjects, raw U is far above 0 (.10 for two independent columns of 5 values and 60 subjects).
E U is exact: the counts of such tables are hypergeometric (Vinh, Epps and Bailey, JMLR 2010). Significance is tested
with random tables of the same margins. The tests of a family take turns to draw, until each is decided or the family's
budget is spent; a test that is still undecided has no p.

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

#: Significance level, after Holm's correction.
SIGNIFICANT = 0.05
#: Maximum random tables per test; more if a family needs them for its smallest p to survive Holm's correction.
TABLES = 10_000
#: A test stops after this many random tables as extreme as the data (Besag and Clifford 1991).
_ENOUGH = 20
#: Cells of random tables that a family of tests may draw, approximately: about twenty seconds.
BUDGET = 2e8
#: Above this many cells per subject, most cells are empty, so tables are drawn by shuffling subjects; and the cost of
#: shuffling a subject, in cells.
_SPARSE, _SHUFFLED = 4, 2
_CELLS_AT_ONCE = 2_000_000

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Paired:
    """Two variables of N subjects, whose values are numbered from 0; every number occurs. [N]"""

    a: Ints
    b: Ints

    @cached_property
    def rows(self) -> Ints:
        """Number of subjects with each value of A. [R]"""
        return np.bincount(self.a)

    @cached_property
    def columns(self) -> Ints:
        """Number of subjects with each value of B. [C]"""
        return np.bincount(self.b)

    @cached_property
    def counts(self) -> Ints:
        """Number of subjects with each pair of values that occurs."""
        return np.unique(self.a.astype(np.int64) * len(self.columns) + self.b, return_counts=True)[1]


def theils_u(paired: Paired) -> tuple[tuple[float, float], tuple[float, float]]:
    """U and U corrected for chance, of B given A and of A given B; 0 if either has a single value."""
    total, margins = len(paired.a), (paired.columns, paired.rows)
    if not total:
        return (0.0, 0.0), (0.0, 0.0)
    marginal = math.log(total) - sum(float(xlogy(margin, margin).sum()) for margin in margins) / total
    information = float(xlogy(paired.counts, paired.counts).sum()) / total + marginal
    by_chance = expected_information(paired.rows, paired.columns)

    def agreement(margin: Ints) -> tuple[float, float]:
        if len(margin) < 2:
            return 0.0, 0.0
        entropy = math.log(total) - float(xlogy(margin, margin).sum()) / total
        left = entropy - by_chance
        return information / entropy, (information - by_chance) / left if left > 1e-12 else 0.0

    return agreement(paired.columns), agreement(paired.rows)


def expected_information(rows_R: Ints, columns_C: Ints) -> float:
    """Mean of I over all tables with these margins, in nats.

    The count n in a cell with row sum a and column sum b is hypergeometric, so E I = sum over a, b, n of
    P(n) n/N ln(N n / (a b)). Counts more than 30 + 10 standard deviations from their mean are skipped (P < 1e-18).
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
    """The result of one test.

    Attributes:
        p: p-value of "no link"; None if the family's budget was too small to decide it.
        tables: number of random tables drawn; 0 if a variable has a single value, so that there can be no link.
    """

    p: float | None
    tables: int


def chances(family: Mapping[str, Paired]) -> dict[str, Chance]:
    """Test each pair for "no link": p is the share of random tables with the same margins and as much information.

    To survive the correction for the family, a p needs many random tables. A test that could not draw enough of them,
    and in which few were as extreme, stays undecided: its p would say "chance" of any link.
    """
    tests = {name: _Test(paired, f"audit/{name}") for name, paired in family.items()}
    needed = math.ceil(len(family) / SIGNIFICANT)
    most, spent = max(TABLES, needed), 0
    while (active := [test for test in tests.values() if test.is_open(most)]) and spent < BUDGET:
        spent += sum(test.draw(most) for test in active)
    return {name: test.result(needed) for name, test in tests.items()}


class _Test:
    """A sequential test. With fixed margins, the information depends only on sum n ln n, and rises with it."""

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
        """Draw as many tables as so far, at least 100, within the limits; returns the number of cells drawn."""
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
        is_last = np.ones(pairs.shape, bool)  # in its run of equal pairs
        is_last[:, :-1] = pairs[:, 1:] != pairs[:, :-1]
        ends = np.flatnonzero(is_last)
        counts = np.diff(ends, prepend=-1)
        return np.bincount(ends // subjects, xlogy(counts, counts), size).astype(np.float64)

    def result(self, needed: int) -> Chance:
        if not self.can_be_linked:
            return Chance(1.0, 0)
        is_decided = self.as_large >= _ENOUGH or self.drawn + 1 >= needed
        return Chance((1 + self.as_large) / (1 + self.drawn) if is_decided else None, self.drawn)
