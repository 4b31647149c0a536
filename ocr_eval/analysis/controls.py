"""Whether a finding stands: the real data against its controls, on the same test subjects. Pure.

base             the untouched model (epoch 0 of the real runs)
no-entailment    the same people and facts but no entailments: nothing to infer from
shuffled         train entailments dealt evenly over groups: nothing to infer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ocr_eval.analysis.difference import Difference, difference, too_few, verdicts
from ocr_eval.analysis.intervals import Estimate, of_metric
from ocr_eval.analysis.significance import SIGNIFICANT, inference_ps, least_p
from ocr_eval.common import yaml_files
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_seed, ranks_by_seed
from ocr_eval.specs.run import DataSpec, RunSpec, Scoring

Condition = Literal["real", "base", "no-entailment", "shuffled"]
_TRAINED_CONTROLS: tuple[Condition, ...] = ("no-entailment", "shuffled")


@dataclass(frozen=True)
class ConditionResult:
    """One condition over its seeds.

    Attributes:
        score: OCR score with its interval.
        p: p-value of "nothing was inferred".
        least_p: the smallest p that this number of groups and seeds can give.
        premises_hold: whether every run learned what it was taught; None for the untouched base.
        against: the real condition minus this one, paired by seed; None for the real one.
    """

    condition: Condition
    score: Estimate
    p: float
    least_p: float
    mean_rank: float
    null_rank: float
    premises_hold: bool | None
    against: Difference | None


def condition_specs(real: RunSpec) -> dict[Condition, RunSpec]:
    """The runs that the conditions of one seed need; the base comes with the real run.

    Raises:
        UserError: m_train is 0, so there is nothing to shuffle.
    """
    specs: dict[Condition, RunSpec] = {"real": real}
    for variant in _TRAINED_CONTROLS:
        data = yaml_files.parse(DataSpec, {**real.data.model_dump(), "variant": variant}, "controls")
        specs[variant] = real.model_copy(update={"data": data})
    return specs


def compare_conditions(runs: Sequence[Record], scoring: Scoring) -> list[ConditionResult]:
    """The real condition and its three controls, from each seed's runs of ``condition_specs``.

    Raises:
        ValueError: a condition without runs, or conditions whose seeds or groups do not pair.
    """
    of = {name: [run for run in runs if run.data.variant == name] for name in ("real", *_TRAINED_CONTROLS)}
    base = {seed: [run.base_held_out[scoring] for run in own] for seed, own in by_seed(of["real"]).items()}
    ranks = {"base": base, **{name: ranks_by_seed(own, scoring) for name, own in of.items()}}
    results = []
    for condition in ("real", "base", *_TRAINED_CONTROLS):
        seeds = list(ranks[condition].values())
        results.append(
            ConditionResult(
                condition=condition,
                score=of_metric(seeds),
                p=inference_ps([seeds])[0],
                least_p=least_p(seeds),
                mean_rank=of_metric(seeds, "mean-rank").value,
                null_rank=of_metric(seeds, "null-rank").value,
                premises_hold=None if condition == "base" else all(run.premises_hold for run in of[condition]),
                against=None if condition == "real" else difference(ranks["real"], ranks[condition]),
            )
        )
    return results


def verdict(results: Sequence[ConditionResult]) -> str:
    """Whether the finding stands: something was inferred, and more than in every control."""
    real, *controls = results
    differences = [result.against for result in controls if result.against is not None]
    if not real.premises_hold:
        return "No finding: what was taught was not learned."
    least = min(each.value.value for each in differences)
    if max(each.seeds for each in differences) == 1:
        return f"No verdict from one seed: OCR score {real.score.value:+.2f}, {least:+.2f} or more from each control."
    score = f"OCR score {real.score.value:+.2f} (p {real.p:.2g})"
    if real.least_p > SIGNIFICANT:
        return f"No verdict: {score}, and so few groups cannot give p <= {SIGNIFICANT:g}. Raise --n or add seeds."
    if real.p > SIGNIFICANT:
        return f"The finding does not stand: {score} is not clearly above zero."
    unlearned = [result.condition for result in controls if result.premises_hold is False]
    if unlearned:
        return f"No verdict: {' and '.join(unlearned)} did not learn the facts."
    # The finding must hold against all of them, so each is tested at the full level, without a correction.
    shown = [verdicts([each])[0] for each in differences]
    if None in shown:
        seeds = min(each.seeds for each in differences)
        return f"Inferred: {score}, {least:+.2f} or more from each control. {too_few(seeds).capitalize()}."
    below = [result.condition for result, sign in zip(controls, shown, strict=True) if sign != 1]
    if below:
        return f"The finding does not stand: {score} is not clearly above {' and '.join(below)}."
    return f"The finding stands: {score} is above every control, each at p <= {SIGNIFICANT:g} by sign flips over seeds."
