"""``paraphrase``: whether taught facts are known in other wordings.

A method that stores a sentence instead of a fact answers only in the wording that it was taught. For each premise, over
the association's templates that were not taught:

    <quantity>         share of probes whose right answer ranks first among the candidates
    base_<quantity>    the same for the untouched base, if available (not after full fine-tuning)
    wordings           templates that were asked

By first token; absent if all templates are taught.
"""

from typing import Any

import numpy as np

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.scoring.candidates import score_lanes
from ocr_eval.scoring.quantities import summarize_quantities


class Paraphrase(Measure):
    """Scores the premises in each template that was not taught."""

    about = "Share of taught statements that are known in wordings that were not taught"

    def take(self, trained: Trained) -> dict[str, Any]:
        """See the module."""
        spec = trained.spec
        premises = [each for each in trained.quantities if each.role == "premise"]
        others = [each for each in range(spec.association.wordings) if each not in spec.data.templates]
        found: dict[str, list[float]] = {}
        for template in others:
            data = spec.data.model_copy(update={"probe_template": template})
            task = build_task(spec.model_copy(update={"data": data}))
            tokens, names = probe_tokens(trained.view().base.tokenizer, task), {each.name for each in premises}
            probes = [each for each in tokens if each.probe.quantity in names]
            asked = [each.probe for each in probes]
            for prefix, is_trained in (("", True), ("base_", False)):
                if is_trained or trained.has_base:
                    scores = score_lanes(trained.view(is_trained), {trained.lane: probes})[trained.lane]
                    by_quantity = summarize_quantities(premises, asked, scores, ["first-token"])["first-token"]
                    for name, score in by_quantity.items():
                        found.setdefault(prefix + name, []).append(score.top1)
        top1 = {name: round(float(np.mean(each)), 6) for name, each in found.items()}
        return top1 | {"wordings": len(others)} if others else {}
