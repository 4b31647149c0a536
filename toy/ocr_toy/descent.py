"""Gradient descent of the fixed-attention model run towards its limit direction.

The limits of Theorems 1 and 2 are directions reached as the loss goes to zero, where plain rates stall
logarithmically. Three things are done about it, and nothing else; how near the limit the descent then ends
depends on the scale of the initialization:

1. Loss-scaled rate: a step follows -grad L / L = -grad log L. log L and its gradient are computed from
   log-probabilities, so they stay exact where L underflows.
2. Backtracking: the rate grows by half after a step that lowers log L enough and is halved until it does.
3. Normalization: for the first `hold_steps` steps, weights whose train margin exceeds `hold_margin` are
   scaled back to it. f is homogeneous in the weights, so this leaves the direction as it is; it lets the
   direction move as it would while the margin grows by many powers of e (`log_growth`). Then `final_steps`
   plain steps sharpen the margin about tenfold.

The softmax runs over the answers only. Over the whole vocabulary the optimum is the same: with zero rows for
all other tokens it already keeps a margin of 1.5 - 1/n >= 1 against them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ocr_toy.errors import require
from ocr_toy.model import Param
from ocr_toy.task import TaskSpec, stream, trained_questions
from ocr_toy.theory import features, right_answers

Matrix = NDArray[np.float64]
ARMIJO = 0.25
"""Share of the decrease promised by the gradient that a step must achieve."""
NEGLIGIBLE = 1e-14
"""A promised decrease of log L below which rounding decides and backtracking stops."""


@dataclass(frozen=True)
class DescentSpec:
    """How the descent is run: Gaussian init of standard deviation init_scale, width d_h (factorized).

    Raises ToyError for bad values.
    """

    param: Param = "factorized"
    d_h: int = 16
    init_scale: float = 0.1
    hold_margin: float = 100.0
    hold_steps: int = 2500
    final_steps: int = 1500
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field once, here."""
        require(self.d_h >= 1, f"d_h = {self.d_h}: W_O and W_V need a width; use d_h >= 1")
        require(self.init_scale > 0, f"init_scale = {self.init_scale}: zero is a saddle; use init_scale > 0")
        require(self.hold_margin > 0, f"hold_margin = {self.hold_margin}: use hold_margin > 0")
        require(self.hold_steps >= 0, f"hold_steps = {self.hold_steps}: use hold_steps >= 0")
        require(self.final_steps >= 1, f"final_steps = {self.final_steps}: use final_steps >= 1")
        require(self.seed >= 0, f"seed = {self.seed}: cannot be negative; use seed >= 0")


@dataclass(frozen=True)
class Descent:
    """Where the descent ended: W_OV divided by its train margin, [2n, n_subjects + 2], and how it got there.

    log_growth: log of the final train margin times every factor that the margin was scaled back by.
    """

    w_ov: Matrix
    train_margin: float
    log_growth: float


def usual_descent(param: Param, task: TaskSpec, seed: int) -> DescentSpec:
    """How the checks and figures run it: the merged direction is reached at once and needs no holding.

    W_O and W_V are wide enough for every W_OV, as Theorem 1 asks.
    """
    usual = DescentSpec(param=param, d_h=max(16, 2 * task.n_pairs), seed=seed)
    return usual if param == "factorized" else replace(usual, hold_steps=0)


def log_loss(f: Matrix, right: NDArray[np.int64]) -> tuple[float, Matrix]:
    """log of the mean cross-entropy L of logits f [Q, 2n], and d log L / d f, without underflow."""
    row = np.arange(len(f))
    gap = f - f[row, right][:, None]
    gap[row, right] = -np.inf
    top = gap.max(axis=1)
    wrong = top + np.log(np.exp(gap - top[:, None]).sum(axis=1))  # log of the odds against the answer
    log_nll = np.where(wrong < -30.0, wrong, np.log(np.logaddexp(0.0, np.maximum(wrong, -30.0))))
    peak = log_nll.max()
    shares = np.exp(log_nll - peak)
    log_l = float(peak + np.log(shares.mean()))
    log_p = gap - np.logaddexp(0.0, wrong)[:, None]  # log-probabilities of the wrong answers
    slope = np.exp(log_p - log_l - np.log(len(f)))
    slope[row, right] = -slope.sum(axis=1)
    return log_l, slope


def _evaluate(task: TaskSpec) -> Callable[[Matrix], tuple[float, Matrix, float]]:
    questions = trained_questions(task)
    phi, right = features(task, questions), right_answers(task, questions)
    row = np.arange(len(questions))

    def evaluate(w_ov: Matrix) -> tuple[float, Matrix, float]:
        """log L, its gradient by W_OV, and the train margin."""
        f = phi @ w_ov.T
        log_l, slope = log_loss(f, right)
        own = f[row, right]
        f[row, right] = -np.inf
        return log_l, slope.T @ phi, float((own - f.max(axis=1)).min())

    return evaluate


def descend(task: TaskSpec, spec: DescentSpec) -> Descent:
    """Run gradient descent on the train set for the steps of `spec`.

    Raises ToyError if the model does not fit the train set, for it has no direction then.
    """
    evaluate = _evaluate(task)
    rng = stream(spec.seed, "init")
    rows, columns = 2 * task.n_pairs, task.n_subjects + 2
    factorized = spec.param == "factorized"
    shapes = [(rows, spec.d_h), (columns, spec.d_h)] if factorized else [(rows, columns)]
    point = [spec.init_scale * rng.standard_normal(shape) for shape in shapes]

    def product(parts: list[Matrix]) -> Matrix:
        return parts[0] @ parts[1].T if factorized else parts[0]

    log_l, slope, margin = evaluate(product(point))
    rate, scaled_back = 1.0, 0.0
    for step in range(spec.hold_steps + spec.final_steps):
        if step < spec.hold_steps and margin > spec.hold_margin:
            factor = margin / spec.hold_margin
            scaled_back += float(np.log(factor))
            point = [p / factor ** (1 / len(point)) for p in point]
            log_l, slope, margin = evaluate(product(point))
        grads = [slope @ point[1], slope.T @ point[0]] if factorized else [slope]
        squared = sum(float((g * g).sum()) for g in grads)
        while True:
            moved = [p - rate * g for p, g in zip(point, grads, strict=True)]
            new_log_l, new_slope, new_margin = evaluate(product(moved))
            if new_log_l <= log_l - ARMIJO * rate * squared or rate * squared < NEGLIGIBLE:
                break
            rate *= 0.5
        point, log_l, slope, margin = moved, new_log_l, new_slope, new_margin
        rate *= 1.5
    require(
        margin > 0,
        f"n, m_train, m_test = {task.n_pairs}, {task.m_train}, {task.m_test}: train set not fitted in "
        f"{spec.hold_steps + spec.final_steps} steps at width {spec.d_h}; use a smaller task or more of these",
    )
    return Descent(product(point) / margin, margin, scaled_back + float(np.log(margin)))
