"""Linear attention that learns in-context regression: plateaus by parametrization (Zhang et al., arXiv 2501.16265).

N examples x_n ~ N(0, Lambda), y_n = w . x_n with w ~ N(0, I), and a query x_q; beta = mean of y_n x_n. It predicts
beta^T M x_q with

    merged      M = sum_i v_i U_i                       key and query of a head as one matrix
    separate    M = sum_i v_i sum_{r <= R} k_ir q_ir^T  key and query of rank R

and its mean squared error over all data and tasks is, with S = Lambda^2 + (Lambda^2 + tr(Lambda) Lambda) / N,

    L(M) = tr Lambda - 2 tr(Lambda^2 M) + tr(M^T S M Lambda).

From a small start the merged model learns all directions in one drop; the separate one stays at the levels

    L(M_m) = tr Lambda - sum_{d <= m} lambda_d / (1 + (1 + tr Lambda / lambda_d) / N),   m = 0, 1, .., D,

in order of the eigenvalues, and for R > 1 conspicuously only at m = 0, R, 2 R, .., because a head learns R directions.
Gradient descent is on L / 2, for the paper's time scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_toy.report import Check, Report, Say, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import Matrix, stream

check = partial(Check, "in-context")
EXAMPLES = 31
EIGENVALUES = (0.4, 0.3, 0.2, 0.1)
SEPARATE_STEPS, MERGED_STEPS, WHITE_STEPS = 40_000, 3000, 4000
RANK_EIGENVALUES, RANK_HEADS, RANK_SCALE, RANK_STEPS = tuple(d / 36 for d in range(8, 0, -1)), 9, 5e-3, 20_000
"""The official code's spectrum (proportional to d, trace 1), heads, start and steps for the figure on ranks."""
RANKS, PASSED = (1, 2, 4, 8), 0.2
"""PASSED: the most time that rank R may spend at levels not multiples of R, relative to rank 1 at the same levels."""
STAY = 0.03
"""The distance to a level, as a share of the first level, that counts as staying there."""


def levels(eigenvalues: Sequence[float], examples: int = EXAMPLES) -> list[float]:
    """L(M_m) for m = 0 to D: the loss once the m largest eigendirections are learned."""
    total = sum(eigenvalues)
    gains = [value / (1 + (1 + total / value) / examples) for value in sorted(eigenvalues, reverse=True)]
    return [total - math.fsum(gains[:m]) for m in range(len(gains) + 1)]


@dataclass(frozen=True)
class Population:
    """The population loss, for a diagonal Lambda."""

    eigenvalues: tuple[float, ...]
    examples: int = EXAMPLES

    @cached_property
    def s(self) -> Matrix:
        """The diagonal of S."""
        values = np.array(self.eigenvalues)
        return values**2 + (values**2 + values.sum() * values) / self.examples

    @cached_property
    def _curve(self) -> Matrix:
        return np.outer(self.s, self.eigenvalues)

    @cached_property
    def _aim(self) -> Matrix:
        return np.diag(np.square(self.eigenvalues))

    def loss(self, m: Matrix) -> float:
        """L(M)."""
        return float(sum(self.eigenvalues) + ((self.slope(m) - self._aim) * m).sum())

    def slope(self, m: Matrix) -> Matrix:
        """The gradient of L / 2 with respect to M: -Lambda^2 + S M Lambda."""
        return self._curve * m - self._aim


def train_separate(of: Population, heads: int, rank: int, scale: float, rate: float, steps: int, seed: int) -> Matrix:
    """The loss at every step with separate keys and queries, [steps + 1]."""
    rng, size = stream(seed, "init"), len(of.eigenvalues)
    v = scale * rng.standard_normal(heads)
    k, q = (scale * rng.standard_normal((heads * rank, size)) for _ in "kq")
    losses = np.empty(steps + 1)
    for step in range(steps + 1):
        head = np.repeat(v, rank)[:, None]  # v for every row of k and q
        m = (head * k).T @ q
        losses[step], g = of.loss(m), of.slope(m)
        kg = k @ g
        v = v - rate * (kg * q).sum(axis=1).reshape(heads, rank).sum(axis=1)
        k, q = k - rate * head * (q @ g.T), q - rate * head * kg
    return losses


def train_merged(of: Population, v: Matrix, u: Matrix, rate: float, steps: int) -> tuple[Matrix, Matrix]:
    """The loss and the mean diagonal of M at every step, [steps + 1] each, from v [H] and U [H, D, D]."""
    losses, diagonal = np.empty(steps + 1), np.empty(steps + 1)
    for step in range(steps + 1):
        m = np.tensordot(v, u, axes=1)
        losses[step], diagonal[step] = of.loss(m), np.diag(m).mean()
        g = of.slope(m)
        v, u = v - rate * (u * g).sum(axis=(1, 2)), u - rate * v[:, None, None] * g
    return losses, diagonal


