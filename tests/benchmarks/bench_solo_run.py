"""One run of ocr-eval against Hugging Face Trainer + PEFT written the usual way.

Same model, data, adapter, rate, batch size and number of epochs; both only train (no scoring), in one process
and in turn, so that the ratio holds on a noisy machine. The Trainer pads each batch to its longest statement and
computes logits at every position, as it usually does.

    python tests/benchmarks/bench_solo_run.py [--epochs 4] [--rounds 2]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from ocr_eval import draw
from ocr_eval.association import load_association
from ocr_eval.dataset import build_dataset
from ocr_eval.injection import attach
from ocr_eval.models import load_base, quiet_transformers
from ocr_eval.specs import RunSpec, load_model_spec, make_run_spec
from ocr_eval.tokens import Continuation, training_tokens
from ocr_eval.train import train_epoch
from ocr_eval.weights import WeightFolder, locate


class Padded(Dataset):
    """Statements as the Trainer wants them: ids and labels, the prompt masked."""

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
    """Seconds of Trainer.train; mode is 'bf16 autocast' (fp32 weights) or 'bf16 weights'."""
    dtype = torch.float32 if mode == "bf16 autocast" else torch.bfloat16
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
        network = get_peft_model(network, config, autocast_adapter_dtype=mode == "bf16 autocast")
        trainer = Trainer(network, arguments, train_dataset=Padded(examples), data_collator=collate)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def our_seconds(spec: RunSpec, folder: WeightFolder, examples: list[Continuation], epochs: int) -> float:
    """Seconds of the same epochs in ocr-eval's loop."""
    base = load_base(spec.model, folder)
    pack = attach(base, [spec], [examples])
    started = time.perf_counter()
    for _ in range(epochs):
        train_epoch(pack, [0])
    return time.perf_counter() - started


def main() -> None:
    """Time all three in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--assoc", default="city-language")
    arguments = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    spec = make_run_spec(load_model_spec("smollm2-135m"), load_association(arguments.assoc), {}, {}, 0)
    folder = locate(spec.model)
    tokenizer = load_base(spec.model, folder).tokenizer
    examples = draw.shuffled("benchmark", training_tokens(tokenizer, build_dataset(spec)))
    tokens = sum(len(e.prompt) + len(e.answer) for e in examples) * arguments.epochs
    ways = {
        "ocr-eval": lambda: our_seconds(spec, folder, examples, arguments.epochs),
        "Trainer, bf16 autocast": lambda: trainer_seconds(spec, folder, examples, arguments.epochs, "bf16 autocast"),
        "Trainer, bf16 weights": lambda: trainer_seconds(spec, folder, examples, arguments.epochs, "bf16 weights"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, measure in ways.items():
            seconds[way].append(measure())
    ours = statistics.median(seconds["ocr-eval"])
    print(f"{arguments.assoc}: {len(examples)} statements, {arguments.epochs} epochs, median of {arguments.rounds}")
    for way, values in seconds.items():
        median = statistics.median(values)
        print(f"{way:24} {median:7.2f} s  {tokens / median:7.0f} tokens/s  {median / ours:5.2f} x ocr-eval's time")


if __name__ == "__main__":
    main()
