"""What a study returns: checks of measured numbers against theory, and the data and lines behind them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Relation = Literal["==", ">=", "<="]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One comparison: measured `relation` theory, up to tolerance. claim: the number of a claim or name of a system."""

    claim: int | str
    name: str
    theory: float
    measured: float
    tolerance: float = 0.0
    relation: Relation = "=="

    @property
    def passed(self) -> bool:
        """Whether the measured number agrees with theory. NaN never does."""
        difference = self.measured - self.theory
        if self.relation == "==":
            return abs(difference) <= self.tolerance
        return difference >= -self.tolerance if self.relation == ">=" else difference <= self.tolerance


@dataclass(frozen=True)
class Report:
    """The results of one system: its paper, its checks, its table as lines, and its numbers for JSON and pictures."""

    name: str
    source: str
    checks: Sequence[Check]
    lines: Sequence[str]
    data: dict[str, Any] = field(default_factory=dict)


def furthest(measured: Iterable[float], predicted: float) -> float:
    """The measured number that is furthest from its prediction."""
    return max(measured, key=lambda value: abs(value - predicted))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines under their headings."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (headings, *rows)
    ]


def listed(values: Sequence[float], digits: int = 4) -> str:
    """Numbers, comma-separated."""
    return ", ".join(f"{value:.{digits}f}" for value in values)
