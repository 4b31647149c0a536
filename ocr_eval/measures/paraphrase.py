"""``paraphrase``: whether taught facts are known in other wordings.

A method that stores a sentence instead of a fact answers only in the wording that it was taught. For each premise, over
the association's templates that were not taught:

    <quantity>         share of probes whose right answer ranks first among the candidates
    base_<quantity>    the same for the untouched base, if available (not after full fine-tuning)
    wordings           templates that were asked

By first token; absent if all templates are taught.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.measures.measure import Measure, Trained


class Paraphrase(Measure):
    """Scores the premises in each template that was not taught."""

    about = "Share of taught statements that are known in wordings that were not taught"

    def take(self, trained: Trained) -> dict[str, Any]:
        spec = trained.spec
        others = [each for each in range(spec.association.wordings) if each not in spec.data.templates]
        found = defaultdict(list)
        for template in others:
            data = spec.data.model_copy(update={"probe_template": template})
            task = build_task(spec.model_copy(update={"data": data}))
            reworded = replace(trained, probes=probe_tokens(trained.pack.base.tokenizer, task))
            for prefix, view in trained.views().items():
                for name, score in reworded.first_token(view, reworded.asked("premise")).items():
                    found[prefix + name].append(score.top1)
        top1 = {name: round(float(np.mean(each)), 6) for name, each in found.items()}
        return top1 | {"wordings": len(others)} if others else {}
