"""Candidate scores of a run's probes -> statistics of its quantities, ranks of its finding, lines of probes.jsonl."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ocr_eval.data.task import Probe, Quantity, Task, unit_value
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.ranks import HeldOut, Ranks, Scores, rank_probes, summarize
from ocr_eval.specs.run import Scoring


def quantity_ranks(probes: Sequence[Probe], scores: CandidateScores, scoring: Scoring, quantity: str) -> Ranks | None:
    """Ranks of the probes of one quantity, None if it has none (m_train = 0)."""
    rows = [i for i, probe in enumerate(probes) if probe.quantity == quantity]
    return _ranks([probes[i] for i in rows], scores.logprobs[scoring][rows]) if rows else None


def _ranks(probes: Sequence[Probe], logprobs_PC: Any) -> Ranks:
    return rank_probes(logprobs_PC, [probe.target for probe in probes], [probe.in_use for probe in probes])


def held_out(task: Task, scores: CandidateScores) -> dict[Scoring, HeldOut]:
    """The ranks of the finding, by subject, under each scoring."""
    probes = task.probes_of(task.finding.name)
    result: dict[Scoring, HeldOut] = {}
    for scoring in scores.logprobs:
        ranks = quantity_ranks(task.probes, scores, scoring, task.finding.name)
        assert ranks is not None, "a task has probes of its finding"
        result[scoring] = _by_subject(probes, ranks, task.personal)
    return result


def _by_subject(probes: Sequence[Probe], ranks: Ranks, personal: bool = False) -> HeldOut:
    targets, in_use = [probe.target for probe in probes], probes[0].in_use
    units = [probe.unit for probe in probes]
    alike = len({probe.candidates for probe in probes}) == 1
    are_answers = units == list(map(str, targets)) and len(set(units)) == in_use
    return HeldOut(
        subject=[probe.subject for probe in probes],
        target=np.array(targets),
        ranks=ranks.all[:, :in_use],
        unit=() if are_answers else units,
        answers=probes[0].candidates[:in_use] if alike and not personal else (),
    )


def summarize_quantities(
    quantities: Sequence[Quantity],
    probes: Sequence[Probe],
    scores: CandidateScores,
    scorings: Sequence[Scoring] | None = None,
) -> Scores:
    """Statistics of each quantity under each scoring; quantities without probes are absent."""
    result: Scores = {scoring: {} for scoring in scorings or scores.logprobs}
    for scoring in result:
        for quantity in quantities:
            ranks = quantity_ranks(probes, scores, scoring, quantity.name)
            if ranks is not None:
                asked = [probe for probe in probes if probe.quantity == quantity.name]
                alike = len({probe.in_use for probe in asked}) == 1
                result[scoring][quantity.name] = summarize(ranks, _by_subject(asked, ranks) if alike else None)
    return result


def inexact(probes: Sequence[Probe], scores: CandidateScores, quantity: str | None = None) -> int:
    """How many probes (of a quantity, if given) have an in-use answer whose rank is not exact."""
    chosen = [(i, probe.in_use) for i, probe in enumerate(probes) if quantity in (None, probe.quantity)]
    return 0 if scores.exact is None else sum(not scores.exact[i, :in_use].all() for i, in_use in chosen)


def probe_lines(task: Task, scores: CandidateScores, epoch: int) -> list[dict[str, Any]]:
    """The lines of probes.jsonl for one epoch."""
    ranks = {scoring: _ranks(task.probes, scores.logprobs[scoring]) for scoring in scores.logprobs}
    return [
        {
            "epoch": epoch,
            "subject": probe.subject,
            "group": unit_value(probe.unit),
            "quantity": probe.quantity,
            "prompt": probe.prompt,
            "answer": probe.answer,
            "candidates": list(probe.candidates),
            "in_use": probe.in_use,
            **({} if scores.exact is None else {"exact": scores.exact[i, : len(probe.candidates)].tolist()}),
            "logprobs": {
                scoring: [round(v, 5) for v in scores.logprobs[scoring][i, : len(probe.candidates)].tolist()]
                for scoring in scores.logprobs
            },
            "rank": {scoring: float(ranks[scoring].rank[i]) for scoring in ranks},
            "null_rank": {scoring: float(ranks[scoring].null[i]) for scoring in ranks},
        }
        for i, probe in enumerate(task.probes)
    ]
