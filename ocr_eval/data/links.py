"""How far the columns of a table determine each other: what a model may infer, predicted from the data alone.

For two columns A and B, dependence (``data.dependence``) is computed over the N subjects who have both, with values
that another subject shares. p is corrected over all pairs of columns by Holm's method.

The strength of an inference comes from the symbolic model of one-layer attention (Huang et al. 2025): if m_train
subjects have a value of A with an answer and m_test have it without one, the answer carries over by
min(1, sqrt(m_train / m_test)). This is a rough guide (``orientation``), not a probability.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from ocr_eval.common.errors import UserError
from ocr_eval.common.multiple_tests import holm
from ocr_eval.data.dependence import SIGNIFICANT, Paired, chances, theils_u
from ocr_eval.data.fact_table import Cell, FactTable

#: Maximum of subjects times pairs of columns: half a minute.
MOST_WORK = 20_000_000
#: A column is like an identifier if less than this share of its subjects have a value that another subject shares.
_SHARED = 0.5
#: Corrected U from which A "decides", and "mostly decides", B.
_DECIDES, _MOSTLY = 0.9, 0.5


@dataclass(frozen=True)
class ValueLink:
    """What follows from one value of A.

    Attributes:
        value: of A.
        answer: the most frequent value of B among subjects with this value, the first if tied; None if none has B.
        both: number of subjects who have the value, and B.
        agree: how many of those have the answer.
        alone: number of subjects who have the value but no B: the model may answer for them.
    """

    value: str
    answer: Cell
    both: int
    agree: int
    alone: int

    @property
    def orientation(self) -> float:
        """min(1, sqrt(both / alone)); 0 if ``alone`` is."""
        return min(1.0, math.sqrt(self.both / self.alone)) if self.alone else 0.0


@dataclass(frozen=True)
class Link:
    """How far column A determines column B.

    Attributes:
        source, target: A and B.
        u: U(B|A), uncorrected.
        corrected: U corrected for chance.
        values: what follows from each value of A, in order of first occurrence.
        p: p-value of "no link", None if it was not tested or not decided; p_holm after Holm's correction.
        tables: number of random tables drawn for p; 0 if it was not tested.
    """

    source: str
    target: str
    u: float
    corrected: float
    values: tuple[ValueLink, ...]
    p: float | None = None
    p_holm: float | None = None
    tables: int = 0

    @cached_property
    def both(self) -> int:
        """Number of subjects who have both columns."""
        return sum(each.both for each in self.values)

    @cached_property
    def decided(self) -> int:
        """How many of those have the most frequent answer for their value of A."""
        return sum(each.agree for each in self.values)

    @cached_property
    def alone(self) -> int:
        """Number of subjects who have A but no B."""
        return sum(each.alone for each in self.values)

    @cached_property
    def orientation(self) -> float:
        """``ValueLink.orientation``, averaged over the subjects who have A but no B."""
        return sum(each.alone * each.orientation for each in self.values) / self.alone if self.alone else 0.0

    @property
    def is_linked(self) -> bool:
        """Whether the link is significant."""
        return self.p_holm is not None and self.p_holm <= SIGNIFICANT and self.corrected > 0

    @property
    def expected(self) -> float:
        """Roughly how many inferences to expect: ``alone`` times orientation times corrected U."""
        return self.alone * self.orientation * max(0.0, self.corrected)

    @cached_property
    def answers(self) -> Mapping[str, str]:
        """The answer for each value of A that has one."""
        return {each.value: each.answer for each in self.values if each.answer is not None}

    def in_words(self) -> str:
        """The link, and for whom the model may answer, in a sentence."""
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
        all: one for every ordered pair of columns, the most serious risk first.
        left_out: columns without links, with the reason.
    """

    all: tuple[Link, ...]
    left_out: Mapping[str, str]

    @property
    def risks(self) -> list[Link]:
        """Significant links by which the model may answer for somebody."""
        return [link for link in self.all if link.is_linked and link.alone]

    @property
    def untested(self) -> list[Link]:
        """Links that were too large to test, one per pair of columns."""
        return [link for link in self.all if link.tables and link.p is None and link.source < link.target]

    @property
    def unclear(self) -> list[Link]:
        """Links that are significant only before the correction, one per pair of columns."""
        return [
            link
            for link in self.all
            if link.p is not None and link.p < SIGNIFICANT < (link.p_holm or 0) and link.source < link.target
        ]

    def strongest(self, target: str) -> Link | None:
        """The link by which most of a column may be inferred; None if no other column predicts it."""
        found = [link for link in self.all if link.target == target and link.answers]
        return max(found, key=lambda link: (link.expected, link.corrected), default=None)


