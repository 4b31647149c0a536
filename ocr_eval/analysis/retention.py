"""What fine-tuning does to prior knowledge: retention by cell, and Gekhman's regression over runs. Pure.

Gekhman et al. (2405.05904, section 5) explain the accuracy of fine-tuned models by how many of the taught facts they
fit, separately for those that the base knew and those that it did not:

    accuracy = b0 + b_known * fitted_known / taught + b_unknown * fitted_unknown / taught

Accuracy is either the share of previously known facts that are kept (measures/known_facts.py), or, as in the paper,
that of held-out facts of the same relations which rank first among the candidates (runs of ``known``). Fitted by
ordinary least squares with one point per run; it holds only within the range of the runs' shares.

Runs of one seed share their data, whatever else they differ in, so the seed is the unit of the intervals. With b the
coefficients of all S seeds and b_-s those without seed s (a jackknife over clusters, CR3):

    b +- t(S - 1, 97.5 %) * sqrt((S - 1) / S * sum_s (b_-s - b)^2)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ocr_eval.analysis.intervals import LEVEL, t_quantile
from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import in_a_row
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association, group_rows
from ocr_eval.records.select import ROW_KEYS, settings_of
from ocr_eval.scoring.ranks import Floats

#: The quantity of common-knowledge facts that were not taught (data/known.py).
_HELD_OUT = "held_out"
#: What the runs of one regression may differ in.
_VARIED = ("model", "epochs", "variant", "seed", "train_seed", "code", "base")
#: Numbers of the measure ``known`` that retention needs.
_NEEDED = ("base_known", "kept", "taught", "fitted_known", "fitted_unknown")


@dataclass(frozen=True)
class Retained:
    """Means over the runs of one cell.

    Attributes:
        known: number of facts that the base knew.
        kept: share of them that is still known.
        fitted_known: share of taught facts that the base knew and the run fits.
        fitted_unknown: share of taught facts that the base did not know and the run fits.
    """

    row: str
    association: str
    runs: int
    known: float
    kept: float
    fitted_known: float
    fitted_unknown: float


Coefficient = Literal["intercept", "known", "unknown"]
COEFFICIENTS: tuple[Coefficient, ...] = ("intercept", "known", "unknown")


@dataclass(frozen=True)
class Regression:
    """Coefficients of the regression, and the share of the variance over runs that it explains.

    Attributes:
        seeds: how many seeds the runs have; the intervals come from dropping each of them once.
        intervals: the 95 % interval of each coefficient; None if the runs without one of the seeds do not determine
            all three.
        models: models of the runs, which share one regression.
    """

    intercept: float
    known: float
    unknown: float
    r2: float
    runs: int
    seeds: int
    intervals: Mapping[Coefficient, tuple[float, float]] | None
    models: tuple[str, ...]


def retained(records: Sequence[Record]) -> list[Retained]:
    """Retention per cell, over the runs whose records have it."""
    found = []
    for row, of_row in group_rows([record for record in records if _is_measured(record)]).items():
        for association, runs in by_association(of_row).items():
            mean = {key: float(np.mean([_shares(run)[key] for run in runs])) for key in _shares(runs[0])}
            found.append(Retained(row.name, association, len(runs), **mean))
    return found


#: What the regression can explain, as values of its flag.
Accuracy = Literal["kept", "held-out"]


def regress(records: Sequence[Record], accuracy: Accuracy = "kept") -> Regression:
    """The regression over all runs whose record has retention and, for ``held-out``, that quantity.

    Raises:
        UserError: fewer than four such runs, runs that do not differ in what they fit, or runs that also differ in
            something else than what they teach, for how long, and in which model.
    """
    measured = [record for record in records if _is_measured(record)]
    settings = [settings_of(record) for record in measured]
    keys = [key for key in (*ROW_KEYS, "association") if key not in _VARIED]
    if mixed := [key for key in keys if len({each.get(key) for each in settings}) > 1]:
        raise UserError(
            f"These runs differ in {in_a_row(mixed)}, and one regression would mix the effects. Choose some with "
            "--filter, for example association=known."
        )
    if accuracy == "held-out":
        measured = [record for record in measured if _HELD_OUT in record.final["first-token"]]
    if len(measured) < 4:
        lacking = "retention" if accuracy == "kept" else "held-out facts"
        raise UserError(
            f"Only {len(measured)} runs have {lacking}, and the regression needs four. Add runs of 'known'."
        )
    shares = [_shares(record) for record in measured]
    accuracy_R = np.array(
        [share["kept"] for share in shares]
        if accuracy == "kept"
        else [record.final["first-token"][_HELD_OUT].top1 for record in measured]
    )
    design_R3 = np.array([[1.0, share["fitted_known"], share["fitted_unknown"]] for share in shares])
    coefficients = _fit(design_R3, accuracy_R)
    if coefficients is None:
        raise UserError(
            "These runs do not differ in how many known and unknown facts they fit, so their effects cannot be "
            "separated. Add runs of 'known', real and shuffled, with several --epochs."
        )
    spread = float(((accuracy_R - accuracy_R.mean()) ** 2).sum())
    if not spread:
        raise UserError("All runs have the same accuracy, so there is nothing to explain. Add other runs.")
    r2 = 1 - float(((accuracy_R - design_R3 @ coefficients) ** 2).sum()) / spread
    return Regression(
        **dict(zip(COEFFICIENTS, map(float, coefficients), strict=True)),
        r2=r2,
        runs=len(measured),
        seeds=len({each.seed for each in measured}),
        intervals=_intervals(design_R3, accuracy_R, np.array([each.seed for each in measured]), coefficients),
        models=tuple(sorted({each.model for each in measured})),
    )


def _fit(design_R3: Floats, accuracy_R: Floats) -> Floats | None:
    """The three coefficients; None where the runs do not determine them."""
    coefficients, _, rank, _ = np.linalg.lstsq(design_R3, accuracy_R, rcond=1e-9)
    return coefficients.astype(np.float64) if rank == len(COEFFICIENTS) else None


def _intervals(
    design_R3: Floats, accuracy_R: Floats, seed_R: NDArray[np.int64], coefficients: Floats
) -> dict[Coefficient, tuple[float, float]] | None:
    """The interval of each coefficient, from what they are without each of the seeds."""
    without = [_fit(design_R3[kept], accuracy_R[kept]) for kept in (seed_R != seed for seed in np.unique(seed_R))]
    found = [each for each in without if each is not None]
    if len(found) < len(without):
        return None
    S = len(found)
    error = np.sqrt((S - 1) / S * ((np.array(found) - coefficients) ** 2).sum(axis=0))
    half = t_quantile(S - 1, (1 + LEVEL) / 2) * error
    return {
        name: (float(value - reach), float(value + reach))
        for name, value, reach in zip(COEFFICIENTS, coefficients, half, strict=True)
    }


def _is_measured(record: Record) -> bool:
    found = record.measures.get("known", {})
    return all(isinstance(found.get(key), int | float) for key in _NEEDED) and found["taught"] > 0


def _shares(record: Record) -> Mapping[str, float]:
    found = record.measures["known"]
    return {
        "known": float(found["base_known"]),
        "kept": float(found["kept"]),
        "fitted_known": found["fitted_known"] / found["taught"],
        "fitted_unknown": found["fitted_unknown"] / found["taught"],
    }
