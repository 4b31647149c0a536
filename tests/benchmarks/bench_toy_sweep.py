"""The rank sweep of the symbolic study as one batch, against a plain PyTorch loop over its runs.

Both train the same runs on the same sequences from the same initialization, in this process, on the same number of
threads. The loop is what one would write first: one-hot sequences, autograd, torch.optim.AdamW, one run after another.
Prints both times per step of a run, their ratio, and the largest difference in loss; exits with 1 if the ratio is below
15 in float32, or if results differ. In float64 both agree to 1e-8; in float32 the other order of rounding has an effect
that grows over the steps.

    python tests/benchmarks/bench_toy_sweep.py [--steps 200] [--seeds 3] [--threads 1] [--repeats 2]
        [--precision float32]
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from ocr_toy import model as m
from ocr_toy.runs import RunSpec, TrainSpec
from ocr_toy.sweep import DEFAULT_VALUES, sweep_specs
from ocr_toy.task import TEST_ENTAILMENT, Batch, batches, evaluation_batch, stream, to_tokens
from ocr_toy.train import CHUNK, train_runs

LEAST_RATIO = 15.0
LARGEST_DIFFERENCE = {"float32": 1e-2, "float64": 1e-8}
"""Of the test losses, in nats."""


class PlainModel(torch.nn.Module):
    """f(X) = W_O W_V^T X^T X W_KQ x_T on one-hot sequences X [B, T, d], W_KQ a full matrix."""

    def __init__(self, spec: RunSpec) -> None:
        """Start from the same numbers as the batched sweep; rows of answers, which are never read, start at 0."""
        super().__init__()
        start = m.initial_parameters(spec.model, spec.task, spec.train.init, spec.train.init_scale, spec.train.seed)
        self.d = spec.task.vocab
        w_v, w_kq = np.zeros((self.d, spec.model.d_h)), np.zeros((self.d, self.d))
        w_v[: spec.task.n_inputs] = start["W_V"]
        w_kq[: spec.task.n_inputs, spec.task.eos] = start["w_KQ"]
        dtype = getattr(torch, spec.train.precision)
        self.w_o = torch.nn.Parameter(torch.from_numpy(start["W_O"]).to(dtype))
        self.w_v = torch.nn.Parameter(torch.from_numpy(w_v).to(dtype))
        self.w_kq = torch.nn.Parameter(torch.from_numpy(w_kq).to(dtype))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, d] of token sequences [B, T]."""
        x = torch.nn.functional.one_hot(tokens, self.d).to(self.w_o.dtype)
        query = x[:, -1] @ self.w_kq.T
        scores = torch.einsum("btd,bd->bt", x, query)
        attended = torch.einsum("btd,bt->bd", x, scores)
        return attended @ self.w_v @ self.w_o.T


def sequences(spec: RunSpec) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The run's training batches as token sequences and answers, one per step."""
    drawn = []
    layout = stream(spec.train.seed, "layout")
    source = batches(spec.task, spec.train.batch, spec.train.seed, CHUNK)
    while len(drawn) < spec.train.steps:
        chunk = next(source)
        for step in range(min(CHUNK, spec.train.steps - len(drawn))):
            batch = Batch(chunk.subject[step], chunk.context[step], chunk.answer[step])
            tokens = torch.from_numpy(to_tokens(spec.task, batch, layout))
            drawn.append((tokens, torch.from_numpy(batch.answer)))
    return drawn


def plain_loop(spec: RunSpec, data: list[tuple[torch.Tensor, torch.Tensor]]) -> PlainModel:
    """Train one run the plain way."""
    model = PlainModel(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.train.lr, weight_decay=spec.train.decay)
    for tokens, answers in data:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens), answers).backward()
        optimizer.step()
    return model


def test_loss(spec: RunSpec, model: PlainModel) -> float:
    """The loss on test entailments, on the sequences that the batched sweep evaluates."""
    batch, rows = evaluation_batch(spec.task, spec.train.seed, spec.train.draws)
    held = rows[TEST_ENTAILMENT]
    part = Batch(batch.subject[held], batch.context[held], batch.answer[held])
    tokens = torch.from_numpy(to_tokens(spec.task, part, stream(0, "layout")))
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(tokens), torch.from_numpy(part.answer)))


def main() -> None:
    """Time both, print the comparison as JSON, and exit with 1 if it falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps (the published sweep: 20,000)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the plain loop")
    parser.add_argument("--repeats", type=int, default=2, help="measurements; the median counts")
    parser.add_argument("--precision", choices=list(LARGEST_DIFFERENCE), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    base = RunSpec(train=TrainSpec(steps=options.steps, record_every=options.steps, precision=options.precision))
    specs = sweep_specs(base, "d_h", DEFAULT_VALUES["d_h"], range(options.seeds))
    data = {seed: sequences(replace(base, train=replace(base.train, seed=seed))) for seed in range(options.seeds)}
    train_runs([replace(s, train=replace(s.train, steps=1)) for s in specs])  # warm-up

    batched, plain = [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        results = train_runs(specs)
        batched.append(time.perf_counter() - start)
        start = time.perf_counter()
        models = [plain_loop(spec, data[spec.train.seed]) for spec in specs]
        plain.append(time.perf_counter() - start)

    difference = max(
        abs(result.last.loss[TEST_ENTAILMENT] - test_loss(spec, model))
        for spec, result, model in zip(specs, results, models, strict=True)
    )
    run_steps = len(specs) * options.steps
    ratios = [slow / fast for slow, fast in zip(plain, batched, strict=True)]
    report = {
        "runs": len(specs),
        "steps": options.steps,
        "precision": options.precision,
        "threads_of_the_plain_loop": options.threads,
        "batched_ms_per_run_step": 1e3 * statistics.median(batched) / run_steps,
        "plain_ms_per_run_step": 1e3 * statistics.median(plain) / run_steps,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference_in_test_loss": difference,
    }
    print(json.dumps(report, indent=1))
    slow = options.precision == "float32" and statistics.median(ratios) < LEAST_RATIO
    if slow or difference > LARGEST_DIFFERENCE[options.precision]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
