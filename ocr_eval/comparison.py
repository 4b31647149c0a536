"""Two sets of runs against each other, association by association, paired by seed and subject. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ocr_eval.errors import UserError
from ocr_eval.intervals import Comparison, Estimate, SubjectRanks, compare, ocr_score
from ocr_eval.records import Record
from ocr_eval.specs import Scoring
from ocr_eval.table import by_association, group_by_row


@dataclass(frozen=True)
class Contrast:
    """One association on both sides.

    Attributes:
        association: its name.
        a: OCR score of the first side, over its seeds.
        b: OCR score of the second side.
        paired: a minus b on the subjects that both have.
        facts_learned: whether every run of both sides learned its facts.
    """

    association: str
    a: Estimate
    b: Estimate
    paired: Comparison
    facts_learned: bool


def contrast(a: Sequence[Record], b: Sequence[Record], scoring: Scoring) -> list[Contrast]:
    """Compare the associations that both sides have.

    Raises:
        UserError: a side mixes settings, or the two have no association, seed or subject in common.
    """
    sides = []
    for records, name in ((a, "first"), (b, "second")):
        settings = [f"{model} {setting}" for model, setting in group_by_row(records)]
        if len(settings) > 1:
            raise UserError(f"The {name} side mixes {'; '.join(settings)}. Name a folder of one setting.")
        sides.append(by_association(records))
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        raise UserError(f"No association in common: {', '.join(sides[0])} against {', '.join(sides[1])}.")
    return [_contrast(name, sides[0][name], sides[1][name], scoring) for name in common]


def _contrast(association: str, a: Sequence[Record], b: Sequence[Record], scoring: Scoring) -> Contrast:
    ranks: list[dict[int, SubjectRanks]] = [
        {run.seed: run.held_out[scoring].subject_ranks() for run in runs} for runs in (a, b)
    ]
    try:
        paired = compare(ranks[0], ranks[1])
    except ValueError as error:
        raise UserError(f"{association}: {error}; only runs of one seed and data protocol can be paired.") from error
    return Contrast(
        association,
        a=ocr_score(list(ranks[0].values())),
        b=ocr_score(list(ranks[1].values())),
        paired=paired,
        facts_learned=all(run.facts_learned for run in (*a, *b)),
    )


def verdict(contrasts: Sequence[Contrast]) -> str:
    """Where the first side is clearly above, below, or not clearly different, in one sentence."""
    groups: dict[str, list[str]] = {"above": [], "below": [], "not clearly different from": []}
    for each in contrasts:
        difference = each.paired.difference
        where = "not clearly different from" if not difference.excludes_zero() else "above"
        groups["below" if difference.high < 0 else where].append(each.association)
    parts = [f"{where} B on {', '.join(names)}" for where, names in groups.items() if names]
    return f"A is {'; '.join(parts)}."
