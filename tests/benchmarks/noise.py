"""Rerun noise: how far a run's OCR score moves when it is made again, by training schedule.

A *remake* is a run whose initial adapters are moved by 1e-6 times normal noise; data, order, and initialization stay.
That stands for what another processor, library, or pack changes by rounding. Four remakes of five associations and
three seeds are trained under each condition and read after each of the last three epochs, and once more with
the weights' mean over every step of those epochs. Their scores differ by rerun noise alone.

    python tests/benchmarks/noise.py train [--part 0/2] [--packs 1]     resumes; --part shares the work of processes
    python tests/benchmarks/noise.py show                               results/noise/runs.csv -> noise.md

A pack holds the remakes of one run, so its lanes have the same batches and none is padded. A row of runs.csv is one
reading of one remake, all under first-token scoring:

    reading               last-2, last-1, last (epochs, counted from the end) or mean-weights
    loss                  mean training loss of the epoch, nats an answer token
    facts, taught         top-1 of the facts (of train or test subjects, the lower) and of the train entailments
    score, score_in_use   OCR score of the finding among ten candidates, and among the answers in use
    ranks, nulls          mean rank and mean null rank of each group, among ten candidates
    ranks_in_use          mean rank of each group among the n answers in use, where the null is (n - 1) / 2
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pandas as pd
import torch
from noise_page import page
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ocr_eval.common import streams
from ocr_eval.common.files import write_atomic
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import duration, say
from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import Task
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.methods.pack import Learner, attach
from ocr_eval.methods.prevention import Prevention, task_of_run
from ocr_eval.models.base import Base, load_base
from ocr_eval.models.weights import locate
from ocr_eval.scoring.candidates import CandidateScores, score_lanes
from ocr_eval.scoring.quantities import held_out, summarize_quantities
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import ModelSpec, load_model_spec
from ocr_eval.specs.published import published_associations
from ocr_eval.specs.run import RunSpec, make_run_spec

Floats = NDArray[np.float64]

#: What each condition changes of training at a constant rate of 2e-3, clipped at 1. The first is what the others are
#: compared with, and the last is the default today.
CONDITIONS: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "constant"},
    "linear": {"schedule": "linear"},
    "linear, clip 0.1": {"schedule": "linear", "max_grad_norm": 0.1},
    "constant, rate 1e-3": {"schedule": "constant", "lr": 1e-3},
    "cosine, warm-up 0.1": {"schedule": "cosine", "warmup": 0.1},
    "constant, beta2 0.95": {"schedule": "constant", "beta2": 0.95},
    "wsd, clip 0.1": {"schedule": "wsd", "max_grad_norm": 0.1},
}
ASSOCIATIONS = tuple(published_associations())
#: Seed 0 screens all conditions; the reference, a plain linear fall and today's default are confirmed on the others.
SEEDS = (0, 1, 2)
CONFIRMED = ("constant", "linear", "wsd, clip 0.1")
REMAKES = 4
#: Epochs at the end that are read and whose weights are averaged.
TAIL = 3
RESULTS = Path(__file__).parents[2] / "results/noise"


class Remake(Prevention):
    """Moves the initial adapters by 1e-6 times a normal draw of its own, at the first step."""

    class Settings(BaseModel, extra="forbid", frozen=True):
        number: int = Field(ge=1)

    _is_moved = False

    def before_step(self, learner: Learner) -> None:
        if self._is_moved:
            return
        stream = f"{learner.order}/remake-{self.settings.number}"
        generator = torch.Generator().manual_seed(streams.integer(stream))
        for parameter in learner.parameters.values():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-6)
        self._is_moved = True


class MeanWeights(Prevention):
    """Puts the mean over every step of the last epochs in the place of the final weights."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._count, self._sums = 0, dict[str, torch.Tensor]()

    def before_step(self, learner: Learner) -> None:
        if learner.epochs_done >= learner.train.epochs - TAIL:
            self._count += 1
            for name, parameter in learner.parameters.items():
                self._sums[name] = self._sums.get(name, 0) + parameter.data

    def after_training(self, learner: Learner) -> None:
        for name, parameter in learner.parameters.items():
            parameter.data.add_(self._sums[name]).div_(self._count + 1)


def remakes(spec: RunSpec) -> list[RunSpec]:
    """The remakes of a run."""
    prevent = [(f"remake:number={number}", "mean-weights") for number in range(1, REMAKES + 1)]
    return [spec.model_copy(update={"train": spec.train.model_copy(update={"prevent": each})}) for each in prevent]


