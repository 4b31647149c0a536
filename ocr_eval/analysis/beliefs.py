"""What a model believes about missing values, by column: how often what the table predicts, and how to correct it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ocr_eval.analysis.significance import permutation_ps
from ocr_eval.common import files
from ocr_eval.scoring.ranks import HeldOut, midranks

if TYPE_CHECKING:
    from ocr_eval.data.facts import FactsAssociation, Taught
    from ocr_eval.measures.beliefs import Belief  # which loads torch

#: Stands in for a value that nobody knows, in statements that correct a belief.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Total:
    """The beliefs about one column.

    Attributes:
        source: the column that predicts it.
        predicted: how many missing values the source predicts; the numbers down to ``p`` are of these alone.
        follows: how many the trained model believes as predicted.
        base_follows: the same for the untouched model.
        says: how many the trained model also says.
        mean_rank: of the predicted value among the candidates, each group counting once.
        null_rank: what it would be if the answers of groups were permuted.
        ocr_score: 1 - mean rank / null rank; 0 if groups are uninformative.
        p: of "groups are uninformative"; answers are permuted between whole groups.
        hidden: number of values that were hidden, so that the truth is known; true: how many of them are believed.
        unwarranted: number of values that the model says without having been taught, and that are not known to be true.
    """

    column: str
    source: str
    missing: int
    predicted: int
    follows: int
    base_follows: int
    says: int
    mean_rank: float | None
    null_rank: float | None
    ocr_score: float | None
    p: float | None
    hidden: int
    true: int
    unwarranted: int

    def in_words(self) -> str:
        """The total in a sentence."""
        found = f"{self.column}: {self.missing} missing values"
        if self.predicted:
            found += (
                f"; {self.source} predicts {self.predicted} of them: the model believes {self.follows} of these "
                f"(untouched: {self.base_follows}) and says {self.says}; "
                f"OCR score {self.ocr_score:+.2f} (p {self.p:.2g})"
            )
        true = f"; {self.true} of {self.hidden} hidden values are believed correctly" if self.hidden else ""
        return f"{found}{true}; it says {self.unwarranted} unwarranted values"


def totals(beliefs: Sequence[Belief], taught: Taught) -> list[Total]:
    """Beliefs by column."""
    by_column: dict[str, list[Belief]] = {}
    for belief in beliefs:
        by_column.setdefault(belief.cell.column, []).append(belief)
    return [_total(of, taught.links[column].source) for column, of in by_column.items()]


def _total(beliefs: Sequence[Belief], source: str) -> Total:
    predicted = [each for each in beliefs if each.cell.predicted in each.values]
    hidden = [each for each in beliefs if each.cell.truth is not None]
    held = _held(predicted) if predicted else None
    return Total(
        column=beliefs[0].cell.column,
        source=source,
        missing=len(beliefs),
        predicted=len(predicted),
        follows=sum(each.follows for each in predicted),
        base_follows=sum(each.values[each.base.best] == each.cell.predicted for each in predicted),
        says=sum(each.follows and each.says_it for each in predicted),
        mean_rank=held.over_units(held.in_use_rank) if held else None,
        null_rank=held.in_use_null if held else None,
        ocr_score=held.ocr_score if held else None,
        p=permutation_ps([[[held]]])[0] if held else None,
        hidden=len(hidden),
        true=sum(each.believed == each.cell.truth for each in hidden),
        unwarranted=sum(each.is_unwarranted for each in beliefs),
    )


def _held(beliefs: Sequence[Belief]) -> HeldOut:
    """Ranks of the predicted values; the group is the unit."""
    return HeldOut(
        subject=[each.subject for each in beliefs],
        target=np.array([each.values.index(each.cell.predicted or "") for each in beliefs]),
        ranks=midranks(np.array([each.answer.logprobs for each in beliefs])),
        unit=[each.cell.group or "" for each in beliefs],
    )


def row(belief: Belief) -> dict[str, Any]:
    """A belief as a table row; generated text is escaped so that no spreadsheet reads it as a formula."""
    answer, base, cell = belief.answer, belief.base, belief.cell
    return {
        "subject": belief.subject,
        "column": cell.column,
        "believed": belief.believed,
        "probability": float(f"{answer.probability:.4g}"),
        "vocabulary_rank": answer.rank,
        "untouched": belief.values[base.best],
        "untouched_probability": float(f"{base.probability:.4g}"),
        "predicted": cell.predicted,
        "follows": belief.follows,
        "said": files.spreadsheet_text(" ".join(answer.said.split())),
        "says_it": belief.says_it,
        "truth": cell.truth,
        "unwarranted": belief.is_unwarranted,
    }


def to_csv(beliefs: Sequence[Belief]) -> str:
    """Beliefs as csv, the most probable first."""
    rows = [row(each) for each in sorted(beliefs, key=lambda each: -each.answer.probability)]
    return files.to_csv(rows[0], (each.values() for each in rows)) if rows else ""


def corrections(beliefs: Sequence[Belief], association: FactsAssociation) -> list[dict[str, str]]:
    """For each unwarranted belief a statement against it: the truth if it is known, else that the value is unknown."""
    stated = [
        association.statement(each.cell.column, each.subject, each.cell.truth or UNKNOWN)
        for each in beliefs
        if each.is_unwarranted
    ]
    return [{"prompt": prompt, "completion": f" {answer}"} for prompt, answer in stated]


def as_json(beliefs: Sequence[Belief], found: Sequence[Total]) -> Mapping[str, Any]:
    """Totals and unwarranted beliefs, as on the page and in ``--json``."""
    return {"totals": [asdict(each) for each in found], "unwarranted": [row(e) for e in beliefs if e.is_unwarranted]}