def white_closed_form(size: int, examples: int, w_init: float, time: NDArray[np.floating]) -> Matrix:
    """sigma(t), where M = sigma(t) I, for the merged model with Lambda = I, |v| = ||U||_F = w_init, U in direction I.

    sigma(t) = e^(2 sqrt(D) t) / ((1 + (1 + D) / N) (e^(2 sqrt(D) t) - 1) + sqrt(D) / w_init^2)
    """
    grown = np.exp(2 * math.sqrt(size) * time)
    return np.asarray(grown / ((1 + (1 + size) / examples) * (grown - 1) + math.sqrt(size) / w_init**2))


def plateaus(losses: Matrix, expected: Sequence[float]) -> list[float]:
    """For each level, the loss where it changes least between the midpoints around it; NaN if it is never there."""
    between = [math.inf, *[(a + b) / 2 for a, b in pairwise(expected)], -math.inf]
    change = np.abs(np.diff(losses))
    found = []
    for high, low in pairwise(between):
        inside = np.flatnonzero((losses[:-1] < high) & (losses[:-1] >= low))
        found.append(float(losses[inside[change[inside].argmin()]]) if len(inside) else math.nan)
    return found


def stays(losses: Matrix, expected: Sequence[float]) -> list[int]:
    """Steps spent within STAY of each level."""
    return [int((np.abs(losses - level) <= STAY * expected[0]).sum()) for level in expected]


def between(steps: Sequence[int], rank: int) -> int:
    """Steps at levels that are not multiples of `rank`, without the last two, which STAY does not tell apart."""
    return sum(count for m, count in enumerate(steps[:-2]) if m % rank)


def _ranks(seeds: Sequence[int]) -> tuple[list[Check], list[list[str]], list[dict[str, Any]]]:
    """Keys and queries of rank 1, 2, 4 and 8: at which levels the loss stays."""
    of, expected = Population(RANK_EIGENVALUES), levels(RANK_EIGENVALUES)
    checks: list[Check] = []
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    alone: list[list[int]] = []  # rank 1's stays, by seed
    for rank in RANKS:
        errors, shares = [], []
        for i, seed in enumerate(seeds):
            losses = train_separate(of, RANK_HEADS, rank, RANK_SCALE, 1.0, RANK_STEPS, seed)
            steps, found = stays(losses, expected), plateaus(losses, expected)
            if rank == 1:
                alone.append(steps)
            else:
                shares.append(between(steps, rank) / between(alone[i], rank))
                errors += [abs(found[m] / expected[m] - 1) for m in range(0, len(expected) - 2, rank) if steps[m]]
            data.append({"rank": rank, "seed": seed, "steps": steps})
            rows.append([str(rank), str(seed), *map(str, steps)])
        if rank > 1:
            name = f"rank {rank}: plateaus at multiples of {rank}, relative error"
            checks.append(check(name, 0.0, max(errors), 0.01))
            name = f"rank {rank}: time at the levels between, over rank 1's there"
            checks.append(check(name, PASSED, max(shares), 0.0, "<="))
    return checks, rows, data


def report(seeds: Sequence[int], say: Say) -> Report:
    """Levels, time spent at them, and the closed form for white inputs."""
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
            checks.append(check(f"separate, seed {seed}: level {m}", theory, value, 0.01 * theory))
        share = sum(steps[1:3]) / steps[0]
        checks.append(check(f"separate, seed {seed}: stay at levels 1, 2 over 0", 0.2, share, 0.0, ">="))
    rng = stream(seeds[0], "init")
    v, u = 1e-6 * rng.standard_normal(8), 1e-6 * rng.standard_normal((8, 4, 4))
    losses, _ = train_merged(of, v, u, rate=1.0, steps=MERGED_STEPS)
    steps = stays(losses, expected)
    rows.append(["merged", *(f"({n})" for n in steps)])
    share = sum(steps[1:3]) / steps[0]
    checks.append(check("merged: stay at levels 1, 2 over 0", 0.05, share, 0.0, "<="))
    checks.append(check("merged: loss at the end", expected[-1], float(losses[-1]), 1e-4))
    white = []
    for w_init in (1e-3, 1e-5):
        rate = 0.002
        u = np.eye(4)[None] * w_init / 2
        _, sigma = train_merged(Population((1.0,) * 4), np.array([w_init]), u, rate, WHITE_STEPS)
        theory_sigma = white_closed_form(4, EXAMPLES, w_init, rate * np.arange(len(sigma)))
        worst = float(np.abs(sigma - theory_sigma).max())
        white.append({"w_init": w_init, "worst": worst})
        checks.append(check(f"merged, white, w_init {w_init:g}: furthest from sigma(t)", 0.0, worst, 0.02))
    say("in-context regression, ranks")
    rank_checks, rank_rows, ranks = _ranks(seeds)
    checks += rank_checks
    merged = {"steps": steps, "losses": losses.tolist()}
    headings = ("model", *(f"level {m}: {x:.4f}" for m, x in enumerate(expected)))
    rank_headings = ("rank, D = 8", "seed", *(f"steps at {m}: {x:.4f}" for m, x in enumerate(levels(RANK_EIGENVALUES))))
    return Report(
        name="in-context",
        source="Zhang et al. 2025 (arXiv 2501.16265)",
        checks=checks,
        lines=[*table(headings, rows), *table(rank_headings, rank_rows)],
        data={"levels": expected, "separate": separate, "merged": merged, "white": white, "ranks": ranks},
    )
