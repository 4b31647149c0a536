"""Gradient descent of the fixed-attention model, run towards its limit direction.

The limits of Theorems 1 and 2 are directions reached as the loss goes to zero, where plain rates stall
logarithmically. Only three things are changed; how close to the limit descent then ends depends on the scale of the
initialization:

1. Loss-scaled rate: a step follows -grad L / L = -grad log L. log L and its gradient are computed from
   log-probabilities, so they stay exact when L underflows.
2. Backtracking: the rate grows by half after a step that lowers log L enough, and is halved until it does.
3. Normalization: for the first `hold_steps` steps, weights whose train margin exceeds `hold_margin` are scaled
   back to it. f is homogeneous in the weights, so this does not change the direction; it lets the direction move
   as it would while the margin grows by many powers of e (`log_growth`). Then `final_steps` plain steps increase
   the margin about tenfold. Held indefinitely, the direction ends at the smallest norm with that loss
   (`convex.least_norm` with a log_loss), because among weights of equal loss descent moves towards the smallest.

The softmax is over the answers only. Over the whole vocabulary the optimum is the same: with zero rows for all
other tokens it already has a margin of 1.5 - 1/n >= 1 against them.
"""

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from ocr_toy.convex import Problem, problem
from ocr_toy.errors import require
from ocr_toy.model import Param
from ocr_toy.task import Matrix, TaskSpec, stream

NEGLIGIBLE = 1e-14
"""Backtracking stops if the predicted decrease of log L is below this, where rounding dominates."""


@dataclass(frozen=True)
class DescentSpec:
    """How descent is run: Gaussian init with standard deviation init_scale, width d_h (factorized).

    depth: how many matrices the factorized model multiplies, 2 in the paper. trained_kq: w_KQ is one more factor, a
    weight per column. armijo: the share of the decrease predicted by the gradient that a step must achieve; from 0.5 on
    the rate stays low enough that steep directions do not oscillate.
    """

    param: Param = "factorized"
    d_h: int = 16
    init_scale: float = 0.1
    hold_margin: float = 100.0
    hold_steps: int = 2500
    final_steps: int = 1500
    seed: int = 0
    depth: int = 2
    trained_kq: bool = False
    armijo: float = 0.25


@dataclass(frozen=True)
class Descent:
    """Where the descent ended: W divided by its train margin, [rows, columns], and how it got there.

    log_growth: log of the final train margin times all factors by which it was scaled back. log_loss: log of the summed
    loss at the end. squared_parts: the squared length of all trained parameters.
    """

    w_ov: Matrix
    train_margin: float
    log_growth: float
    log_loss: float
    squared_parts: float


def usual_descent(param: Param, task: TaskSpec, seed: int) -> DescentSpec:
    """Descent as used in checks and figures; the merged direction converges quickly and needs no holding.

    W_O and W_V are wide enough for every W_OV, as Theorem 1 requires.
    """
    usual = DescentSpec(param=param, d_h=max(16, 2 * task.n_pairs), seed=seed)
    return usual if param == "factorized" else replace(usual, hold_steps=0)


def log_loss(f: Matrix, right: NDArray[np.int64], sizes: Matrix | None = None) -> tuple[float, Matrix]:
    """log of the mean cross-entropy L of logits f [Q, rows], and d log L / d f, without underflow.

    sizes [Q]: how many questions each stands for; 1 by default.
    """
    share = np.full(len(f), 1 / len(f)) if sizes is None else sizes / sizes.sum()
    row = np.arange(len(f))
    gap = f - f[row, right][:, None]
    gap[row, right] = -np.inf
    top = gap.max(axis=1)
    wrong = top + np.log(np.exp(gap - top[:, None]).sum(axis=1))  # log-odds against the answer
    log_nll = np.where(wrong < -30.0, wrong, np.log(np.logaddexp(0.0, np.maximum(wrong, -30.0))))
    peak = log_nll.max()
    log_l = float(peak + np.log((share * np.exp(log_nll - peak)).sum()))
    log_p = gap - np.logaddexp(0.0, wrong)[:, None]  # log-probabilities of the wrong answers
    slope = np.exp(log_p - log_l + np.log(share)[:, None])
    slope[row, right] = -slope.sum(axis=1)
    return log_l, slope


