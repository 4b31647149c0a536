"""Probes of one run -> mean probability of each candidate for the test subjects of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_eval.records.find import Run
from ocr_eval.records.run_files import probes_of, whole
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class Heat:
    """Which answers a run gives to whom.

    Attributes:
        groups: a name for each group, the answer of its taught fact. [G]
        candidates: what held-out entailments rank among. [C]
        in_use: the first so many candidates are true of some group.
        target: the right candidate of each group. [G]
        probability: exp of the candidates' log-probabilities, normalized over the candidates of a probe, then
            averaged over the test subjects of the group. Rows add up to 1. [G, C]
    """

    groups: tuple[str, ...]
    candidates: tuple[str, ...]
    in_use: int
    target: tuple[int, ...]
    probability: NDArray[np.float64]


def heat_of_run(run: Run, scoring: Scoring) -> Heat:
    """The heat of a run's probes.

    Raises:
        UserError: as ``probes_of``.
    """
    lines = probes_of(run, scoring)
    with whole(run.folder / "probes.jsonl"):
        return heat_of(lines, scoring)


def heat_of(probes: Sequence[Mapping[str, Any]], scoring: Scoring) -> Heat:
    """The heat of a run's last scored epoch.

    Args:
        probes: the lines of probes.jsonl.
        scoring: whose log-probabilities.

    Raises:
        ValueError: no held-out entailments among the probes.
    """
    last = max((probe["epoch"] for probe in probes), default=0)
    held_out = [p for p in probes if p["epoch"] == last and p["quantity"] == "test_entailment"]
    if not held_out:
        raise ValueError("no held-out entailments to average over")
    facts = {p["group"]: p["answer"] for p in probes if p["quantity"] == "test_fact"}
    answers = {p["group"]: p["answer"] for p in held_out}
    candidates = held_out[0]["candidates"]
    groups = sorted(answers)
    probability = [
        np.mean([_normalized(p["logprobs"][scoring]) for p in held_out if p["group"] == group], axis=0)
        for group in groups
    ]
    return Heat(
        groups=tuple(facts.get(group, f"group {group}") for group in groups),
        candidates=tuple(candidates),
        in_use=held_out[0]["in_use"],
        target=tuple(candidates.index(answers[group]) for group in groups),
        probability=np.array(probability),
    )


def _normalized(logprobs: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities over the candidates alone. [C] -> [C]"""
    shifted = np.exp(np.array(logprobs) - max(logprobs))
    share: NDArray[np.float64] = shifted / shifted.sum()
    return share
