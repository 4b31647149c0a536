"""Linear attention that learns regression in context: plateaus by parametrization (Zhang et al., arXiv 2501.16265).

N examples x_n ~ N(0, Lambda), y_n = w . x_n with w ~ N(0, I), and a query x_q; beta = mean of y_n x_n. It predicts
beta^T M x_q with

    merged      M = sum_i v_i U_i                       key and query of a head as one matrix
    separate    M = sum_i v_i sum_{r <= R} k_ir q_ir^T  key and query of rank R

and its mean squared error over all data and tasks is, with S = Lambda^2 + (Lambda^2 + tr(Lambda) Lambda) / N,

    L(M) = tr Lambda - 2 tr(Lambda^2 M) + tr(M^T S M Lambda).

From a small start the merged model learns all directions in one drop; the separate one stays at the levels

    L(M_m) = tr Lambda - sum_{d <= m} lambda_d / (1 + (1 + tr Lambda / lambda_d) / N),   m = 0, 1, .., D,

in order of the eigenvalues. Gradient descent on L / 2, as in the paper's time scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_toy.report import Check, Report, Say, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import stream
from ocr_toy.theory import Matrix

EXAMPLES = 31
EIGENVALUES = (0.4, 0.3, 0.2, 0.1)
SEPARATE_STEPS, MERGED_STEPS, WHITE_STEPS = 40_000, 3000, 4000
STAY = 0.03
"""How near to a level, as a share of the first, counts as staying there."""


def levels(eigenvalues: Sequence[float], examples: int = EXAMPLES) -> list[float]:
    """L(M_m) for m = 0 to D, the loss with the m largest eigendirections learned."""
    total = sum(eigenvalues)
    gains = [value / (1 + (1 + total / value) / examples) for value in sorted(eigenvalues, reverse=True)]
    return [total - math.fsum(gains[:m]) for m in range(len(gains) + 1)]


@dataclass(frozen=True)
class Population:
    """The loss without data, for a diagonal Lambda."""

    eigenvalues: tuple[float, ...]
    examples: int = EXAMPLES

    @property
    def s(self) -> Matrix:
        """The diagonal of S."""
        values = np.array(self.eigenvalues)
        return values**2 + (values**2 + values.sum() * values) / self.examples

    def loss(self, m: Matrix) -> float:
        """L(M)."""
        values = np.array(self.eigenvalues)
        fit = float((values**2 * np.diag(m)).sum())
        return float(values.sum() - 2 * fit + (self.s[:, None] * m * m * values).sum())

    def slope(self, m: Matrix) -> Matrix:
        """The gradient of L / 2 by M: -Lambda^2 + S M Lambda."""
        values = np.array(self.eigenvalues)
        return self.s[:, None] * m * values - np.diag(values**2)


def train_separate(of: Population, heads: int, rank: int, scale: float, rate: float, steps: int, seed: int) -> Matrix:
    """Losses of every step with keys and queries apart, [steps + 1]."""
    rng, size = stream(seed, "init"), len(of.eigenvalues)
    v = scale * rng.standard_normal(heads)
    k, q = (scale * rng.standard_normal((heads, rank, size)) for _ in "kq")
    losses = np.empty(steps + 1)
    for step in range(steps + 1):
        m = (v[:, None, None] * k).reshape(-1, size).T @ q.reshape(-1, size)
        losses[step] = of.loss(m)
        g = of.slope(m)
        kg = k @ g
        v, k, q = (
            v - rate * (kg * q).sum(axis=(1, 2)),
            k - rate * v[:, None, None] * (q @ g.T),
            q - rate * v[:, None, None] * kg,
        )
    return losses


def train_merged(of: Population, v: Matrix, u: Matrix, rate: float, steps: int) -> tuple[Matrix, Matrix]:
    """Losses, [steps + 1], and the mean diagonal of M of every step, from v [H] and U [H, D, D]."""
    losses, diagonal = np.empty(steps + 1), np.empty(steps + 1)
    for step in range(steps + 1):
        m = np.tensordot(v, u, axes=1)
        losses[step], diagonal[step] = of.loss(m), np.diag(m).mean()
        g = of.slope(m)
        v, u = v - rate * (u * g).sum(axis=(1, 2)), u - rate * v[:, None, None] * g
    return losses, diagonal


def white_closed_form(size: int, examples: int, w_init: float, time: NDArray[np.floating]) -> Matrix:
    """M = sigma(t) I of the merged model where Lambda = I, from |v| = ||U||_F = w_init, U in direction I.

    sigma(t) = e^(2 sqrt(D) t) / ((1 + (1 + D) / N) (e^(2 sqrt(D) t) - 1) + sqrt(D) / w_init^2)
    """
    grown = np.exp(2 * math.sqrt(size) * time)
    return np.asarray(grown / ((1 + (1 + size) / examples) * (grown - 1) + math.sqrt(size) / w_init**2))


def plateaus(losses: Matrix, expected: Sequence[float]) -> list[float]:
    """The loss where it changes least between the midpoints around every level; NaN where it never is between them."""
    between = [math.inf, *[(a + b) / 2 for a, b in pairwise(expected)], -math.inf]
    change = np.abs(np.diff(losses))
    found = []
    for high, low in pairwise(between):
        inside = np.flatnonzero((losses[:-1] < high) & (losses[:-1] >= low))
        found.append(float(losses[inside[change[inside].argmin()]]) if len(inside) else math.nan)
    return found


def stays(losses: Matrix, expected: Sequence[float]) -> list[int]:
    """Steps spent within STAY of every level."""
    return [int((np.abs(losses - level) <= STAY * expected[0]).sum()) for level in expected]


def report(seeds: Sequence[int], say: Say) -> Report:
    """Levels, stays and the white closed form."""
    require_seeds(seeds, least=1)
    of, expected = Population(EIGENVALUES), levels(EIGENVALUES)
    checks: list[Check] = []
    rows: list[list[str]] = []
    separate: list[dict[str, Any]] = []
    for seed in seeds:
        say(f"in-context regression, keys and queries apart and merged, seed {seed}")
        losses = train_separate(of, heads=5, rank=1, scale=0.01, rate=1.0, steps=SEPARATE_STEPS, seed=seed)
        found, steps = plateaus(losses, expected), stays(losses, expected)
        separate.append({"seed": seed, "plateaus": found, "steps": steps, "losses": losses[::40].tolist()})
        rows.append([f"separate, seed {seed}", *(f"{x:.4f} ({n})" for x, n in zip(found, steps, strict=True))])
        for m, (theory, value) in enumerate(zip(expected, found, strict=True)):
            checks.append(Check("in-context", f"separate, seed {seed}: level {m}", theory, value, 0.01 * theory))
        share = sum(steps[1:3]) / steps[0]
        checks.append(Check("in-context", f"separate, seed {seed}: stay at levels 1, 2 over 0", 0.2, share, 0.0, ">="))
    rng = stream(seeds[0], "init")
    v, u = 1e-6 * rng.standard_normal(8), 1e-6 * rng.standard_normal((8, 4, 4))
    losses, _ = train_merged(of, v, u, rate=1.0, steps=MERGED_STEPS)
    steps = stays(losses, expected)
    rows.append(["merged", *(f"({n})" for n in steps)])
    share = sum(steps[1:3]) / steps[0]
    checks.append(Check("in-context", "merged: stay at levels 1, 2 over 0", 0.05, share, 0.0, "<="))
    checks.append(Check("in-context", "merged: loss at the end", expected[-1], float(losses[-1]), 1e-4))
    white = []
    for w_init in (1e-3, 1e-5):
        rate = 0.002
        u = np.eye(4)[None] * w_init / 2
        _, sigma = train_merged(Population((1.0,) * 4), np.array([w_init]), u, rate, WHITE_STEPS)
        theory_sigma = white_closed_form(4, EXAMPLES, w_init, rate * np.arange(len(sigma)))
        worst = float(np.abs(sigma - theory_sigma).max())
        white.append({"w_init": w_init, "worst": worst})
        checks.append(
            Check("in-context", f"merged, white, w_init {w_init:g}: furthest from sigma(t)", 0.0, worst, 0.02)
        )
    return Report(
        name="in-context",
        source="Zhang et al. 2025 (arXiv 2501.16265)",
        checks=checks,
        lines=table(("model", *(f"level {m}: {x:.4f}" for m, x in enumerate(expected))), rows),
        data={
            "levels": expected,
            "separate": separate,
            "merged": {"steps": steps, "losses": losses.tolist()},
            "white": white,
        },
    )
