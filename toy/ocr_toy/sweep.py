"""Sweeps: one quantity varied over values and seeds, all runs trained as one batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from ocr_toy.errors import ToyError, require
from ocr_toy.runs import Record, RunResult, RunSpec
from ocr_toy.statistics import Interval, interval, require_seeds
from ocr_toy.task import TEST_ENTAILMENT
from ocr_toy.train import Progress, require_together, train_runs

Axis = Literal["d_h", "m_train", "seed", "decay", "init"]

DEFAULT_VALUES: dict[Axis, tuple[float, ...]] = {
    "d_h": (3, 4, 8, 16, 32, 64, 128),
    "m_train": (0, 1, 2, 3),
    "seed": (0, 1, 2, 3, 4),
    "decay": (0.0, 0.003, 0.03, 0.3),
    "init": (1e-4, 1e-3, 1e-2, 1e-1),
}
WHOLE: tuple[Axis, ...] = ("d_h", "m_train", "seed")
"""The axes whose values are integers."""
FIELDS: dict[Axis, tuple[str, str]] = {
    "d_h": ("model", "d_h"),
    "m_train": ("task", "m_train"),
    "seed": ("train", "seed"),
    "decay": ("train", "decay"),
    "init": ("train", "init_scale"),
}
"""The part of a run and the field of it that an axis varies."""


@dataclass(frozen=True)
class SweepRow:
    """The last record of one run of a sweep."""

    value: float
    seed: int
    last: Record


@dataclass(frozen=True)
class SweepPoint:
    """One value of the axis over its seeds. test_loss is None with fewer than two seeds."""

    value: float
    test_losses: tuple[float, ...]
    test_loss: Interval | None


@dataclass(frozen=True)
class RankSweep:
    """A sweep over d_h: its points, its training steps, and the pairs of its task."""

    points: Sequence[SweepPoint]
    steps: int
    n_pairs: int


def axis(name: str) -> Axis:
    """The axis of that name. Raises ToyError for any other name."""
    require(name in FIELDS, f"over = {name}: unknown; use one of {', '.join(FIELDS)}")
    return cast(Axis, name)


def at_value(base: RunSpec, over: Axis, value: float) -> RunSpec:
    """The base run with one quantity set. Raises ToyError for an invalid value."""
    whole = over not in WHOLE or isinstance(value, int) or value.is_integer()
    require(whole, f"{over} = {value}: not an integer; use an integer")
    fits = over != "d_h" or base.model.param == "factorized"
    require(fits, "over = d_h with param = merged: only factorized has a width; use param = factorized")
    part, field = FIELDS[over]
    changed = replace(getattr(base, part), **{field: int(value) if over in WHOLE else float(value)})
    return replace(base, **{part: changed})


def sweep_specs(base: RunSpec, over: Axis, values: Sequence[float], seeds: Sequence[int]) -> list[RunSpec]:
    """Every run of the sweep, value-major. A sweep over seeds ignores `seeds`. Raises ToyError for bad values."""
    require(bool(values), f"values of {over}: none given; give at least one")
    require(len(set(values)) == len(values), f"values of {over}: one is given twice; give each once")
    require_seeds(seeds, least=1)
    used = [base.train.seed] if over == "seed" else list(seeds)
    specs = [
        at_value(replace(base, train=replace(base.train, seed=seed)), over, value) for value in values for seed in used
    ]
    require_together(specs)
    return specs


def value_of(spec: RunSpec, over: Axis) -> float:
    """The swept quantity of a run."""
    part, field = FIELDS[over]
    value: float = getattr(getattr(spec, part), field)
    return value


def run_sweep(
    base: RunSpec, over: Axis, values: Sequence[float], seeds: Sequence[int], progress: Progress | None = None
) -> list[RunResult]:
    """Train the whole sweep as one batch, value-major."""
    return train_runs(sweep_specs(base, over, values, seeds), progress)


def rows(results: Sequence[RunResult], over: Axis) -> list[SweepRow]:
    """One row per run."""
    return [SweepRow(value_of(r.spec, over), r.spec.train.seed, r.last) for r in results]


def _point(value: float, losses: tuple[float, ...]) -> SweepPoint:
    return SweepPoint(value, losses, interval(losses) if len(losses) > 1 else None)


def points(table: Sequence[SweepRow]) -> list[SweepPoint]:
    """Test losses per value with their interval over seeds, in the order of the values."""
    grouped: dict[float, list[float]] = {}
    for row in table:
        grouped.setdefault(row.value, []).append(row.last.loss[TEST_ENTAILMENT])
    return [_point(value, tuple(found)) for value, found in grouped.items()]


def rank_sweep(document: Any) -> RankSweep:
    """A rank sweep read from its JSON. Raises ToyError for anything else."""
    try:
        found = RankSweep(
            points=[_point(float(p["value"]), tuple(map(float, p["test_losses"]))) for p in document["points"]],
            steps=int(document["base"]["train"]["steps"]),
            n_pairs=int(document["base"]["task"]["n_pairs"]),
        )
        require(document["over"] == "d_h" and found.steps >= 1 and found.n_pairs >= 2, "over, steps or n_pairs")
        require(bool(found.points), "no points")
        for point in found.points:
            require(point.value >= 1 and bool(point.test_losses), "no width, or no losses")
            require(all(0 <= loss < math.inf for loss in point.test_losses), "not a loss")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ToyError("rank sweep: not such a file; write it with sweep --over d_h --output") from error
    return found
