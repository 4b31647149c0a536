"""The code that exported lm-evaluation-harness tasks call; it is copied next to their YAML files.

It imports nothing from ocr-eval and reads its data from its own folder, so an exported folder can be moved to
any machine that has lm-evaluation-harness. The scoring is ``sequence``: the log-probability of a whole answer.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def load(file: str, **_: Any) -> dict[str, Dataset]:
    """The probes of one task. The harness also passes the task's metadata, which is ignored.

    Raises:
        OSError: the JSON lines are not next to this file.
    """
    with Path(__file__).with_name(file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """The metrics of one probe from its candidates' log-probabilities. Ranks are 0-based; ties share their average."""
    logprobs = [logprob for logprob, _ in results]
    in_use = logprobs[: doc["in_use"]]
    right = logprobs[doc["target"]]
    rank = _midrank(right, logprobs)
    null = sum(_midrank(own, logprobs) for own in in_use) / len(in_use)
    among_answers = sum(_midrank(own, in_use) * groups for own, groups in zip(in_use, doc["groups"], strict=True))
    score = _midrank(right, in_use), among_answers / sum(doc["groups"]), doc["weight"]
    return {"mean_rank": rank, "null_rank": null, "ocr_score": score, "acc": float(rank == 0)}


def ocr_score(probes: list[tuple[float, float, float]]) -> float:
    """1 - mean rank / null, both among the answers in use.

    Each probe is (its rank, the mean rank it gives to the groups' answers, its weight in both means). 0 if the null is
    0: every group then has the same answer.
    """
    null = sum(null * weight for _, null, weight in probes)
    return 1 - sum(rank * weight for rank, _, weight in probes) / null if null else 0.0


def _midrank(own: float, among: list[float]) -> float:
    return sum(other > own for other in among) + (sum(other == own for other in among) - 1) / 2
