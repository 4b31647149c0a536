"""Candidate scores of a run's probes -> the four quantities, the lines of probes.jsonl, the verdict on facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ocr_eval.data.dataset import QUANTITIES, RelationName, Split
from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.ranks import LEARNED_TOP1, HeldOut, Quantity, Ranks, Scores, rank_probes, summarize
from ocr_eval.specs.run import SCORINGS, Scoring


def quantity_ranks(
    probes: Sequence[ProbeTokens], scores: CandidateScores, scoring: Scoring, split: Split, relation: RelationName
) -> Ranks | None:
    """Ranks of the probes of one quantity, None where the protocol leaves it without probes (m_train = 0)."""
    rows = quantity_rows(probes, split, relation)
    if not rows:
        return None
    targets = [probes[i].target for i in rows]
    return rank_probes(scores.logprobs[scoring][rows], targets, probes[rows[0]].in_use)


def quantity_rows(probes: Sequence[ProbeTokens], split: Split, relation: RelationName) -> list[int]:
    """Indices of the probes of one quantity."""
    return [i for i, p in enumerate(probes) if p.statement.subject.split == split and p.statement.relation == relation]


def held_out(probes: Sequence[ProbeTokens], scores: CandidateScores) -> dict[Scoring, HeldOut]:
    """Subject by subject, the ranks of the held-out entailments under each scoring."""
    rows = quantity_rows(probes, "test", "entailment")
    result: dict[Scoring, HeldOut] = {}
    for scoring in SCORINGS:
        ranks = quantity_ranks(probes, scores, scoring, "test", "entailment")
        assert ranks is not None, "m_test is at least 1"
        result[scoring] = HeldOut(
            subject=[probes[i].statement.subject.name for i in rows],
            target=np.array([probes[i].target for i in rows]),
            ranks=ranks.in_use,
        )
    return result


def summarize_quantities(probes: Sequence[ProbeTokens], scores: CandidateScores) -> Scores:
    """Mean rank, null rank, OCR score and top-1 of each of the four quantities under both scorings.

    A quantity without probes is absent.
    """
    result: Scores = {scoring: {} for scoring in SCORINGS}
    for scoring in SCORINGS:
        for split, relation in QUANTITIES:
            ranks = quantity_ranks(probes, scores, scoring, split, relation)
            if ranks is not None:
                result[scoring][quantity_name(split, relation)] = summarize(ranks)
    return result


def quantity_name(split: Split, relation: RelationName) -> Quantity:
    """A quantity's name in files."""
    names: dict[tuple[Split, RelationName], Quantity] = {
        ("train", "fact"): "train_fact",
        ("train", "entailment"): "train_entailment",
        ("test", "fact"): "test_fact",
        ("test", "entailment"): "test_entailment",
    }
    return names[split, relation]


def probe_lines(probes: Sequence[ProbeTokens], scores: CandidateScores, epoch: int) -> list[dict[str, Any]]:
    """The lines of probes.jsonl for one epoch."""
    ranks = {
        scoring: rank_probes(scores.logprobs[scoring], [p.target for p in probes], probes[0].in_use)
        for scoring in SCORINGS
    }
    return [
        {
            "epoch": epoch,
            "subject": probe.statement.subject.name,
            "group": probe.statement.subject.group,
            "quantity": quantity_name(probe.statement.subject.split, probe.statement.relation),
            "prompt": probe.statement.prompt,
            "answer": probe.statement.answer,
            "candidates": list(probe.answers),
            "in_use": probe.in_use,
            "logprobs": {scoring: [round(v, 5) for v in scores.logprobs[scoring][i].tolist()] for scoring in SCORINGS},
            "rank": {scoring: float(ranks[scoring].rank[i]) for scoring in SCORINGS},
            "null_rank": {scoring: float(ranks[scoring].null[i]) for scoring in SCORINGS},
        }
        for i, probe in enumerate(probes)
    ]


def facts_learned(scores: Scores) -> bool:
    """Whether top-1 (first token) on the facts of every kind of subject reached 95 %."""
    facts = [score for quantity, score in scores["first-token"].items() if quantity in ("train_fact", "test_fact")]
    return all(score.top1 >= LEARNED_TOP1 for score in facts)
