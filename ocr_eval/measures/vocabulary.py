"""``vocabulary``: where the right answers stand among all tokens, not only among candidates.

A method that pushes answers down, or breaks the model, may still rank them well among ten candidates. Of the right
answer's first token, over the probes of the finding, after the last epoch:

    rank          mean rank in the whole vocabulary; 0 is best, ties share theirs
    median_rank   its median
    probability   mean probability
    logprob       mean log-probability, nats
    mass          mean probability of the candidates' distinct first tokens together

``base_rank`` and so on are the same of the untouched base, where it is still there (not after full fine-tuning). Before
each may stand a premise: ``train_fact_rank``, ``base_train_fact_rank``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.measures.measure import Trained
from ocr_eval.methods.method import Needs, method_of
from ocr_eval.methods.view import View
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.scoring.candidates import cut_probes, first_tokens, with_room


def in_vocabulary(view: View, lane: int, probes: Sequence[ProbeTokens]) -> NDArray[np.float64]:
    """Rank of the right answer's first token, its log-probability, and the candidates' mass, of each probe. [P, 3]

    Raises:
        RunFailed: a few prompts are too large for the memory.
    """
    prompts = [first_tokens(probe) for probe in probes]
    return with_room(view, 1, lambda size: _in_vocabulary(view, lane, prompts, size))


def _in_vocabulary(view: View, lane: int, probes: Sequence[ProbeTokens], size: int) -> NDArray[np.float64]:
    found = np.empty((len(probes), 3))
    for chunk in cut_probes(probes, size):
        forest = Forest()
        asked = [probes[i] for i in chunk]
        distinct = [list(dict.fromkeys([each.candidates[each.probe.target], *each.candidates])) for each in asked]
        reads, _ = read_answers(forest, [(each.prompt, first) for each, first in zip(asked, distinct, strict=True)])
        with torch.no_grad():
            ranked = view.token_ranks({lane: (forest, reads)})[lane].double().cpu().numpy()
        ends = np.cumsum([len(first) for first in distinct])
        for i, of_probe in zip(chunk, np.split(ranked, ends[:-1]), strict=True):
            found[i] = of_probe[0, 0], of_probe[0, 1], np.exp(of_probe[:, 1]).sum()  # the right answer is the first
    return found


class Vocabulary:
    """Reads the whole next-token distribution at the end of each prompt, a forward pass of the prompts a model."""

    about = "Rank and probability of the right answer in the whole vocabulary, and the mass on the candidates"

    def by_default(self, needs: Needs) -> bool:
        """It costs about a scoring of the trained model and one of the base."""
        return True

    def take(self, trained: Trained) -> dict[str, Any]:
        """The five numbers of the finding and of each premise, of the trained model and of its base."""
        probes = trained.probes
        prefixes = {q.name: f"{q.name}_" if q.role == "premise" else "" for q in trained.quantities if q.role in _ROLES}
        found: dict[str, float] = {}
        models = [("", True)] if method_of(trained.spec.train).needs.whole else [("", True), ("base_", False)]
        for model, is_trained in models:
            values_P3 = in_vocabulary(trained.view(is_trained), trained.lane, probes)
            for quantity, prefix in prefixes.items():
                rows = [i for i, each in enumerate(probes) if each.probe.quantity == quantity]
                if rows:
                    rank, logprob, mass = values_P3[rows].T
                    found |= {
                        f"{model}{prefix}rank": rank.mean(),
                        f"{model}{prefix}median_rank": np.median(rank),
                        f"{model}{prefix}probability": np.exp(logprob).mean(),
                        f"{model}{prefix}logprob": logprob.mean(),
                        f"{model}{prefix}mass": mass.mean(),
                    }
        return {key: float(f"{value:.6g}") for key, value in found.items()}


_ROLES = ("finding", "premise")

VOCABULARY = Vocabulary()
