"""Training speed: runs in packs, a run alone, and Hugging Face Trainer + PEFT written the usual way.

Same model, data, adapters, rates, batch size and epochs. Each variant runs in separate processes, in turn and in
several rounds, so that ratios are valid on a noisy machine and each has its own peak memory. Only training is timed,
not loading or scoring. Packs are trained as in a sweep: in one process per core, all starting together; the time is
that of the last. The Trainer pads each batch to its longest statement and computes logits at every position.

Useful work is what the runs need: 4 FLOP per node and frozen weight (forward, and backward to the input), 6 per node
and adapter weight, 4 per read position and weight of the head; padding does not count. The peak is the best
2048 x 2048 x 2048 matrix product in the precision in use, measured around each variant.

    python tests/benchmarks/bench_training.py [--dtype auto] [--epochs 2] [--rounds 2] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Literal

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import Continuation, training_tokens
from ocr_eval.execution.jobs.local import cores
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import batch_forest, train_epoch
from ocr_eval.models.architecture import target_names
from ocr_eval.models.base import DTYPES, Base, load_base, load_tokenizer
from ocr_eval.models.loading import quiet_transformers
from ocr_eval.models.weights import WeightFolder, locate
from ocr_eval.planning.packs import cut
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.published import published_associations
from ocr_eval.specs.run import RunSpec, make_run_spec

Dtype = Literal["bfloat16", "float32"]


class Padded(Dataset):
    """Statements in the Trainer's format: ids and labels, with the prompt masked."""

    def __init__(self, examples: list[Continuation]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        prompt, answer = self.examples[i].prompt, self.examples[i].answer
        return {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-pad to the longest of the batch."""
    width = max(len(row["input_ids"]) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def trainer_seconds(spec: RunSpec, folder: WeightFolder, examples: list[Continuation], epochs: int, mode: str) -> float:
    """Seconds of Trainer.train; mode is 'fp32', 'bf16 autocast' (fp32 weights) or 'bf16 weights'."""
    dtype = torch.bfloat16 if mode == "bf16 weights" else torch.float32
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(folder.path, dtype=dtype)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=spec.train.rank, lora_alpha=spec.train.alpha, target_modules=spec.train.targets
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=spec.train.batch_size,
            num_train_epochs=epochs,
            learning_rate=spec.train.lr,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            bf16=mode == "bf16 autocast",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        network = get_peft_model(network, config, autocast_adapter_dtype=mode != "bf16 weights")
        trainer = Trainer(network, arguments, train_dataset=Padded(examples), data_collator=collate)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


@dataclass(frozen=True)
class Measured:
    """Seconds of training, the speed of the best matrix product in GFLOP/s, and peak memory in bytes."""

    seconds: float
    peak: float
    memory: int


@dataclass(frozen=True)
class Worked:
    """When a worker started and finished its packs, by the monotonic clock in seconds, and its peak memory in bytes."""

    began: float
    ended: float
    memory: int


def matmul_peak(dtype: Dtype) -> float:
    """GFLOP/s of the fastest of a few matrix products."""
    x = torch.randn(2048, 2048, dtype=DTYPES[dtype])
    times = []
    for _ in range(6):
        started = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times) / 1e9


def fast_dtypes() -> list[Dtype]:
    """The dtypes that this processor has instructions for."""
    there = torch.cpu.get_capabilities()
    has_bf16 = torch.cuda.is_available() or any(there.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    is_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"  # perhaps by ATEN_CPU_CAPABILITY
    return ["bfloat16", "float32"] if has_bf16 and not is_avx2 else ["float32"]


def run_specs(seeds: int, dtype: Dtype) -> list[RunSpec]:
    """The published protocol: five associations, ``seeds`` seeds each."""
    model = load_model_spec("smollm2-135m").model_copy(update={"dtype": dtype})
    names = published_associations()
    return [make_run_spec(model, load_association(name), {}, {}, seed) for name in names for seed in range(seeds)]


def pack_seconds(base: Base, specs: list[RunSpec], epochs: int) -> float:
    """Seconds to train runs as one pack."""
    pack = attach(base, specs, [training_tokens(base.tokenizer, build_task(spec)) for spec in specs])
    started = time.perf_counter()
    for _ in range(epochs):
        train_epoch(pack, range(len(specs)))
    seconds = time.perf_counter() - started
    pack.detach()
    return seconds


def later_epochs_seconds(base: Base, spec: RunSpec, epochs: int) -> float:
    """Seconds to train a single run after its first epoch, when its memory is warm."""
    pack = attach(base, [spec], [training_tokens(base.tokenizer, build_task(spec))])
    train_epoch(pack, [0])
    started = time.perf_counter()
    for _ in range(epochs):
        train_epoch(pack, [0])
    seconds = time.perf_counter() - started
    pack.detach()
    return seconds


def own_memory() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def packs_of(seeds: int, dtype: Dtype, workers: int) -> list[list[RunSpec]]:
    """The packs of the sweep."""
    return cut(run_specs(seeds, dtype), "cpu", workers)


def work(packs: list[list[RunSpec]], epochs: int) -> Worked:
    """Train some packs in this process; waits for a line on stdin, so that all workers start together."""
    base = load_base(packs[0][0].model, locate(packs[0][0].model))
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for pack in packs:
        pack_seconds(base, pack, epochs)
    return Worked(began, time.monotonic(), own_memory())


def measure_packs(epochs: int, seeds: int, dtype: Dtype) -> Measured:
    """All packs, in one process per core."""
    workers = min(cores(), len(packs_of(seeds, dtype, cores())))
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores() // workers)}
    flags = ["--epochs", str(epochs), "--seeds", str(seeds), "--dtype", dtype]
    peak = matmul_peak(dtype)
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", f"{index}/{workers}", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for index in range(workers)
    ]
    for child in children:
        line = child.stdout.readline()
        while line.strip() != "ready":
            if not line:
                raise RuntimeError("a worker ended before it was ready; run one with --worker 0/1 to see why")
            line = child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    worked = [Worked(**json.loads(child.communicate()[0].splitlines()[-1])) for child in children]
    seconds = max(w.ended for w in worked) - min(w.began for w in worked)
    return Measured(seconds, max(peak, matmul_peak(dtype)), sum(w.memory for w in worked))


def measure(way: str, epochs: int, seeds: int, dtype: Dtype) -> Measured:
    """Time one variant in this process; those that train one run at a time do each association's first seed."""
    if way == "packs":
        return measure_packs(epochs, seeds, dtype)
    specs = run_specs(seeds, dtype)
    folder = locate(specs[0].model)
    peak = matmul_peak(dtype)
    if way == "one run at a time":
        base = load_base(specs[0].model, folder)
        seconds = seeds * sum(pack_seconds(base, [spec], epochs) for spec in specs[::seeds])
    elif way == "one run resumes":
        base = load_base(specs[0].model, folder)
        seconds = seeds * sum(later_epochs_seconds(base, spec, epochs) for spec in specs[::seeds])
    else:
        mode = way.removeprefix("Trainer, ")
        tokenizer = load_tokenizer(specs[0].model.name)
        examples = [training_tokens(tokenizer, build_task(spec)) for spec in specs[::seeds]]
        seconds = seeds * sum(
            trainer_seconds(spec, folder, rows, epochs, mode)
            for spec, rows in zip(specs[::seeds], examples, strict=True)
        )
    return Measured(seconds, max(peak, matmul_peak(dtype)), own_memory())


def useful_flop(epochs: int, seeds: int, dtype: Dtype) -> tuple[float, int]:
    """Useful work of all runs in FLOP, and the tokens of their statements."""
    specs = run_specs(seeds, dtype)
    spec = specs[0]
    base = load_base(spec.model, locate(spec.model))
    names = target_names(base.network, spec.train.targets)
    shapes = [base.network.get_submodule(name).weight.shape for name in names]
    frozen = sum(rows * columns for rows, columns in shapes)
    adapters = sum(spec.train.rank * (rows + columns) for rows, columns in shapes)
    head = base.network.get_output_embeddings().weight.numel()
    flop, tokens = 0.0, 0
    for each in specs:
        pack = attach(base, [each], [training_tokens(base.tokenizer, build_task(each))])
        for batch in pack.learners[0].batches():
            forest, reads = batch_forest(batch)
            flop += len(forest.ids) * (4 * frozen + 6 * adapters) + len(reads.nodes) * 4 * head
            tokens += sum(len(example.prompt) + len(example.answer) for example in batch)
        pack.detach()
    return flop * epochs, tokens * epochs


OURS = ("packs", "one run at a time", "one run resumes")
WAYS: dict[Dtype, tuple[str, ...]] = {
    "bfloat16": (*OURS, "Trainer, bf16 autocast", "Trainer, bf16 weights"),
    "float32": (*OURS, "Trainer, fp32"),
}


def main() -> None:
    """Time all variants in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("auto", *DTYPES, "both"), help="default: what this processor does fast")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--way", help="measure one variant in this process")
    parser.add_argument("--worker", help="train every n-th pack from the i-th in this process: i/n")
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    epochs, seeds, dtype = arguments.epochs, arguments.seeds, arguments.dtype
    if arguments.worker:
        index, workers = map(int, arguments.worker.split("/"))
        print(json.dumps(asdict(work(packs_of(seeds, dtype, workers)[index::workers], epochs))))
    elif arguments.way:
        print(json.dumps(asdict(measure(arguments.way, epochs, seeds, dtype))))
    else:
        chosen = {None: fast_dtypes(), "auto": fast_dtypes()[:1], "both": list(DTYPES)}
        for each in chosen.get(dtype, [dtype]):
            compare(each, epochs, seeds, arguments.rounds)


def compare(dtype: Dtype, epochs: int, seeds: int, rounds: int) -> None:
    """Measure all variants with a precision in turn, each in its own process, and print medians and ratios."""
    results: dict[str, list[Measured]] = {way: [] for way in WAYS[dtype]}
    flags = ["--epochs", str(epochs), "--seeds", str(seeds), "--dtype", dtype]
    for _ in range(rounds):
        for way, measured in results.items():
            command = [sys.executable, __file__, "--way", way, *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            measured.append(Measured(**json.loads(done.stdout.splitlines()[-1])))
    flop, tokens = useful_flop(epochs, seeds, dtype)
    ours = statistics.median(m.seconds for m in results["packs"])
    print(f"{dtype}: {len(run_specs(seeds, dtype))} runs, {epochs} epochs, {flop / 1e12:.1f} TFLOP, ", end="")
    print(f"median of {rounds} rounds")
    print(f"{'':24}{'seconds':>9}{'tokens/s':>10}{'of packs':>10}{'of peak':>9}{'GFLOP/s':>9}{'memory':>9}")
    for way, measured in results.items():
        seconds = statistics.median(m.seconds for m in measured)
        share = statistics.median(flop / m.seconds / 1e9 / m.peak for m in measured)
        memory = max(m.memory for m in measured) / 1e9
        print(
            f"{way:24}{seconds:9.1f}{tokens / seconds:10.0f}{seconds / ours:9.2f}x{share:9.0%}"
            f"{flop / seconds / 1e9:9.0f}{memory:7.2f} GB"
        )


if __name__ == "__main__":
    main()
