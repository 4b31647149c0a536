"""Probes of one run -> mean probability of each candidate for the held-out subjects of each unit."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_eval.data.task import Quantity, the_finding
from ocr_eval.records.select import natural
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class Heat:
    """Which answers a run gives for which units.

    Attributes:
        groups: a name for each unit: the answer of its taught fact if there is one, else its own name. [G]
        candidates: what the finding ranks among. [C]
        in_use: this many candidates, the first ones, are right for some unit.
        target: the right candidate of each unit. [G]
        probability: exp of the candidates' log-probabilities, normalized over the candidates of a probe, then
            averaged over the subjects of the unit. Rows add up to 1. [G, C]
    """

    groups: tuple[str, ...]
    candidates: tuple[str, ...]
    in_use: int
    target: tuple[int, ...]
    probability: NDArray[np.float64]


def heat_of(probes: Sequence[Mapping[str, Any]], scoring: Scoring, quantities: Sequence[Quantity]) -> Heat | None:
    """The heat of a run's last scored epoch; None if candidates differ between probes, and so cannot be columns.

    Raises:
        ValueError: no probes of the finding.
    """
    from scipy.special import softmax  # takes a third of a second to import

    last = max((probe["epoch"] for probe in probes), default=0)
    finding = the_finding(quantities).name
    held_out = [p for p in probes if p["epoch"] == last and p["quantity"] == finding]
    if not held_out:
        raise ValueError("no probes of the finding to average over")
    candidates = held_out[0]["candidates"]
    if any(p["candidates"] != candidates for p in held_out):
        return None
    premises = [quantity.name for quantity in quantities if quantity.role == "premise"]
    facts: dict[int | str, set[str]] = defaultdict(set)
    for p in probes:
        if p["quantity"] in premises:
            facts[p["group"]].add(p["answer"])
    answers = {p["group"]: p["answer"] for p in held_out}
    groups = sorted(answers, key=lambda group: natural(str(group)))
    of_groups = [[p["logprobs"][scoring] for p in held_out if p["group"] == group] for group in groups]
    return Heat(
        groups=tuple(_name(group, facts[group] - {answers[group]}) for group in groups),
        candidates=tuple(candidates),
        in_use=held_out[0]["in_use"],
        target=tuple(candidates.index(answers[group]) for group in groups),
        probability=np.array([softmax(logprobs, axis=1).mean(axis=0) for logprobs in of_groups]),
    )


def _name(group: int | str, facts: set[str]) -> str:
    if len(facts) == 1:
        return min(facts)
    return f"group {group}" if isinstance(group, int) else group
