"""Records of runs that never ran, with whatever ranks a test wants."""

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from ocr_eval.data.task import Quantity
from ocr_eval.records.record import Matched, Record
from ocr_eval.scoring.ranks import HeldOut, Score
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import SCORINGS, DataSpec


def answers(rank: float, null: float, n: int = 5, seed: int = 0) -> HeldOut:
    """Forty subjects of a seed, n answers in use whose mean rank is ``null``, and ``rank`` that of the right one.

    So many infer it (or avoid it, where ``rank`` is above ``null``), and the others rank it in the middle, that
    the OCR score is 1 - rank / null, as nearly as one of forty can make it.
    """
    target, middle = np.arange(40) % n, (n - 1) // 2
    ranks = np.array([np.roll(np.arange(n), t - middle) for t in target], dtype=float)
    score = 1 - rank / null
    for i in range(round(40 * abs(score))):
        ranks[i] = np.roll(np.arange(n)[:: 1 if score > 0 else -1], target[i])
    ranks *= 2 * null / (n - 1)
    ranks[39, target[39]] += 40 * rank - ranks[np.arange(40), target].sum()
    ranks[39, (target[39] + 1) % n] += ranks.shape[1] * 40 * null - ranks.sum()
    return HeldOut(subject=[f"s{seed}-{i}" for i in range(40)], target=target, ranks=ranks)


def record(
    association="city-language", kind="causal", seed=0, rank=0.5, null=2.0, learned=True, n=5, **changes
) -> Record:
    """A finished run whose held-out answers rank so among n in use, which learned its facts, or half of them."""
    held = answers(rank, null, n, seed)
    score = Score(
        probes=40,
        mean_rank=rank,
        null_rank=null,
        top1=float((held.rank == 0).mean()),
        mrr=float((1 / (held.rank + 1)).mean()),
        margin=1.0,
        ties=0,
        in_use_rank=float(held.in_use_rank.mean()),
        ocr_score=held.ocr_score,
    )
    fact = replace(score, probes=1, top1=1.0 if learned else 0.5)
    scores = {scoring: {"test_fact": fact, "test_entailment": score} for scoring in SCORINGS}
    values = {
        "run": f"m/{association}/lora/seed{seed}",
        "model": "smollm2-135m",
        "published_as": None,
        "association": association,
        "kind": kind,
        "seed": seed,
        "dtype": "bfloat16",
        "quantities": (Quantity("test_fact", "premise"), Quantity("test_entailment", "finding")),
        "data": DataSpec(),
        "train": TrainSpec(),
        "base": scores,
        "final": scores,
        "base_held_out": {},
        "held_out": dict.fromkeys(SCORINGS, held),
        "train_loss": 0.1,
        "seconds": {"train": 1.0, "score": 1.0},
        "base_identity": "gguf:0",
        "adapter_sha256": "0",
        "code": "abc",
    }
    return Record(**{**values, **changes})


CONTROL = DataSpec(variant="no-entailment")


HOSTILE = "</table><img src=x onerror=alert(1)>|&\\end{document}$_%"


def write(root: Path, *records: Record) -> Path:
    """The folders of finished runs with these records, run0 and so on; the root."""
    for i, each in enumerate(records):
        folder = root / f"run{i}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(each.to_json().replace(f'"run": "{each.run}"', f'"run": "{folder}"'))
        (folder / "status.json").write_text("{}")
    return root


def learned_at(epoch, rank, **changes):
    """When a run had just learned what it was taught, with this rank."""
    then = record(rank=rank, **changes)
    return Matched(epoch, then.final, {scoring: held.ranks for scoring, held in then.held_out.items()})
