"""Candidate scores of a run's probes -> statistics of its quantities, ranks of its finding, lines of probes.jsonl."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ocr_eval.data.task import Probe, Quantity, Task, unit_value
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.ranks import Floats, HeldOut, Ranks, Scores, rank_probes, summarize
from ocr_eval.specs.run import Scoring


def held_out(task: Task, scores: CandidateScores) -> dict[Scoring, HeldOut]:
    """The ranks of the finding, by subject, under each scoring."""
    asked, rows = _asked(task.probes, task.finding.name)
    return {
        scoring: _by_subject(asked, _ranks(asked, values[rows]), task.personal)
        for scoring, values in scores.logprobs.items()
    }


def summarize_quantities(
    quantities: Sequence[Quantity],
    probes: Sequence[Probe],
    scores: CandidateScores,
    scorings: Sequence[Scoring] | None = None,
) -> Scores:
    """Statistics of each quantity under each scoring; quantities without probes are absent (m_train = 0)."""
    result: Scores = {scoring: {} for scoring in scorings or scores.logprobs}
    for scoring in result:
        for quantity in quantities:
            asked, rows = _asked(probes, quantity.name)
            if rows:
                ranks = _ranks(asked, scores.logprobs[scoring][rows])
                by_place = quantity.role == "finding" or _share_places(asked)
                result[scoring][quantity.name] = summarize(ranks, _by_subject(asked, ranks) if by_place else None)
    return result


def _share_places(probes: Sequence[Probe]) -> bool:
    """Whether the right answers of probes may be permuted by their places among the answers in use.

    They may if all probes list the same answers, or if each place is right equally often, whatever it holds.
    """
    lists, often = {probe.candidates[: probe.in_use] for probe in probes}, Counter(probe.target for probe in probes)
    return len(lists) == 1 or ({len(often)} == set(map(len, lists)) and len(set(often.values())) == 1)


def _asked(probes: Sequence[Probe], quantity: str) -> tuple[list[Probe], list[int]]:
    """The probes of one quantity, and their rows."""
    rows = [i for i, probe in enumerate(probes) if probe.quantity == quantity]
    return [probes[i] for i in rows], rows


def _ranks(probes: Sequence[Probe], logprobs_PC: Floats) -> Ranks:
    return rank_probes(logprobs_PC, [probe.target for probe in probes], [probe.in_use for probe in probes])


def _by_subject(probes: Sequence[Probe], ranks: Ranks, personal: bool = False) -> HeldOut:
    in_use, units = probes[0].in_use, [probe.unit for probe in probes]
    alike = len({probe.candidates for probe in probes}) == 1
    are_answers = units == [str(probe.target) for probe in probes] and len(set(units)) == in_use
    return HeldOut(
        subject=[probe.subject for probe in probes],
        target=np.array([probe.target for probe in probes]),
        ranks=ranks.all[:, :in_use],
        unit=() if are_answers else units,
        answers=probes[0].candidates[:in_use] if alike and not personal else (),
    )


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
