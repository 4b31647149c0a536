"""One setting of a mitigation: its prediction, its runs, and the checks of one against the other."""

from collections.abc import Iterator
from dataclasses import dataclass

from ocr_toy import convex
from ocr_toy.descent import DescentSpec
from ocr_toy.report import Check, furthest
from ocr_toy.task import Matrix

HELD = DescentSpec(hold_margin=20.0, hold_steps=4000, final_steps=1, armijo=0.5)
NEAR = 0.02
"""Tolerance of a run's transfer against its prediction, unless its row says otherwise."""
COST_NEAR = 0.03
"""Relative tolerance of a cost against its prediction."""


@dataclass(frozen=True)
class Remedy:
    """One setting of one mitigation: the transfer, or other `reading`, as predicted and as measured per seed.

    value: the setting as a number, 1 / p for a Schatten norm. limit: the closed form for a vanishing loss; None if the
    run is at a minimum instead. cost_predicted, cost_measured: what the mitigation costs, or does besides, in
    `cost_unit`, to within cost_tolerance (COST_NEAR times the prediction by default). tolerance: of the transfer; None
    for runs that are shown although they are known not to converge.
    """

    method: str
    setting: str
    value: float
    limit: float | None
    predicted: float
    measured: tuple[float, ...]
    how: str
    cost_unit: str = ""
    cost_predicted: float | None = None
    cost_measured: tuple[float, ...] = ()
    cost_tolerance: float | None = None
    tolerance: float | None = NEAR
    reading: str = "transfer"


def transfer(w: Matrix, n: int, taught: int, held_out: int, taught_size: float, held_out_size: float) -> float:
    """The own-minus-other c contrast of one group divided by that of another, in a W of `merged_problem`."""
    own = convex.own_contrast(w, n, held_out, held_out_size, n)
    return own / convex.own_contrast(w, n, taught, taught_size, n)


def checks(row: Remedy) -> Iterator[Check]:
    """Checks of the row's transfer and cost, each for the run furthest from its prediction."""
    name = f"{row.method}, {row.setting}"
    if row.tolerance is not None:
        found = furthest(row.measured, row.predicted)
        yield Check("mitigate", f"{name}: {row.reading}", row.predicted, found, row.tolerance)
        if row.cost_predicted is not None:
            found = furthest(row.cost_measured, row.cost_predicted)
            near = COST_NEAR * abs(row.cost_predicted) if row.cost_tolerance is None else row.cost_tolerance
            yield Check("mitigate", f"{name}: {row.cost_unit}", row.cost_predicted, found, near)