def train_remakes(base: Base, spec: RunSpec) -> list[dict[str, Any]]:
    """Train the remakes of a run as one pack; a row of the table for each reading of each remake."""
    task, specs, rows = task_of_run(spec), remakes(spec), list[dict[str, Any]]()
    pack = attach(base, specs, [training_tokens(base.tokenizer, task)] * len(specs))
    probes = dict.fromkeys(range(len(specs)), probe_tokens(base.tokenizer, task))

    def read(reading: str, losses: Mapping[int, float]) -> None:
        for lane, scores in score_lanes(pack.view(), probes).items():
            run = {"association": spec.association.name, "seed": spec.seed, "remake": lane + 1}
            rows.append({**run, "reading": reading, "loss": losses[lane], **measured(task, scores)})

    try:
        for left in reversed(range(spec.train.epochs)):
            losses = pack.step(list(probes))
            if left < TAIL:
                read(f"last-{left}" if left else "last", losses)
        for lane in probes:
            pack.finish(lane)
        read("mean-weights", losses)
    finally:
        pack.detach()
    return rows


def measured(task: Task, scores: CandidateScores) -> dict[str, Any]:
    """What a row says of a run's scores, by column."""
    of = summarize_quantities(task.quantities, task.probes, scores, ["first-token"])["first-token"]
    finding = held_out(task, scores)["first-token"]
    number_S, answer_G = finding.units

    def by_group(values_S: Floats) -> str:
        return " ".join(f"{values_S[number_S == group].mean():.5g}" for group in range(len(answer_G)))

    return {
        "facts": min(of["train_fact"].top1, of["test_fact"].top1),
        "taught": of["train_entailment"].top1,
        "score": 1 - finding.rank.mean() / finding.null.mean(),
        "score_in_use": finding.ocr_score,
        "ranks": by_group(finding.rank),
        "nulls": by_group(finding.null),
        "ranks_in_use": by_group(finding.in_use_rank),
    }


def read_table(path: Path) -> pd.DataFrame:
    """The rows that are there; none where there is no file."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["condition", "association", "seed"])


def train(path: Path, model: ModelSpec, part: int = 0, parts: int = 1, packs: int | None = None) -> None:
    """Train the packs of one part of the work that are not in the table yet, at most so many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A seed under all its conditions before the next, so that what is finished is a fair comparison.
    order = [each for each in product(SEEDS, ASSOCIATIONS, CONDITIONS) if each[0] == SEEDS[0] or each[2] in CONFIRMED]
    done = set(read_table(path)[["seed", "association", "condition"]].itertuples(index=False, name=None))
    todo = [each for each in order[part::parts] if each not in done]
    say(f"{len(todo)} packs to do")
    if not todo:
        return
    base = load_base(model, locate(model), "cpu")
    for seed, association, condition in todo[:packs]:
        started = time.monotonic()
        spec = make_run_spec(
            model, load_association(association), {}, {"max_grad_norm": 1.0} | CONDITIONS[condition], seed
        )
        rows = pd.DataFrame(train_remakes(base, spec)).assign(condition=condition)
        with hold(path.parent / ".lock"):
            there = read_table(path)
            write_atomic(path, pd.concat([there, rows]).to_csv(index=False, float_format="%.5g"))
        scores = ", ".join(f"{score:+.2f}" for score in rows[rows.reading == "last"].score)
        say(f"{condition}, {association}, seed {seed}: {scores}  ({duration(time.monotonic() - started)})")


def main() -> None:
    """Train what is left of the study, or show it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "show"))
    parser.add_argument("--part", default="0/1", help="which part of the packs this process does, e.g. 0/2 and 1/2")
    parser.add_argument("--packs", type=int, help="stop after so many packs")
    parser.add_argument("--threads", type=int, default=1, help="threads of this process")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = arguments.output_dir / "runs.csv"
    if arguments.what == "train":
        PREVENTIONS.add("remake", Remake)
        PREVENTIONS.add("mean-weights", MeanWeights)
        part, parts = map(int, arguments.part.split("/"))
        model = load_model_spec("smollm2-135m").model_copy(update={"dtype": "bfloat16"})
        train(runs, model, part, parts, arguments.packs)
    else:
        write_atomic(runs.with_name("noise.md"), page(read_table(runs), list(CONDITIONS)))


if __name__ == "__main__":
    main()
