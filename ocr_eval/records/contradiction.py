"""Consistency checks of a record, which find damage and edits by hand: what it states twice must agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ocr_eval.data.task import the_finding
from ocr_eval.specs.model import TrainSpec

if TYPE_CHECKING:
    from ocr_eval.records.record import Record
    from ocr_eval.specs.run import Scoring


def contradiction(record: Record, scoring: Scoring) -> str | None:
    """How a record contradicts itself under one scoring; None if it does not."""
    return _of_premises(record) or _of_ranks(record, scoring) or _of_numbers(record)


def _of_premises(record: Record) -> str | None:
    """Which premise was not scored, so that it cannot be known whether it was learned."""
    missing = (q.name for q in record.quantities if q.role == "premise" and q.name not in record.premises)
    return next((f"final.first-token has no score of the premise {name}" for name in missing), None)


def _of_ranks(record: Record, scoring: Scoring) -> str | None:
    """How held-out ranks contradict themselves or their score."""
    if sum(quantity.role == "finding" for quantity in record.quantities) != 1:
        return "quantities do not state one finding"
    held = record.held_out.get(scoring)
    score = record.final.get(scoring, {}).get(the_finding(record.quantities).name)
    if held is None or score is None:
        return f"{scoring}: held-out ranks or their score are missing"
    if (held.target.ndim, held.ranks.ndim) != (1, 2):
        return f"held_out.{scoring} has rows of unequal length"
    subjects = len(held.subject)
    if not subjects == len(held.target) == len(held.ranks) == score.probes or len(held.unit) not in (0, subjects):
        return f"held_out.{scoring} does not have one rank for each of {score.probes} probes"
    if len(set(held.subject)) < subjects:
        return f"held_out.{scoring} asks about someone twice"
    ranks, target = held.ranks, held.target.tolist()
    if not target or not 0 <= min(target) <= max(target) < ranks.shape[1]:
        return f"held_out.{scoring} has an answer that is not a candidate"
    if record.matched and record.matched.ranks.get(scoring, held.target).shape != ranks.shape:
        return f"matched.{scoring} does not have the ranks of {score.probes} probes"
    mean = float(np.add.reduce(held.rank)) / score.probes
    null = float(np.add.reduce(ranks, axis=None)) / ranks.size
    if not null > 0:
        return f"held_out.{scoring} has a null rank of {null:g}, which ranks of several answers cannot have"
    for name, stated, found in (
        ("mean rank", score.mean_rank, mean),
        ("null rank", score.null_rank, null),
        ("top-1", score.top1, np.count_nonzero(held.rank == 0) / score.probes),
        ("mrr", score.mrr, float(np.add.reduce(1 / (held.rank + 1))) / score.probes),
    ):
        if not abs(found - stated) <= 1e-6:
            return f"final.{scoring} states {name} {stated:g}, but the ranks give {found:g}"
    plain = 1 - float(held.in_use_rank.mean()) / ((ranks.shape[1] - 1) / 2)  # older scores, in which subjects counted
    if score.ocr_score is not None and not min(abs(of - score.ocr_score) for of in (held.ocr_score, plain)) <= 1e-6:
        return f"final.{scoring} states OCR score {score.ocr_score:g}, but the ranks give {held.ocr_score:g}"
    return None


def _of_numbers(record: Record) -> str | None:
    """Which share, time, epoch or measure has an impossible value."""
    for of in record.final.values():
        for quantity, score in of.items():
            if not 0 <= score.top1 <= 1:
                return f"{quantity} has a top-1 of {score.top1:g}"
    ours = isinstance(record.train, TrainSpec)
    if (ours and "train" not in record.seconds) or any(not value >= 0 for value in record.seconds.values()):
        return "seconds are missing or negative"
    if record.matched and record.matched.epoch not in record.epochs:
        return f"matched is of epoch {record.matched.epoch}, which the run does not have"
    measured = [value for found in record.measures.values() for value in found.values() if isinstance(value, int)]
    if any(abs(value) >> 1000 for value in measured):
        return "measures have a number that is too large"
    return None