class _Weights:
    """W as a product of its trained parts; it is homogeneous of degree `degree` in them."""

    def __init__(self, spec: DescentSpec, rows: int, columns: int) -> None:
        inner = [(spec.d_h, spec.d_h)] * (spec.depth - 2)
        factors = [(rows, spec.d_h), *inner, (columns, spec.d_h)]
        self._merged, self._trained_kq = spec.param == "merged", spec.trained_kq
        self._shapes: list[tuple[int, ...]] = [(rows, columns)] if self._merged else [*factors]
        self._shapes += [(columns,)] if spec.trained_kq else []
        self.degree = len(self._shapes)

    def start(self, rng: np.random.Generator, scale: float) -> list[Matrix]:
        return [scale * rng.standard_normal(shape) for shape in self._shapes]

    def _chain(self, parts: list[Matrix]) -> list[Matrix]:
        """The matrices whose product is W_OV; the last factor is stored as W_V, [columns, d_h]."""
        matrices = parts[:-1] if self._trained_kq else parts
        return matrices if self._merged else [*matrices[:-1], matrices[-1].T]

    def product(self, parts: list[Matrix]) -> Matrix:
        w_ov = reduce(np.matmul, self._chain(parts))
        return w_ov * parts[-1] if self._trained_kq else w_ov

    def gradients(self, parts: list[Matrix], slope: Matrix) -> list[Matrix]:
        """The gradient with respect to every part, given that with respect to W."""
        chain, grads = self._chain(parts), []
        by_w_ov = slope * parts[-1] if self._trained_kq else slope
        for i in range(len(chain)):
            by_part = by_w_ov
            if chain[:i]:
                by_part = reduce(np.matmul, chain[:i]).T @ by_part
            if chain[i + 1 :]:
                by_part = by_part @ reduce(np.matmul, chain[i + 1 :]).T
            grads.append(by_part)
        if not self._merged:
            grads[-1] = grads[-1].T
        if self._trained_kq:
            grads.append((slope * reduce(np.matmul, chain)).sum(axis=0))
        return grads


def descend(task: TaskSpec, spec: DescentSpec) -> Descent:
    """Run gradient descent on the train set for the steps of `spec`.

    Raises ToyError if the model does not fit the train set, because it then has no limit direction.
    """
    return descend_on(problem(task), spec, f"n, m_train, m_test = {task.n_pairs}, {task.m_train}, {task.m_test}")


def descend_on(of: Problem, spec: DescentSpec, name: str) -> Descent:
    """Run gradient descent on a margin problem with one target per question; `name` is used in the error message."""
    right = of.right

    def evaluate(w: Matrix) -> tuple[float, Matrix, float]:
        """log L, its gradient with respect to W, and the train margin."""
        log_l, slope = log_loss(of.phi @ w.T, right, of.sizes)
        return log_l, slope.T @ of.phi, of.margin(w)

    weights = _Weights(spec, of.targets.shape[1], of.phi.shape[1])
    point = weights.start(stream(spec.seed, "init"), spec.init_scale)
    log_l, slope, margin = evaluate(weights.product(point))
    rate, scaled_back = 1.0, 0.0
    for step in range(spec.hold_steps + spec.final_steps):
        if step < spec.hold_steps and margin > spec.hold_margin:
            factor = margin / spec.hold_margin
            scaled_back += float(np.log(factor))
            point = [p / factor ** (1 / weights.degree) for p in point]
            log_l, slope, margin = evaluate(weights.product(point))
        grads = weights.gradients(point, slope)
        squared = sum(float((g * g).sum()) for g in grads)
        while True:
            moved = [p - rate * g for p, g in zip(point, grads, strict=True)]
            new_log_l, new_slope, new_margin = evaluate(weights.product(moved))
            if new_log_l <= log_l - spec.armijo * rate * squared or rate * squared < NEGLIGIBLE:
                break
            rate *= 0.5
        point, log_l, slope, margin = moved, new_log_l, new_slope, new_margin
        rate *= 1.5
    require(
        margin > 0,
        f"{name}: train set not fitted in {spec.hold_steps + spec.final_steps} steps at width {spec.d_h}; "
        "use a smaller task or more of these",
    )
    return Descent(
        w_ov=weights.product(point) / margin,
        train_margin=margin,
        log_growth=scaled_back + float(np.log(margin)),
        log_loss=log_l + float(np.log(of.sizes.sum())),
        squared_parts=sum(float((p * p).sum()) for p in point),
    )
