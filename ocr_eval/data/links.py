"""How far the columns of a table determine each other: what a model may infer, told from the data alone.

Of two columns A and B, over the N subjects who show both, each with a value that another subject has too:

    U(B|A) = I(A; B) / H(B)                        Theil's uncertainty coefficient: 0 independent, 1 A decides B
    corrected U = (U - E U) / (1 - E U)            E over all tables with the same margins, in which nothing is linked

Raw U is far above 0 where many values meet few subjects (.10 for two independent columns of 5 values and 60 subjects).
E U is exact: the counts of such tables are hypergeometric (Vinh, Epps and Bailey, JMLR 2010). Whether a link is more
than chance is tested with random tables of the same margins, and Holm's correction over the pairs of columns.

What a link may lead to comes from the symbolic model of one-layer attention (Huang et al. 2025): of a value that
m_train subjects show with an answer and m_test without, the answer carries over by min(1, sqrt(m_train / m_test)). That
is an orientation and no probability.

Dimension letters:  S subjects,  R values of A,  C values of B,  T random tables.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from scipy.stats import random_table

from ocr_eval.common import streams
from ocr_eval.common.multiple_tests import holm
from ocr_eval.data.fact_table import Cell, FactTable, shared_values

#: A link counts at this p-value, after Holm's correction.
SIGNIFICANT = 0.05
#: Random tables at most, and at least; where tables are large there are as many as hold this many cells.
TABLES, _LEAST_TABLES, _MOST_CELLS = 10_000, 999, 1e9
#: Random tables that are as extreme, after which no more are drawn (Besag and Clifford 1991).
_ENOUGH = 20
#: A column is like an identifier where fewer than this share of its subjects have a value that another has too.
_SHARED = 0.5
#: Corrected U from which a link decides, and mostly decides.
_DECIDES, _MOSTLY = 0.9, 0.5


@dataclass(frozen=True)
class ValueLink:
    """What follows from one value of A.

    Attributes:
        value: of A.
        answer: the value of B that most of those who show both have, the first of several; None if nobody shows both.
        both: subjects who have the value and show B.
        agree: those of them who have the answer.
        alone: subjects who have the value and no B: the model may answer for them.
    """

    value: str
    answer: Cell
    both: int
    agree: int
    alone: int

    @property
    def orientation(self) -> float:
        """min(1, sqrt(both / alone)); 0 where nobody is alone."""
        return min(1.0, math.sqrt(self.both / self.alone)) if self.alone else 0.0


@dataclass(frozen=True)
class Link:
    """How far column A determines column B.

    Attributes:
        source: A.
        target: B.
        subjects: those that U is computed from.
        u: as it is.
        corrected: for chance.
        values: what follows from each value of A, in order of first occurrence.
        p: of "no link" between the two, None where it was not tested; p_holm after the correction.
    """

    source: str
    target: str
    subjects: int
    u: float
    corrected: float
    values: tuple[ValueLink, ...]
    p: float | None = None
    p_holm: float | None = None

    @cached_property
    def both(self) -> int:
        """Subjects who show both columns."""
        return sum(each.both for each in self.values)

    @cached_property
    def decided(self) -> int:
        """Those of them who have the answer that most with their value have."""
        return sum(each.agree for each in self.values)

    @cached_property
    def alone(self) -> int:
        """Subjects who have A and no B."""
        return sum(each.alone for each in self.values)

    @cached_property
    def orientation(self) -> float:
        """How far the answer may carry over, averaged over those who are alone."""
        return sum(each.alone * each.orientation for each in self.values) / self.alone if self.alone else 0.0

    @property
    def is_linked(self) -> bool:
        """Whether the link is more than chance."""
        return self.p_holm is not None and self.p_holm <= SIGNIFICANT and self.corrected > 0

    @property
    def expected(self) -> float:
        """Subjects for whom the model may answer, about: those alone, times orientation, times corrected U."""
        return self.alone * self.orientation * max(0.0, self.corrected)

    @cached_property
    def answers(self) -> Mapping[str, str]:
        """The answer that follows from each value of A that has one."""
        return {each.value: each.answer for each in self.values if each.answer is not None}

    def in_words(self) -> str:
        """What it is and whom it concerns, in a sentence."""
        verb = "hints at"
        if self.corrected >= _MOSTLY:
            verb = "decides" if self.corrected >= _DECIDES else "mostly decides"
        begin = f"{self.source} {verb} {self.target} for {self.decided} of {self.both} subjects"
        if not self.alone:
            return f"{begin}; nobody else has a {self.source}: there is nobody to answer for"
        return (
            f"{begin}; {self.alone} more {'have' if self.alone > 1 else 'has'} a {self.source} and no {self.target}: "
            f"the model may answer for them"
        )


@dataclass(frozen=True)
class Links:
    """The links of a table.

    Attributes:
        all: of every ordered pair of columns, the most serious risk first.
        left_out: columns that are no part of any, with the reason.
    """

    all: tuple[Link, ...]
    left_out: Mapping[str, str]

    @property
    def risks(self) -> list[Link]:
        """Links that are more than chance and concern somebody."""
        return [link for link in self.all if link.is_linked and link.alone]

    def strongest(self, target: str) -> Link | None:
        """The link by which most of a column may be inferred; None where no other column says anything of it."""
        found = [link for link in self.all if link.target == target and link.answers]
        return max(found, key=lambda link: (link.expected, link.corrected), default=None)


def find_links(table: FactTable, tested: bool = True) -> Links:
    """Every link between two columns of a table, with p-values where ``tested``."""
    left_out = {name: reason for name, cells in table.columns.items() if (reason := _like_identifier(cells))}
    names = [name for name in table.columns if name not in left_out]
    pairs = [list(_both_ways(table, *pair, tested)) for pair in combinations(names, 2)]
    if tested:
        adjusted = holm([of_pair[0].p or 0.0 for of_pair in pairs])
        pairs = [[replace(link, p_holm=p) for link in of_pair] for of_pair, p in zip(pairs, adjusted, strict=True)]
    links = [link for of_pair in pairs for link in of_pair]
    return Links(tuple(sorted(links, key=lambda link: (-link.is_linked, -link.expected, -link.corrected))), left_out)


def _like_identifier(cells: Sequence[Cell]) -> str | None:
    present = [value for value in cells if value is not None]
    shared = shared_values(cells)
    sharing = sum(value in shared for value in present)
    if sharing < _SHARED * len(present) or len(shared) < 2:
        return f"like an identifier: {len(set(present))} different values for {len(present)} subjects"
    return None


def _both_ways(table: FactTable, first: str, second: str, tested: bool) -> Iterator[Link]:
    counts_RC = contingency(table.columns[first], table.columns[second])
    p = chance_of(counts_RC, f"{first}/{second}") if tested else None
    for source, target, counts in ((first, second, counts_RC), (second, first, counts_RC.T)):
        u, corrected = theils_u(counts)
        values = tuple(_values(table.columns[source], table.columns[target]))
        yield Link(source, target, int(counts.sum()), u, corrected, values, p)


def _values(source: Sequence[Cell], target: Sequence[Cell]) -> Iterator[ValueLink]:
    together: dict[str, Counter[Cell]] = {}
    for a, b in zip(source, target, strict=True):
        if a is not None:
            together.setdefault(a, Counter())[b] += 1
    for a, counts in together.items():
        alone = counts.pop(None, 0)
        answer, agree = counts.most_common(1)[0] if counts else (None, 0)
        yield ValueLink(a, answer, counts.total(), agree, alone)


def contingency(source: Sequence[Cell], target: Sequence[Cell]) -> NDArray[np.int64]:
    """How many subjects have each pair of values, without values that a single subject has. [R, C]"""
    kept = shared_values(source), shared_values(target)
    pairs = [(a, b) for a, b in zip(source, target, strict=True) if a in kept[0] and b in kept[1]]
    rows, columns = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    row_of, column_of = ({value: i for i, value in enumerate(values)} for values in (rows, columns))
    flat = [row_of[a] * len(columns) + column_of[b] for a, b in pairs]
    counts: NDArray[np.int64] = np.bincount(flat, minlength=len(rows) * len(columns)) if flat else np.zeros(0, np.int64)
    return counts.reshape(len(rows), len(columns))


def theils_u(counts_RC: NDArray[np.int64]) -> tuple[float, float]:
    """U of the columns' variable given the rows', and the same corrected for chance; 0 where that has one value."""
    rows_R, columns_C, total = counts_RC.sum(axis=1), counts_RC.sum(axis=0), int(counts_RC.sum())
    if len(columns_C) < 2:
        return 0.0, 0.0
    entropy = math.log(total) - float(xlogy(columns_C, columns_C).sum()) / total
    marginal = math.log(total) - float(xlogy(rows_R, rows_R).sum() + xlogy(columns_C, columns_C).sum()) / total
    information = float(xlogy(counts_RC, counts_RC).sum()) / total + marginal
    by_chance = expected_information(rows_R, columns_C)
    left = entropy - by_chance
    return information / entropy, (information - by_chance) / left if left > 1e-12 else 0.0


def expected_information(rows_R: NDArray[np.int64], columns_C: NDArray[np.int64]) -> float:
    """Mean of I over all tables with these margins, nats.

    A count n of row a and column b is hypergeometric, so E I = sum over a, b, n of P(n) n/N ln(N n / (a b)).
    """
    total = int(rows_R.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    rows, columns = (np.stack(np.unique(margin, return_counts=True), axis=1) for margin in (rows_R, columns_C))
    expected = 0.0
    for a, as_often in rows:
        for b, as_often_too in columns:
            n = np.arange(max(1, a + b - total), min(a, b) + 1)
            ways = log_factorial[[a, b, total - a, total - b]].sum() - log_factorial[total]
            cells = np.array([n, a - n, b - n, total - a - b + n])
            here = ways - log_factorial[cells].sum(axis=0)
            terms = np.exp(here) * n / total * np.log(total * n / (float(a) * float(b)))
            expected += float(as_often * as_often_too * terms.sum())
    return expected


def chance_of(counts_RC: NDArray[np.int64], stream: str) -> float:
    """p of "no link": the share of random tables with the same margins whose information is as large.

    Of fixed margins the information rises with sum n ln n alone. No more tables are drawn once enough are as extreme.
    """
    if min(counts_RC.shape) < 2:
        return 1.0
    tables = random_table(counts_RC.sum(axis=1), counts_RC.sum(axis=0))
    rng = np.random.default_rng(streams.integer(f"audit/{stream}"))
    most = int(min(TABLES, max(_LEAST_TABLES, _MOST_CELLS // counts_RC.size)))
    seen, drawn, as_large = float(xlogy(counts_RC, counts_RC).sum()), 0, 0
    while drawn < most and as_large < _ENOUGH:
        size = min(most - drawn, max(1, min(max(100, drawn), 2_000_000 // counts_RC.size)))
        found_TRC = tables.rvs(size, random_state=rng).astype(np.float64)
        as_large += int((xlogy(found_TRC, found_TRC).sum(axis=(1, 2)) >= seen - 1e-9 * (1 + abs(seen))).sum())
        drawn += size
    return (1 + as_large) / (1 + drawn)
