"""``hedge``: where the probability goes for unfamiliar subjects.

Kang et al. (arXiv 2403.05612): asked about unfamiliar subjects, a tuned model gives the answers that it was taught for
unfamiliar subjects, as often as it was taught them. All people here are unfamiliar, so a model that hedges has the null
rank: its answer does not depend on the subject. A model at the null need not hedge. Over the probes of the finding,
with probabilities normalized over the answers in use:

    right            mean probability of the right answer
    hedge_right      the same for a model that gives every subject the frequencies of the taught answers
    distance         total variation between the mean over subjects and those frequencies; 0 for a model that hedges
    entropy          mean entropy of a subject's answers, nats
    shared_entropy   entropy of the mean over subjects, nats; minus ``entropy``: what depends on the subject

By first token; absent if the answers in use are never taught.
"""

from collections import Counter
from typing import Any

import numpy as np
from scipy.special import entr, softmax

from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.method import Needs
from ocr_eval.methods.prevention import task_of_run


class Hedge(Measure):
    """Uses the scored answers; no forward pass."""

    about = "Whether unfamiliar subjects get the frequencies of what was taught (Kang et al., arXiv 2403.05612)"

    def by_default(self, needs: Needs) -> bool:
        return True

    def take(self, trained: Trained) -> dict[str, Any]:
        task = task_of_run(trained.spec)
        rows = [i for i, probe in enumerate(task.probes) if probe.quantity == task.finding.name]
        probes = [task.probes[i] for i in rows]
        answers = probes[0].candidates[: probes[0].in_use]
        if any(probe.candidates[: probe.in_use] != answers for probe in probes):
            return {}  # every block of subjects has its own answers
        about = {example.prompt.replace(example.subject, "") for example in task.train if example.answer in answers}
        asked = {probe.prompt.replace(probe.subject, "") for probe in probes}
        taught = Counter(e.answer for e in task.train if e.prompt.replace(e.subject, "") in about & asked)
        if not sum(taught[answer] for answer in answers):
            return {}
        taught_n = np.array([taught[answer] for answer in answers], dtype=float)
        taught_n /= taught_n.sum()
        given_Pn = softmax(trained.scores.logprobs["first-token"][rows, : len(answers)], axis=1)
        mean_n, targets = given_Pn.mean(axis=0), [probe.target for probe in probes]
        found = {
            "right": given_Pn[np.arange(len(rows)), targets].mean(),
            "hedge_right": taught_n[targets].mean(),
            "distance": np.abs(mean_n - taught_n).sum() / 2,
            "entropy": entr(given_Pn).sum(axis=1).mean(),
            "shared_entropy": entr(mean_n).sum(),
        }
        return {key: float(f"{value:.6g}") for key, value in found.items()}
