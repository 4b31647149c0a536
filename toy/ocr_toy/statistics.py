"""Measurements on a model: norms and blocks of W_OV, margins, threshold crossings, intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_toy.errors import require
from ocr_toy.task import TaskSpec, subject_pairs

Matrix = NDArray[np.floating]

# Two-sided 95 % points of Student's t, by degrees of freedom 1 to 9.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Norms:
    """Size and shape of W_OV; effective_rank is exp of the entropy of the singular values' shares, 0 for W_OV = 0."""

    nuclear: float
    frobenius: float
    effective_rank: float


@dataclass(frozen=True)
class Margins:
    """Smallest logit gaps.

    train: over trained questions, right answer minus best other answer. held_out: over test entailments,
    right answer minus best other c. normalized: held_out / train; None unless train > 0.
    """

    train: float
    held_out: float
    normalized: float | None


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % Student-t interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """The mean and the interval, three digits each."""
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def singular_values(w_ov: Matrix) -> Matrix:
    """Singular values of a matrix, descending."""
    return torch.linalg.svdvals(torch.from_numpy(w_ov)).numpy()


def norms(w_ov: Matrix) -> Norms:
    """Nuclear norm, Frobenius norm and effective rank."""
    values = singular_values(w_ov).astype(np.float64)
    total = float(values.sum())
    shares = values[values > 0] / total
    return Norms(
        nuclear=total,
        frobenius=float(np.sqrt((values**2).sum())),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())) if total else 0.0,
    )


def answer_margin(logits: Matrix, right: NDArray[np.int64], among: Sequence[int]) -> float:
    """Smallest gap between the right answer's logit and the best other one of `among`; logits [Q, d]."""
    candidates = logits[:, among].copy()
    position = np.searchsorted(np.asarray(among), right)
    row = np.arange(len(right))
    picked = candidates[row, position]
    candidates[row, position] = -np.inf
    return float((picked - candidates.max(axis=1)).min())


def margins(train: float, held_out: float) -> Margins:
    """Pair the two margins with their ratio."""
    return Margins(train=train, held_out=held_out, normalized=held_out / train if train > 0 else None)


def subject_blocks(task: TaskSpec, effect: Matrix) -> dict[str, Matrix]:
    """The four subject-to-answer blocks of the attended W_OV, [n, n] each, averaged over a pair's subjects.

    effect: [d, n_inputs], the effect of a run. Entry (i, j) of a block is what subjects of pair j add to the logit of
    answer i. Keys: train_b, train_c, test_b, test_c; the train blocks exist if m_train > 0.
    """
    answers = {"b": task.first_answer, "c": task.first_answer + task.n_pairs}
    pair = subject_pairs(task)
    split = np.arange(task.n_subjects) < task.n_train_subjects
    blocks = {}
    for name, members in (("train", split), ("test", ~split)):
        for answer, first in answers.items():
            rows = effect[first : first + task.n_pairs, : task.n_subjects]
            if members.any():
                columns = [rows[:, members & (pair == i)].mean(axis=1) for i in range(task.n_pairs)]
                blocks[f"{name}_{answer}"] = np.stack(columns, axis=1)
    return blocks


def contrast(block: Matrix) -> float:
    """Mean diagonal minus mean off-diagonal entry of a block: how much subjects prefer their own answer."""
    own = np.eye(len(block), dtype=bool)
    return float(block[own].mean() - block[~own].mean())


def crossing(steps: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    """First recorded step at which `values` is below `threshold`; None if it never is."""
    return next((step for step, value in zip(steps, values, strict=True) if value < threshold), None)


def require_seeds(seeds: Sequence[int], least: int) -> None:
    """Raise ToyError unless there are `least` to 10 different seeds, none negative."""
    most = len(_T_95) + 1
    require(min(seeds, default=0) >= 0, f"seed = {min(seeds, default=0)}: cannot be negative; use seed >= 0")
    require(least <= len(seeds) <= most, f"seeds = {len(seeds)}: no interval; use {least} to {most} seeds")
    require(len(set(seeds)) == len(seeds), "seeds: one is given twice; intervals need different seeds")


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval over 2 to 10 seeds. Raises ToyError outside that range."""
    count = len(values)
    require(2 <= count <= len(_T_95) + 1, f"seeds = {count}: no interval; use 2 to {len(_T_95) + 1} seeds")
    mean = math.fsum(values) / count
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half = _T_95[count - 2] * spread / math.sqrt(count)
    return Interval(mean=mean, low=mean - half, high=mean + half, count=count)
