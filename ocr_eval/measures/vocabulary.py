"""``vocabulary``: how the right answers rank among all tokens, not only among candidates.

A method that suppresses all answers, or breaks the model, may still rank them well among ten candidates. For the right
answer's first token, over the probes of the finding, after the last epoch:

    rank          mean rank in the whole vocabulary; 0 is best, ties share theirs
    median_rank   its median
    probability   mean probability
    logprob       mean log-probability, nats
    mass          mean probability of the candidates' distinct first tokens together

``base_rank`` and so on are the same for the untouched base, if available (not after full fine-tuning). Numbers of a
premise are prefixed with its name: ``train_fact_rank``, ``base_train_fact_rank``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.method import Needs
from ocr_eval.methods.view import View
from ocr_eval.packing.logprobs import read_ranks
from ocr_eval.scoring.candidates import first_tokens, read_probes


def in_vocabulary(view: View, lane: int, probes: Sequence[ProbeTokens]) -> NDArray[np.float64]:
    """Rank and log-probability of the right answer's first token, and the candidates' mass, for each probe. [P, 3]"""
    asked = []
    for probe in map(first_tokens, probes):
        distinct = dict.fromkeys([probe.candidates[probe.probe.target], *probe.candidates])
        asked.append(replace(probe, candidates=tuple(distinct)))  # the right answer comes first
    found = [np.concatenate(of_probe) for of_probe in read_probes(view, lane, asked, read_ranks)]
    return np.array([[of[0, 0], of[0, 1], np.exp(of[:, 1]).sum()] for of in found])


class Vocabulary(Measure):
    """Reads the next-token distribution at the end of each prompt: one forward pass per model."""

    about = "Rank and probability of the right answer in the whole vocabulary, and the mass on the candidates"

    def by_default(self, needs: Needs) -> bool:
        """It costs about a scoring of the trained model and one of the base."""
        return True

    def take(self, trained: Trained) -> dict[str, Any]:
        probes = trained.probes
        roles = ("finding", "premise")
        prefixes = {q.name: f"{q.name}_" if q.role == "premise" else "" for q in trained.quantities if q.role in roles}
        found: dict[str, float] = {}
        for model, view in trained.views().items():
            values_P3 = in_vocabulary(view, trained.lane, probes)
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
