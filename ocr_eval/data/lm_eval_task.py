"""What an exported lm-evaluation-harness task calls; a copy of this file lies beside the task's YAML files.

It imports nothing of ocr-eval and reads its data from beside itself, so an exported folder can be moved to
any machine that has lm-evaluation-harness. The scoring is ``sequence``: the log-probability of a whole answer.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def load(file: str, **_: Any) -> dict[str, Dataset]:
    """The probes of one task; the harness passes the task's metadata too, which is not needed.

    Raises:
        OSError: the JSON lines do not lie beside this file.
    """
    with Path(__file__).with_name(file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """The figures of one probe from its candidates' log-probabilities; ranks are 0-based, ties share theirs."""
    logprobs = [logprob for logprob, _ in results]
    in_use = logprobs[: doc["in_use"]]
    right = logprobs[doc["target"]]
    rank = _midrank(right, logprobs)
    null = sum(_midrank(own, logprobs) for own in in_use) / len(in_use)
    score = 1 - _midrank(right, in_use) / ((len(in_use) - 1) / 2)
    return {"mean_rank": rank, "null_rank": null, "ocr_score": score, "acc": float(rank == 0)}


def _midrank(own: float, among: list[float]) -> float:
    return sum(other > own for other in among) + (sum(other == own for other in among) - 1) / 2
