"""Training: any number of runs, of any shapes, stepped together.

Runs of equal shape form a block and share one batched matrix product; the parameters of all blocks are in one
flat buffer, so the optimizer updates every run in a handful of operations. A run's numbers depend only on its
own specification, not on the runs trained with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ocr_toy import model as m
from ocr_toy.errors import require
from ocr_toy.runs import CHUNK, MOST_NUMBERS, Record, RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import Margins, answer_margin, margins, norms
from ocr_toy.task import TEST_ENTAILMENT, Batch, TaskSpec, batches, evaluation_batch, full_batch

Progress = Callable[[int, int], None]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class _Block:
    """Runs of equal shape: their parameters (views of the flat buffer), data and evaluation."""

    def __init__(self, specs: list[RunSpec], params: m.Parameters, grads: m.Parameters, data: "_Data") -> None:
        self.specs, self.params, self.grads = specs, params, grads
        self.task, self.model = specs[0].task, specs[0].model
        self.dtype = getattr(torch, specs[0].train.precision)
        self.product_decay = torch.tensor([s.train.product_decay for s in specs], dtype=self.dtype)
        self._data = data
        self._chunk: m.DeviceBatch | None = None
        evaluated = [evaluation_batch(s.task, s.train.seed, s.train.draws) for s in specs]
        self._evaluation = m.to_device(self.task, [batch for batch, _ in evaluated], self.dtype)
        self._rows = evaluated[0][1]

    def load(self, chunk_index: int) -> None:
        """Load the batches of a chunk."""
        parts = [self._data.chunk(s, chunk_index) for s in self.specs]
        if self._chunk is None or self.specs[0].train.batch:
            self._chunk = m.to_device(self.task, parts, self.dtype)

    def gradients(self, position: int) -> None:
        """Write the gradients at one batch of the chunk into the flat gradient buffer."""
        assert self._chunk is not None
        chunk = self._chunk
        if self.specs[0].train.batch:
            chunk = m.DeviceBatch(chunk.rows[position], chunk.context[position], chunk.answer[position])
        computed = m.gradients(self.model, self.task, self.params, chunk, self.product_decay)
        for name, value in computed.items():
            self.grads[name].copy_(value)

    def measure(self, step: int, with_norms: bool) -> list[Record]:
        """One record per run. Raises ToyError for a loss that is not finite."""
        with torch.no_grad():
            f = m.logits(self.model, self.task, self.params, self._evaluation)
            right = self._evaluation.answer
            nll = m.question_losses(self.model, f, right).double()
            fault = f"lr = {self.specs[0].train.lr}: the loss is no longer finite at step {step}; use a smaller rate"
            if step == 0:
                scale = max(s.train.init_scale for s in self.specs)
                fault = f"init_scale = {scale}: the loss is not finite at the start; use a smaller scale"
            require(bool(nll.isfinite().all()), fault)
            hits = (f.argmax(dim=2) == right[..., 0]).double()
        w_ov = self.w_ov() if with_norms else None
        return [
            Record(
                step=step,
                loss={name: float(nll[run, rows].mean()) for name, rows in self._rows.items()},
                accuracy={name: float(hits[run, rows].mean()) for name, rows in self._rows.items()},
                margins=self._margins(f[run].numpy(), right[run, :, 0].numpy()),
                norms=norms(w_ov[run]) if w_ov is not None else None,
            )
            for run in range(len(self.specs))
        ]

    def _margins(self, f: np.ndarray, right: np.ndarray) -> Margins:
        held = self._rows[TEST_ENTAILMENT]
        answers = range(self.task.first_answer, self.task.vocab)
        cs = range(self.task.first_answer + self.task.n_pairs, self.task.vocab)
        return margins(
            train=answer_margin(f[: held.start], right[: held.start], answers),
            held_out=answer_margin(f[held], right[held], cs),
        )

    def w_ov(self) -> np.ndarray:
        """W_OV of every run, [R, d, n_inputs]."""
        with torch.no_grad():
            return m.table(self.model, self.params).transpose(1, 2).numpy().copy()

    def effect(self) -> np.ndarray:
        """What each token adds to the logits, [R, d, n_inputs]."""
        with torch.no_grad():
            weight = m.attention_factor(self.model, self.task, self.params)
        return self.w_ov() * weight[:, None, :].numpy()


class _Data:
    """Training batches, drawn once for all runs with the same task, batch size and seed."""

    def __init__(self) -> None:
        self._streams: dict[tuple[TaskSpec, int, int], Iterator[Batch]] = {}
        self._current: dict[tuple[TaskSpec, int, int], tuple[int, Batch]] = {}

    def chunk(self, spec: RunSpec, index: int) -> Batch:
        if not spec.train.batch:
            return full_batch(spec.task)
        key = (spec.task, spec.train.batch, spec.train.seed)
        if key not in self._streams:
            self._streams[key] = batches(spec.task, spec.train.batch, spec.train.seed, CHUNK)
        if key not in self._current or self._current[key][0] != index:
            self._current[key] = (index, next(self._streams[key]))
        return self._current[key][1]


class _Optimizer:
    """Updates the flat buffer. `shrink` holds 1 - lr * decay for each element."""

    def __init__(self, train: TrainSpec, flat: Tensor, grad: Tensor, shrink: Tensor) -> None:
        self._train, self._flat, self._grad, self._shrink = train, flat, grad, shrink
        self._mean = torch.zeros_like(flat)
        self._square = torch.zeros_like(flat)

    def step(self, number: int) -> None:
        self._flat.mul_(self._shrink)
        if self._train.optimizer != "adamw":
            self._flat.add_(self._grad, alpha=-self._train.lr)
            return
        self._mean.lerp_(self._grad, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(self._grad, self._grad, value=1 - BETA2)
        scale = self._square.sqrt().div_((1 - BETA2**number) ** 0.5).add_(EPSILON)
        self._flat.addcdiv_(self._mean, scale, value=-self._train.lr / (1 - BETA1**number))


def _shape_key(spec: RunSpec) -> tuple[float, ...]:
    model, factorized = spec.model, spec.model.param == "factorized"
    of_model = (model.trainable_kq, model.attention == "softmax", model.mlp_width, model.loss_floor)
    sizes = (factorized, model.d_h if factorized else 0, *of_model, spec.train.batch, spec.train.draws)
    return *astuple(spec.task), *sizes


def require_together(specs: list[RunSpec]) -> None:
    """Raise ToyError unless the runs can be trained together: common steps and rate, and a size that fits."""
    require(bool(specs), "runs = 0: nothing to train; give at least one run")
    for name in ("optimizer", "lr", "steps", "record_every", "norms_every", "precision"):
        found = {getattr(s.train, name) for s in specs}
        require(len(found) == 1, f"{name} = {sorted(found)}: runs trained together need one value")
    require(
        sum(s.numbers for s in specs) <= MOST_NUMBERS,
        f"runs = {len(specs)}: they would hold more than {MOST_NUMBERS:,} numbers at a time; use fewer or smaller",
    )


def _build(specs: list[RunSpec]) -> tuple[list[_Block], list[list[int]], _Optimizer]:
    order = sorted(range(len(specs)), key=lambda i: _shape_key(specs[i]))
    groups = [list(g) for _, g in groupby(order, key=lambda i: _shape_key(specs[i]))]
    values, shrink, layout = [], [], []
    for group in groups:
        runs = [specs[i] for i in group]
        start = [m.initial_parameters(r.model, r.task, r.train.init, r.train.init_scale, r.train.seed) for r in runs]
        factor = np.array([1 - r.train.lr * r.train.decay for r in runs])
        for name, shape in m.parameter_shapes(runs[0].model, runs[0].task).items():
            stacked = np.stack([s[name] for s in start])
            values.append(stacked.ravel())
            shrink.append(np.repeat(factor, int(np.prod(shape))))
            layout.append((name, stacked.shape))
    dtype = getattr(torch, specs[0].train.precision)
    flat = torch.from_numpy(np.concatenate(values)).to(dtype)
    grad = torch.zeros_like(flat)
    sizes = [int(np.prod(shape)) for _, shape in layout]
    views = [
        (name, p.view(shape), g.view(shape))
        for (name, shape), p, g in zip(layout, flat.split(sizes), grad.split(sizes), strict=True)
    ]
    blocks, cache = [], _Data()
    for group in groups:
        runs = [specs[i] for i in group]
        mine = [views.pop(0) for _ in m.parameter_shapes(runs[0].model, runs[0].task)]
        params = {name: p for name, p, _ in mine}
        blocks.append(_Block(runs, params, {name: g for name, _, g in mine}, cache))
    optimizer = _Optimizer(specs[0].train, flat, grad, torch.from_numpy(np.concatenate(shrink)).to(dtype))
    return blocks, groups, optimizer


def train_runs(specs: list[RunSpec], progress: Progress | None = None) -> list[RunResult]:
    """Train every run and return the results in the order given.

    The runs may differ in everything except optimizer, lr, steps, record_every, norms_every and precision.
    Raises ToyError for runs that cannot be trained together, and for a loss that stops being finite.
    """
    require_together(specs)
    with one_thread():
        return _train(specs, progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread: the products are too small to parallelize, and sums keep one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(specs: list[RunSpec], progress: Progress | None) -> list[RunResult]:
    blocks, groups, optimizer = _build(specs)
    common = specs[0].train
    records: list[list[Record]] = [[] for _ in specs]

    def record(step: int) -> None:
        last = step == common.steps
        with_norms = last or (common.norms_every > 0 and step % common.norms_every == 0)
        for block, group in zip(blocks, groups, strict=True):
            for i, measured in zip(group, block.measure(step, with_norms), strict=True):
                records[i].append(measured)
        if progress:
            progress(step, common.steps)

    record(0)
    for step in range(1, common.steps + 1):
        chunk, position = divmod(step - 1, CHUNK)
        for block in blocks:
            if position == 0:
                block.load(chunk)
            block.gradients(position)
        optimizer.step(step)
        if step % common.record_every == 0 or step == common.steps:
            record(step)
    results: dict[int, RunResult] = {}
    for block, group in zip(blocks, groups, strict=True):
        for i, w_ov, effect in zip(group, block.w_ov(), block.effect(), strict=True):
            results[i] = RunResult(specs[i], tuple(records[i]), w_ov, effect)
    return [results[i] for i in range(len(specs))]
