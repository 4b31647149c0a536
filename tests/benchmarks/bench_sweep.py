"""A sweep from end to end, against the same experiment with Hugging Face Trainer + PEFT and lm-evaluation-harness.

Both load the model, train LoRA for some epochs (bf16, batch 32), score every probe against its ten candidates before
training and after each epoch, and save the adapter, for each run. The sweep does all runs; the usual way is timed for
each association's first seed, one run after another in one process, and scaled to all seeds. Its scoring is the
harness's ``loglikelihood`` in batches of 32, which computes a prompt once for all of its one-token candidates. Times
are of whole commands, with imports.

    python tests/benchmarks/bench_sweep.py [--epochs 2] [--seeds 3] [--rounds 1]
    python tests/benchmarks/bench_sweep.py --schedules --epochs 16 --seeds 2   # scoring every epoch against the default
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from bench_training import Padded, collate, run_specs
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from ocr_eval.data.task import Task, build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.models.base import load_tokenizer
from ocr_eval.models.loading import quiet_transformers
from ocr_eval.models.weights import locate
from ocr_eval.specs.run import RunSpec
from ocr_eval.specs.schedule import DEFAULT


@dataclass(frozen=True)
class Usual:
    """Seconds of the usual way, for some runs in one process."""

    seconds: float
    training: float
    scoring: float


class Harness(TrainerCallback):
    """Scores the held-out and the taught probes after each epoch."""

    def __init__(self, lm: HFLM, task: Task) -> None:
        self.lm = lm
        self.requests = [
            Instance("loglikelihood", {}, (probe.prompt, f" {answer}"), 0)
            for probe in task.probes
            for answer in probe.candidates
        ]
        self.seconds = 0.0

    def score(self) -> None:
        """All candidates of all probes."""
        started = time.perf_counter()
        training = self.lm.model.training
        self.lm.model.eval()
        self.lm.loglikelihood(self.requests, disable_tqdm=True)
        self.lm.model.train(training)
        self.seconds += time.perf_counter() - started

    def on_epoch_end(self, *args: object, **kwargs: object) -> None:
        self.score()


def usual_run(spec: RunSpec, epochs: int, scratch: Path) -> tuple[float, float]:
    """Seconds of training and of scoring of one run."""
    folder = locate(spec.model)
    tokenizer, dataset = load_tokenizer(spec.model.name), build_task(spec)
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=spec.train.rank, lora_alpha=spec.train.alpha, target_modules=spec.train.targets
    )
    network = get_peft_model(network, config)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=spec.train.batch_size,
        num_train_epochs=epochs,
        learning_rate=spec.train.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = HFLM(
        pretrained=network, tokenizer=tokenizer, batch_size=32, device=device, mixed_precision_dtype=torch.bfloat16
    )
    harness = Harness(lm, dataset)
    harness.score()
    rows = Padded(training_tokens(tokenizer, dataset))
    trainer = Trainer(network, arguments, train_dataset=rows, data_collator=collate, callbacks=[harness])
    before, started = harness.seconds, time.perf_counter()
    trainer.train()
    training = time.perf_counter() - started - (harness.seconds - before)
    network.save_pretrained(scratch / spec.association.name)
    return training, harness.seconds


def usual(epochs: int) -> Usual:
    """Every association's first seed, one after another in this process."""
    training = scoring = 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for spec in run_specs(1, "bfloat16"):
            took = usual_run(spec, epochs, Path(scratch))
            training, scoring = training + took[0], scoring + took[1]
    return Usual(time.perf_counter() - started, training, scoring)


def seconds_of(command: list[str]) -> tuple[float, str]:
    """Wall seconds of a command, and its stdout."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def sweep_seconds(seeds: int, epochs: int, *flags: str) -> float:
    """Seconds of a sweep."""
    with tempfile.TemporaryDirectory() as scratch:
        grid = ["--seeds", f"0-{seeds - 1}", "--epochs", str(epochs), *flags]
        return seconds_of([sys.executable, "-m", "ocr_eval", "sweep", "--output-dir", scratch, *grid])[0]


def schedules(seeds: int, epochs: int, rounds: int) -> None:
    """Time both schedules of scoring in turn, on two associations, and print the ratio."""
    took: dict[str, list[float]] = {"every": [], DEFAULT: []}
    for _ in range(rounds):
        for schedule, seconds in took.items():
            two = ("--assocs", "city-language,country-code", "--score-at", schedule)
            seconds.append(sweep_seconds(seeds, epochs, *two))
    every, default = map(statistics.median, took.values())
    print(f"--score-at every               {every:8.1f} s   1.00 x")
    print(f"--score-at {DEFAULT:19} {default:8.1f} s  {every / default:5.2f} x")


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--schedules", action="store_true", help="time two schedules of scoring instead")
    parser.add_argument("--usual", action="store_true", help="measure the usual way in this process")
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if arguments.usual:
        print(json.dumps(asdict(usual(arguments.epochs))))
        return
    if arguments.schedules:
        schedules(arguments.seeds, arguments.epochs, arguments.rounds)
        return
    ours, theirs, parts = [], [], []
    for _ in range(arguments.rounds):
        ours.append(sweep_seconds(arguments.seeds, arguments.epochs, "--score-at", "every"))
        command = [sys.executable, __file__, "--usual", "--epochs", str(arguments.epochs)]
        seconds, printed = seconds_of(command)
        theirs.append(seconds * arguments.seeds)
        parts.append(Usual(**json.loads(printed.splitlines()[-1])))
    sweep, other = statistics.median(ours), statistics.median(theirs)
    training = statistics.median(part.training for part in parts) * arguments.seeds
    scoring = statistics.median(part.scoring for part in parts) * arguments.seeds
    runs = len(run_specs(arguments.seeds, "bfloat16"))
    print(
        f"{runs} runs, {arguments.epochs} epochs, {arguments.epochs + 1} scorings, median of {arguments.rounds} rounds"
    )
    print(f"ocr-eval sweep                 {sweep:8.1f} s   1.00 x")
    print(f"Trainer + PEFT + lm-eval       {other:8.1f} s  {other / sweep:5.2f} x")
    print(f"  of which training            {training:8.1f} s")
    print(f"  of which scoring             {scoring:8.1f} s")


if __name__ == "__main__":
    main()