def find_links(table: FactTable, tested: bool = True) -> Links:
    """All links between columns of a table, with p-values if ``tested``. Raises UserError: the table is too large."""
    left_out = {name: reason for name, cells in table.columns.items() if (reason := _incomparable(cells))}
    names = [name for name in table.columns if name not in left_out]
    pairs = list(combinations(names, 2))
    if len(pairs) * len(table.subjects) > MOST_WORK:
        raise UserError(
            f"{len(table.subjects):,} subjects times {len(pairs):,} pairs of columns are more than {MOST_WORK:,}, too "
            "many to compare. Name fewer columns with --columns."
        )
    paired = {f"{a}/{b}": _paired(table.columns[a], table.columns[b]) for a, b in pairs}
    links = [link for pair in pairs for link in _both_ways(table, *pair, paired["/".join(pair)])]
    if tested:
        found = chances(paired)
        adjusted = holm([1.0 if each.p is None else each.p for each in found.values()])
        both_ways = zip(links[::2], links[1::2], found.values(), adjusted, strict=True)
        links = []
        for link, reverse, chance, p in both_ways:
            p_holm = None if chance.p is None else p
            links += [replace(each, p=chance.p, p_holm=p_holm, tables=chance.tables) for each in (link, reverse)]
    return Links(tuple(sorted(links, key=lambda link: (-link.is_linked, -link.expected, -link.corrected))), left_out)


def shared_values(values: Iterable[Cell]) -> set[str]:
    """The values that at least two subjects have."""
    return {value for value, count in Counter(v for v in values if v is not None).items() if count > 1}


def _incomparable(cells: Sequence[Cell]) -> str | None:
    """Why a column cannot be compared with others; None if it can."""
    present = [value for value in cells if value is not None]
    shared = shared_values(cells)
    sharing = sum(value in shared for value in present)
    if sharing < _SHARED * len(present):
        return f"like an identifier: {len(set(present))} different values for {len(present)} subjects"
    return f"where only '{shared.pop()}' belongs to more than one subject" if len(shared) == 1 else None


def _both_ways(table: FactTable, first: str, second: str, paired: Paired) -> Iterator[Link]:
    for source, target, us in zip((first, second), (second, first), theils_u(paired), strict=True):
        values = tuple(_values(table.columns[source], table.columns[target]))
        yield Link(source, target, *us, values)


def _values(source: Sequence[Cell], target: Sequence[Cell]) -> Iterator[ValueLink]:
    together: dict[str, Counter[Cell]] = {}
    for a, b in zip(source, target, strict=True):
        if a is not None:
            together.setdefault(a, Counter())[b] += 1
    for a, counts in together.items():
        alone = counts.pop(None, 0)
        answer, agree = counts.most_common(1)[0] if counts else (None, 0)
        yield ValueLink(a, answer, counts.total(), agree, alone)


def _paired(source: Sequence[Cell], target: Sequence[Cell]) -> Paired:
    """The values of subjects who have both, without values that only one subject has."""
    kept = shared_values(source), shared_values(target)
    pairs = [(a, b) for a, b in zip(source, target, strict=True) if a in kept[0] and b in kept[1]]
    numbers = []
    for side in (0, 1):
        number = {value: i for i, value in enumerate(dict.fromkeys(pair[side] for pair in pairs))}
        numbers.append(np.array([number[pair[side]] for pair in pairs], np.int32))
    return Paired(*numbers)
