"""Delayed generalization that the lemma predicts: lazy training first, the nuclear norm later.

Factorized, attention fixed, with a balanced start of zero output (after Lyu et al. 2023, arXiv 2311.18817)

    W_O = alpha [A, A] / sqrt(2),  W_V = alpha [B, -B] / sqrt(2),   A, B Gaussian / sqrt(h),

full-batch gradient descent with L2 decay mu on both. Early, W_OV moves by W_O W_O^T G + G W_V W_V^T, which is nearly
alpha^2 G: merged gradient descent, whose limit, the Frobenius optimum, transfers nothing. Late, decay has removed the
initialization, and the minimum is that of `mitigation.decayed`, which transfers. Decay shrinks it by e^(-eta mu t), so
the time of generalization is eta mu t = log(alpha) + c: slope 1 in log(alpha), no generalization without decay, and no
delay from a small start. Derived here for this task; the law is that of the works cited in the README.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from ocr_toy import convex, theory
from ocr_toy.report import Check, Report, Say, listed, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import TEST_ENTAILMENT, Matrix, TaskSpec, noise_free, question_sets, stream, trained_questions

check = partial(Check, "grokking")
TASK, WIDTH = noise_free(5, 1, 3), 32
ALPHAS, DECAYS, SMALL = (2.0, 4.0, 8.0), (0.01, 0.003), 0.1
CONTROL_STEPS, MOST_STEPS, LEARNED = 8000, 20_000, 0.9
EARLY, SLOPE_NEAR = 0.05, 0.15
"""Tolerances: of no transfer, as a mean over seeds, when the train set is fitted; and of slope 1."""


@dataclass(frozen=True)
class Grok:
    """One run: the steps at which train accuracy reaches 1 (`fitted`) and test accuracy LEARNED (`learned`).

    early_transfer: transfer at `fitted`. time: eta mu times `learned`. None for what does not happen.
    """

    alpha: float
    decay: float
    seed: int
    rate: float
    fitted: int | None
    learned: int | None
    early_transfer: float | None
    time: float | None


def _accuracy(task: TaskSpec, name: str | None, w: Matrix) -> float:
    questions = trained_questions(task) if name is None else question_sets(task)[name]
    f = convex.features(task, questions) @ w.T
    return float((f.argmax(axis=1) == convex.right_answers(task, questions)).mean())


def grok(alpha: float, decay: float, seed: int, steps: int) -> Grok:
    """Train until the test set is learned, for at most `steps`."""
    rng, half = stream(seed, "init"), WIDTH // 2
    rows, columns = 2 * TASK.n_pairs, TASK.n_subjects + 2
    a, b = (rng.standard_normal((size, half)) / math.sqrt(WIDTH) for size in (rows, columns))
    w_o, w_v = alpha * np.hstack([a, a]) / math.sqrt(2), alpha * np.hstack([b, -b]) / math.sqrt(2)
    of = convex.problem(TASK)
    row, right, rate = np.arange(len(of.phi)), of.right, min(1.0, 8 / alpha**2)
    fitted = early = None
    for step in range(steps + 1):
        w = w_o @ w_v.T
        if fitted is None and _accuracy(TASK, None, w) == 1:
            fitted, early = step, theory.symmetrize(TASK, w).transfer
        if _accuracy(TASK, TEST_ENTAILMENT, w) >= LEARNED:
            return Grok(alpha, decay, seed, rate, fitted, step, early, rate * decay * step)
        f = of.phi @ w.T
        p = np.exp(f - f.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[row, right] -= 1
        slope = p.T @ of.phi / len(row)
        w_o, w_v = w_o - rate * (slope @ w_v + decay * w_o), w_v - rate * (slope.T @ w_o + decay * w_v)
    return Grok(alpha, decay, seed, rate, fitted, None, early, None)


def _steps(runs: Sequence[Grok]) -> tuple[str, str]:
    return "/".join(str(run.fitted) for run in runs), "/".join(str(run.learned) for run in runs)


def report(seeds: Sequence[int], say: Say) -> Report:
    """The dependence on alpha for two decays, with controls."""
    require_seeds(seeds, least=1)
    say("grokking")
    checks: list[Check] = []
    rows: list[list[str]] = []
    runs: list[Grok] = []
    for decay in DECAYS:
        times = []
        for alpha in ALPHAS:
            found = [grok(alpha, decay, seed, MOST_STEPS) for seed in seeds]
            runs += found
            times.append(float(np.mean([g.time if g.time is not None else math.nan for g in found])))
            early = [g.early_transfer if g.early_transfer is not None else math.nan for g in found]
            mean = float(np.mean(early))
            name = f"decay {decay:g}, alpha {alpha:g}"
            checks.append(check(f"{name}: mean transfer when the train set is fitted", 0.0, mean, EARLY))
            rows.append([f"{decay:g}", f"{alpha:g}", *_steps(found), f"{times[-1]:.2f}", listed(early, 3)])
        slope = float(np.polyfit(np.log(ALPHAS), times, 1)[0])
        rows.append([f"{decay:g}", "", "", "slope in log alpha:", f"{slope:.3f}", ""])
        checks.append(check(f"decay {decay:g}: slope of eta mu t in log alpha", 1.0, slope, SLOPE_NEAR))
    control = [grok(4.0, 0.0, seed, CONTROL_STEPS) for seed in seeds]
    small = [grok(SMALL, DECAYS[1], seed, MOST_STEPS) for seed in seeds]
    runs += [*control, *small]
    ever = sum(g.learned is not None for g in control)
    checks.append(check(f"no decay, alpha 4: runs that learn in {CONTROL_STEPS} steps", 0.0, ever, 0.0))
    gaps = [g.learned / max(1, g.fitted) for g in small if g.learned is not None and g.fitted is not None]
    gap = max(gaps) if len(gaps) == len(small) else math.inf
    checks.append(check(f"alpha {SMALL:g}: test over train steps", 2.0, gap, 0.0, "<="))
    for name, found in (("0", control), (f"{DECAYS[1]:g}", small)):
        rows.append([name, f"{found[0].alpha:g}", *_steps(found), "", ""])
    return Report(
        name="grokking",
        source="Lyu et al. 2023 (arXiv 2311.18817); the prediction for this task is derived here",
        checks=checks,
        lines=table(("decay", "alpha", "train fitted", "test learned", "eta mu t", "transfer when fitted"), rows),
        data={"runs": [asdict(run) for run in runs]},
    )
