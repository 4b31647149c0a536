"""Means over seeds with their intervals. Pure functions of per-subject ranks.

The estimand is the expected value for a new seed: other pairs, other people, another training. So the seed is the unit:
a value is the mean of one number per seed, and its interval is Student's t over seeds,

    mean +- t(S - 1, 97.5 %) * max(s_between / sqrt(S), s_within / sqrt(S n))

s_between is the standard deviation of the seeds' numbers. Estimated from three seeds it is often small by luck, so the
standard error is never smaller than the n groups within a seed imply (s_within is the standard deviation among the
groups of a seed; its subjects are not independent, because those of a group live in one city). One seed has no
interval. The coverage of these intervals is simulated in tests/benchmarks/bench_claims.py.

Runs that share a seed's data (several train seeds) are averaged first, and count as one seed.

Dimension letters:  S seeds,  n units (groups, in pairs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from ocr_eval.scoring.ranks import Floats, HeldOut

LEVEL = 0.95

#: Statistics of per-subject ranks, which therefore have intervals.
Metric = Literal["mean-rank", "null-rank", "ocr-score", "top1", "mrr"]
_OF_SUBJECTS: Mapping[Metric, Callable[[HeldOut], Floats]] = {
    "mean-rank": lambda held: held.rank,
    "null-rank": lambda held: held.null,
    "ocr-score": lambda held: held.scores,
    "top1": lambda held: (held.rank == 0).astype(np.float64),
    "mrr": lambda held: 1 / (held.rank + 1),
}
METRICS: tuple[Metric, ...] = tuple(_OF_SUBJECTS)
#: The possible range of each.
WITHIN: Mapping[Metric, tuple[float, float]] = {
    "mean-rank": (0, math.inf),
    "null-rank": (0, math.inf),
    "ocr-score": (-1, 1),
    "top1": (0, 1),
    "mrr": (0, 1),
}

#: The ranks of one seed: those of its runs, which differ only in the train seed.
Seed = Sequence[HeldOut]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval at ``LEVEL``; a single seed has none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """``+0.50 [+0.40, +0.60]``, or the value alone."""
        return f"{self.value:+.2f}" + ("" if self.bounds is None else " [{:+.2f}, {:+.2f}]".format(*self.bounds))

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, if there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Units:
    """A metric in one seed, by unit.

    Attributes:
        values: mean over the subjects of each unit. [n]
        weights: each unit's share of the metric: of the OCR score an equal one, else that of the subjects. [n]
    """

    values: Floats
    weights: Floats

    @property
    def mean(self) -> float:
        """The metric over all units."""
        return float(self.values @ self.weights)

    @property
    def variance(self) -> float:
        """Variance of the mean under resampling of units; 0 for a single unit."""
        n = len(self.values)
        deviations = self.weights * (self.values - self.mean)
        return float(deviations @ deviations) * n / (n - 1) if n > 1 else 0.0

    def __sub__(self, other: Units) -> Units:
        return Units(self.values - other.values, self.weights)


def of_subjects(run: HeldOut, names: Sequence[str]) -> HeldOut:
    """The ranks of some of a run's subjects, in this order."""
    if list(run.subject) == list(names):
        return run
    row = {name: i for i, name in enumerate(run.subject)}
    return run.some([row[name] for name in names])


def units_of(seed: Seed, metric: Metric = "ocr-score") -> Units:
    """A metric by unit in one seed, averaged over its runs.

    Raises:
        ValueError: no runs, or runs that ask about different subjects.
    """
    if not seed:
        raise ValueError("no runs of a seed")
    if any(list(run.subject) != list(seed[0].subject) for run in seed[1:]):
        raise ValueError("runs of one seed ask about different subjects")
    values_S = sum(_OF_SUBJECTS[metric](run) for run in seed) / len(seed)
    unit_S = seed[0].units[0]
    subjects_n = np.bincount(unit_S)
    there = subjects_n > 0  # an answer in use may have no test subject among those that are compared
    weights_n = there / there.sum() if metric == "ocr-score" else subjects_n / len(unit_S)
    return Units((np.bincount(unit_S, values_S)[there] / subjects_n[there]), weights_n[there])


def averaged(several: Sequence[Units]) -> Units:
    """The mean of several metrics of one seed: unit by unit if their numbers of units agree, else as a single unit."""
    if len({len(units.values) for units in several}) > 1:
        return Units(np.array([np.mean([units.mean for units in several])]), np.ones(1))
    n = len(several[0].values)
    parts = [units.values * units.weights for units in several]  # so that their sum is the mean of the means
    return Units(n * np.mean(parts, axis=0), np.full(n, 1 / n))


def estimate(seeds: Sequence[Units], within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Mean over seeds and its interval, clipped to the usual range of values (``within``).

    Raises:
        ValueError: no seeds.
    """
    if not seeds:
        raise ValueError("no seeds to average")
    means = np.array([seed.mean for seed in seeds])
    value = float(means.mean())
    if len(seeds) == 1:
        return Estimate(value)
    error = math.sqrt(max(means.var(ddof=1), np.mean([seed.variance for seed in seeds])) / len(seeds))
    half = t_quantile(len(seeds) - 1, (1 + LEVEL) / 2) * error
    return Estimate(value, max(value - half, min(value, within[0])), min(value + half, max(value, within[1])))


def of_metric(seeds: Sequence[Seed], metric: Metric = "ocr-score") -> Estimate:
    """A metric over seeds with its interval.

    Raises:
        ValueError: no seeds.
    """
    return estimate([units_of(seed, metric) for seed in seeds], WITHIN[metric])


def above_zero(seeds: Sequence[Units]) -> float:
    """One-sided p-value, by Student's t over seeds, of "the mean over seeds is at most zero"; for two seeds or more."""
    means = np.array([seed.mean for seed in seeds])
    error = means.std(ddof=1) / math.sqrt(len(means))
    if error == 0:
        return 0.0 if means.mean() > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(len(means) - 1, -means.mean() / error))


@cache
def t_quantile(degrees: int, p: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # takes a third of a second to import, and a single seed does not need it

    return float(stdtrit(degrees, p))
