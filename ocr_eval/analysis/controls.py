"""Does a finding stand? The real data against its controls, on the same test subjects. Pure.

base             the untouched model (epoch 0 of the real runs)
no-entailment    m_train = 0: facts alone are taught, so there is nothing to infer from
shuffled         train entailments dealt evenly over groups: nothing to infer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ocr_eval.analysis.bootstrap import Comparison, Estimate, compare, ocr_score
from ocr_eval.analysis.permutation import permutation_p
from ocr_eval.common import yaml_files
from ocr_eval.records.record import Record
from ocr_eval.scoring.ranks import HeldOut
from ocr_eval.specs.run import DataSpec, RunSpec, Scoring

Condition = Literal["real", "base", "no-entailment", "shuffled"]
CONTROLS: tuple[Condition, ...] = ("base", "no-entailment", "shuffled")


@dataclass(frozen=True)
class ConditionResult:
    """One condition over its seeds.

    Attributes:
        condition: which.
        score: OCR score with its interval.
        p: permutation p-value of "mean rank is below its null".
        mean_rank: mean over seeds.
        null_rank: mean over seeds.
        facts_learned: whether every run learned its facts; None for the untouched base.
        against: the real condition minus this one, paired by subject; None for the real one.
    """

    condition: Condition
    score: Estimate
    p: float
    mean_rank: float
    null_rank: float
    facts_learned: bool | None
    against: Comparison | None


def condition_specs(real: RunSpec) -> dict[Condition, RunSpec]:
    """The runs that the conditions of one seed need; the base needs none of its own.

    Raises:
        UserError: m_train is 0 already: nothing to shuffle.
    """
    return {
        "real": real,
        "no-entailment": _changed(real, m_train=0, variant="real"),
        "shuffled": _changed(real, variant="shuffled"),
    }


def _changed(spec: RunSpec, **data: object) -> RunSpec:
    changed = yaml_files.parse(DataSpec, {**spec.data.model_dump(), **data}, "controls")
    return spec.model_copy(update={"data": changed})


def compare_conditions(runs: Sequence[Record], scoring: Scoring) -> list[ConditionResult]:
    """The real condition and its three controls.

    Args:
        runs: those of ``condition_specs``, for each seed.
        scoring: which scoring.

    Raises:
        ValueError: a condition without runs.
    """
    records: dict[Condition, list[Record]] = {"real": [], "no-entailment": [], "shuffled": []}
    for run in runs:
        taught: Condition = "real" if run.data.m_train else "no-entailment"
        records["shuffled" if run.data.variant == "shuffled" else taught].append(run)
    ranks: dict[Condition, dict[int, HeldOut]] = {
        condition: {run.seed: run.held_out[scoring] for run in own} for condition, own in records.items()
    }
    ranks["base"] = {run.seed: run.base_held_out[scoring] for run in records["real"]}
    return [_result(condition, ranks, records) for condition in ("real", *CONTROLS)]


def _result(
    condition: Condition,
    ranks: Mapping[Condition, Mapping[int, HeldOut]],
    records: Mapping[Condition, Sequence[Record]],
) -> ConditionResult:
    seeds = [ranks[condition][seed] for seed in sorted(ranks[condition])]
    return ConditionResult(
        condition=condition,
        score=ocr_score(seeds),
        p=permutation_p(seeds),
        mean_rank=sum(float(seed.rank.mean()) for seed in seeds) / len(seeds),
        null_rank=sum(float(seed.null.mean()) for seed in seeds) / len(seeds),
        facts_learned=None if condition == "base" else all(run.facts_learned for run in records[condition]),
        against=None if condition == "real" else compare(ranks["real"], ranks[condition]),
    )


def verdict(results: Sequence[ConditionResult]) -> str:
    """Whether the finding stands: the real score above zero and above that of every control, intervals clear of it."""
    real = results[0]
    if not real.facts_learned:
        return "No finding: the facts were not learned."
    score = f"OCR score {real.score.value:+.2f} [{real.score.low:+.2f}, {real.score.high:+.2f}]"
    if real.score.low <= 0:
        return f"The finding does not stand: {score} is not clearly above zero."
    unlearned = [r.condition for r in results[1:] if r.facts_learned is False]
    if unlearned:
        return f"Whether the finding stands cannot be said: {' and '.join(unlearned)} did not learn the facts."
    below = [r.condition for r in results[1:] if r.against is not None and r.against.difference.low <= 0]
    if below:
        return f"The finding does not stand: {score} is not clearly above {' and '.join(below)}."
    return f"The finding stands: {score} is above every control, each difference clear of zero."
