"""What a study hands back: checks of a measured number against theory, and the data and lines behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Relation = Literal["==", ">=", "<="]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One comparison: measured `relation` theory, up to tolerance. claim: a claim's number, or a system's name."""

    claim: int | str
    name: str
    theory: float
    measured: float
    tolerance: float
    relation: Relation = "=="

    @property
    def passed(self) -> bool:
        """Whether the measured number is what the theory says. NaN never is."""
        difference = self.measured - self.theory
        if self.relation == "==":
            return abs(difference) <= self.tolerance
        return difference >= -self.tolerance if self.relation == ">=" else difference <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What one system gave: its paper, its checks, its table as lines, and its numbers for JSON and pictures."""

    name: str
    source: str
    checks: Sequence[Check]
    lines: Sequence[str]
    data: dict[str, Any] = field(default_factory=dict)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines under their headings."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (headings, *rows)
    ]


def listed(values: Sequence[float], digits: int = 4) -> str:
    """Numbers of several seeds, comma-separated."""
    return ", ".join(f"{value:.{digits}f}" for value in values)
