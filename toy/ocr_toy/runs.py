"""Runs: specifications, records, results."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ocr_toy.errors import require
from ocr_toy.model import Init, ModelSpec, parameter_shapes, require_init
from ocr_toy.statistics import Margins, Norms, contrast, crossing, subject_blocks
from ocr_toy.task import TEST_ENTAILMENT, TRAINED_SETS, TaskSpec, require_batch

Optimizer = Literal["adamw", "gd"]
Precision = Literal["float32", "float64"]

CHUNK = 100
"""Batches drawn at a time. It fixes the order of draws, so the meaning of a seed depends on it."""
THRESHOLD = 0.1
"""Loss in nats below which a question set counts as learned."""
OFFICIAL_SCALE = 128**-0.5
"""Standard deviation of the official code's Gaussian initialization, which its rank sweep uses."""
MOST_NUMBERS = 200_000_000
"""The most numbers that runs trained together may hold at a time: a few GB."""


@dataclass(frozen=True)
class TrainSpec:
    """How one run is trained; the defaults are the published run. Raises ToyError for bad values.

    optimizer: adamw or gd. decay is decoupled for both: it shrinks every parameter by lr * decay per step.
    product_decay adds product_decay / 2 ||W_OV||_F^2 to the loss. batch 0 is the full train set.
    record_every and norms_every are in steps; norms_every 0 measures norms only at the end. draws: noise
    draws per evaluated question.
    """

    optimizer: Optimizer = "adamw"
    lr: float = 5e-3
    decay: float = 0.03
    product_decay: float = 0.0
    init: Init = "gaussian"
    init_scale: float = 1e-4
    steps: int = 2000
    batch: int = 252
    seed: int = 0
    record_every: int = 50
    norms_every: int = 0
    draws: int = 4
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, value, kinds in (("optimizer", self.optimizer, Optimizer), ("precision", self.precision, Precision)):
            allowed = get_args(kinds)
            require(value in allowed, f"{name} = {value}: unknown; use one of {', '.join(allowed)}")
        require(0 < self.lr < float("inf"), f"lr = {self.lr}: not a rate; use lr > 0")
        require(self.decay >= 0, f"decay = {self.decay}: use decay >= 0")
        require(
            self.lr * self.decay < 1,
            f"lr = {self.lr} with decay = {self.decay}: a step would reverse the weights; use lr * decay < 1",
        )
        require(0 <= self.product_decay < float("inf"), f"product_decay = {self.product_decay}: use a number >= 0")
        require(0 <= self.init_scale < float("inf"), f"init_scale = {self.init_scale}: use a number >= 0")
        require(self.steps >= 1, f"steps = {self.steps}: nothing to train; use steps >= 1")
        require(self.batch >= 0, f"batch = {self.batch}: use batch >= 3, or 0 for the full train set")
        require(self.seed >= 0, f"seed = {self.seed}: cannot be negative; use seed >= 0")
        require(self.record_every >= 1, f"record_every = {self.record_every}: use record_every >= 1")
        require(self.norms_every >= 0, f"norms_every = {self.norms_every}: use norms_every >= 0")


@dataclass(frozen=True)
class RunSpec:
    """One run: task, model and training. Raises ToyError if they do not fit together."""

    task: TaskSpec = field(default_factory=TaskSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)

    def __post_init__(self) -> None:
        task, model = self.task, self.model
        sizes_and_usual = {
            "n": (task.n_pairs, 20),
            "m_train": (task.m_train, 1),
            "m_test": (task.m_test, 3),
            "seq_len": (task.seq_len, 16),
            "d_h": (model.d_h if model.param == "factorized" else 0, 128),
            "mlp": (model.mlp_width, 128),
            "batch": (self.train.batch, 252),
        }
        name, (size, _) = max(sizes_and_usual.items(), key=lambda item: item[1][0] // item[1][1])
        require(
            self.numbers <= MOST_NUMBERS,
            f"{name} = {size}: the run would hold more than {MOST_NUMBERS:,} numbers at a time; use a smaller {name}",
        )
        require_batch(task, self.train.batch)
        require_init(model, self.train.init)
        moves = model.param == "merged" and not (model.trainable_kq and model.attention == "linear")
        require(self.train.init_scale > 0 or moves, "init_scale = 0: a saddle that no step leaves; use init_scale > 0")

    @property
    def numbers(self) -> int:
        """Numbers that the run holds at a time, up to a small factor: weights, drawn batches and logits."""
        task, model = self.task, self.model
        weights = sum(math.prod(shape) for shape in parameter_shapes(model, task).values())
        drawn = CHUNK * self.train.batch * (task.seq_len + task.n_noise)
        rows = max(self.train.batch, 2 * task.n_subjects * self.train.draws)
        return weights + drawn + task.n_inputs * task.vocab + rows * (task.vocab + task.seq_len + model.mlp_width)


@dataclass(frozen=True)
class Record:
    """One measurement: mean cross-entropy (nats) and accuracy per question set; margins; norms."""

    step: int
    loss: dict[str, float]
    accuracy: dict[str, float]
    margins: Margins
    norms: Norms | None


@dataclass(frozen=True)
class RunResult:
    """A finished run: its records from step 0 to the last, and what it learned.

    w_ov: W_OV at the end, [d, n_inputs]. effect: the attended W_OV, every column times w_KQ of its token (linear)
    or exp(w_KQ) up to a common factor (softmax). With linear attention and no MLP that is what a token adds to the
    logits; the softmax's denominator, which differs between sequences, and an MLP are ignored. A trained w_KQ
    may be negative for some tokens, so the signs of columns of W_OV by themselves are not comparable.
    """

    spec: RunSpec
    records: tuple[Record, ...]
    w_ov: np.ndarray
    effect: np.ndarray

    @property
    def last(self) -> Record:
        """The record of the last step."""
        return self.records[-1]

    @property
    def transfer(self) -> float:
        """Contrast of the attended W_OV's c block for test subjects, divided by that for train subjects; 0 is none.

        Raises ToyError without train subjects.
        """
        blocks = subject_blocks(self.spec.task, self.effect)
        require("train_c" in blocks, "m_train = 0: transfer has nothing to compare with; use m_train >= 1")
        return contrast(blocks["test_c"]) / contrast(blocks["train_c"])

    def losses(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and losses of one question set. Raises ToyError if the task has no such set."""
        require(name in self.last.loss, f"question set = {name}: not part of this task; use m_train >= 1")
        return [r.step for r in self.records], [r.loss[name] for r in self.records]

    def learned_steps(self, threshold: float) -> tuple[int | None, int | None]:
        """First recorded steps at which every trained set's loss, and the test loss, are below `threshold`.

        None if one never is. Their difference is the delay of generalization, to within `record_every` steps.
        """
        steps, test = self.losses(TEST_ENTAILMENT)
        names = [name for name in TRAINED_SETS if name in self.last.loss]
        worst = [max(record.loss[name] for name in names) for record in self.records]
        return crossing(steps, worst, threshold), crossing(steps, test, threshold)
