"""What teaching does to what was known: retention by cell, and Gekhman's regression over runs. Pure.

Gekhman et al. (2405.05904, section 5) explain the accuracy of fine-tuned models by how many of the taught facts they
fit, apart for those that the base knew and those that it did not:

    kept = b0 + b_known * fitted_known / taught + b_unknown * fitted_unknown / taught

Accuracy is here the share of previously known facts that are kept (measures/known_facts.py). Ordinary least squares; a
run is a point, and the shares stay within what the runs have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ocr_eval.common.errors import UserError
from ocr_eval.records.record import Record
from ocr_eval.records.select import by_association, group_rows


@dataclass(frozen=True)
class Retained:
    """Means over the runs of one cell.

    Attributes:
        known: facts that the base knew.
        kept: share of them that is still known.
        fitted_known: share of what was taught that the base knew and the run fits.
        fitted_unknown: share of what was taught that the base did not know and the run fits.
    """

    row: str
    association: str
    runs: int
    known: float
    kept: float
    fitted_known: float
    fitted_unknown: float


@dataclass(frozen=True)
class Regression:
    """Coefficients in the share of facts kept, and the share of the variance over runs that they explain."""

    intercept: float
    known: float
    unknown: float
    r2: float
    runs: int


def retained(records: Sequence[Record]) -> list[Retained]:
    """Retention of each cell, of runs whose record has it."""
    found = []
    for row, of_row in group_rows([record for record in records if _is_measured(record)]).items():
        for association, runs in by_association(of_row).items():
            mean = {key: float(np.mean([_shares(run)[key] for run in runs])) for key in _shares(runs[0])}
            found.append(Retained(row.name, association, len(runs), **mean))
    return found


def regress(records: Sequence[Record]) -> Regression:
    """The regression over all runs whose record has retention.

    Raises:
        UserError: fewer than four such runs, or runs that do not differ in what they fit.
    """
    shares = [_shares(record) for record in records if _is_measured(record)]
    if len(shares) < 4:
        raise UserError(
            f"Only {len(shares)} runs have retention, and the regression needs four. Add runs with the measure 'known'."
        )
    kept_R = np.array([share["kept"] for share in shares])
    design_R3 = np.array([[1.0, share["fitted_known"], share["fitted_unknown"]] for share in shares])
    coefficients, _, rank, _ = np.linalg.lstsq(design_R3, kept_R, rcond=1e-9)
    if rank < 3:
        raise UserError(
            "These runs do not differ in how many known and unknown facts they fit, so their effects cannot be "
            "separated. Add runs of 'known', real and shuffled, with several --epochs."
        )
    spread = float(((kept_R - kept_R.mean()) ** 2).sum())
    if not spread:
        raise UserError("All runs keep the same number of facts, so there is nothing to explain. Add other runs.")
    r2 = 1 - float(((kept_R - design_R3 @ coefficients) ** 2).sum()) / spread
    intercept, known, unknown = map(float, coefficients)
    return Regression(intercept, known, unknown, r2, len(shares))


def _is_measured(record: Record) -> bool:
    found = record.measures.get("known", {})
    return {"kept", "taught"} <= found.keys()


def _shares(record: Record) -> Mapping[str, float]:
    found = record.measures["known"]
    return {
        "known": float(found["base_known"]),
        "kept": float(found["kept"]),
        "fitted_known": found["fitted_known"] / found["taught"],
        "fitted_unknown": found["fitted_unknown"] / found["taught"],
    }
