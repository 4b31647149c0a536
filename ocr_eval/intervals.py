"""Intervals, permutation tests and paired comparisons of OCR scores. Pure functions of per-subject ranks.

- Interval: hierarchical bootstrap, subjects resampled within each seed and then seeds, percentiles. With one
  seed only subjects are resampled, and the interval says nothing of how seeds differ.
- Permutation test: under the null that a subject's group tells nothing of its answer, labels are exchanged
  among the test subjects of a seed; p is the share of exchanges whose mean rank is as low as the observed one.
- Paired comparison: two conditions on the same subjects (matched by seed and name) are resampled together, so
  what subjects and seeds have in common cancels.

All draw from the evaluation stream, so the same ranks give the same numbers, and nothing else is disturbed.

Dimension letters:  B draws,  S subjects,  K seeds,  n in-use answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocr_eval import draw

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class SubjectRanks:
    """One seed's held-out entailments under one scoring.

    Attributes:
        subject: names, distinct. [S]
        target: index of each one's right answer among the in-use answers. [S]
        ranks: midrank, among all candidates, of each in-use answer. [S, n]
    """

    subject: Sequence[str]
    target: NDArray[np.int64]
    ranks: Floats

    def __post_init__(self) -> None:
        if len(self.subject) == 0:
            raise ValueError("no subjects: there is no score of nothing")

    @property
    def rank(self) -> Floats:
        """Midrank of the right answer. [S]"""
        right: Floats = self.ranks[np.arange(len(self.target)), self.target]
        return right

    @property
    def null(self) -> Floats:
        """Mean midrank of the in-use answers. [S]"""
        mean: Floats = self.ranks.mean(axis=1)
        return mean


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval at ``LEVEL``."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Condition A against condition B on the same subjects.

    Attributes:
        difference: OCR score of A minus OCR score of B.
        subjects: matched pairs of subjects over all seeds.
        seeds: seeds with matched subjects.
    """

    difference: Estimate
    subjects: int
    seeds: int


def ocr_score(seeds: Sequence[SubjectRanks], draws: int = DRAWS) -> Estimate:
    """OCR score over seeds (1 - mean of mean ranks / mean of null ranks) with its bootstrap interval.

    Raises:
        ValueError: no seeds.
    """
    value, boot_B = _scores([[seed.rank, seed.null] for seed in seeds], draws)
    return _estimate(value[0], boot_B[:, 0])


def compare(a: Mapping[int, SubjectRanks], b: Mapping[int, SubjectRanks], draws: int = DRAWS) -> Comparison:
    """Difference of two conditions' OCR scores, paired by seed and subject.

    Args:
        a: ranks by seed.
        b: ranks by seed; seeds and subjects that only one side has are left out.
        draws: bootstrap draws.

    Raises:
        ValueError: the two have no subject in common.
    """
    columns = []
    for seed in sorted(a.keys() & b.keys()):
        row_of_b = {name: i for i, name in enumerate(b[seed].subject)}
        pairs = [(i, row_of_b[name]) for i, name in enumerate(a[seed].subject) if name in row_of_b]
        if pairs:
            in_a, in_b = (list(rows) for rows in zip(*pairs, strict=True))
            columns.append([a[seed].rank[in_a], a[seed].null[in_a], b[seed].rank[in_b], b[seed].null[in_b]])
    if not columns:
        raise ValueError("the two conditions have no seed and subject in common")
    value, boot_B = _scores(columns, draws)
    difference = _estimate(value[0] - value[1], boot_B[:, 0] - boot_B[:, 1])
    return Comparison(difference, subjects=sum(len(column[0]) for column in columns), seeds=len(columns))


def permutation_p(seeds: Sequence[SubjectRanks], draws: int = DRAWS) -> float:
    """One-sided p-value of "mean rank is below its null", labels exchanged within seeds.

    The smallest possible value is 1 / (draws + 1).

    Raises:
        ValueError: no seeds.
    """
    if not seeds:
        raise ValueError("no seeds to test")
    rng = np.random.default_rng(draw.integer("evaluation/permutation"))
    observed = np.mean([seed.rank.mean() for seed in seeds])
    total_B = np.zeros(draws)
    for seed in seeds:
        labels_BS = rng.permuted(np.tile(seed.target, (draws, 1)), axis=1)
        total_B += seed.ranks[np.arange(len(seed.target)), labels_BS].mean(axis=1)
    as_low = int((total_B / len(seeds) <= observed + 1e-12).sum())
    return (1 + as_low) / (draws + 1)


def _scores(columns: Sequence[Sequence[Floats]], draws: int) -> tuple[Floats, Floats]:
    """OCR scores of the conditions, observed [C] and bootstrapped [B, C].

    Args:
        columns: for each seed, rank and null of each condition in turn, each [S].
        draws: bootstrap draws B.
    """
    if not columns:
        raise ValueError("no seeds to resample")
    rng = np.random.default_rng(draw.integer("evaluation/bootstrap"))
    stacked = [np.stack(column, axis=1) for column in columns]  # K of [S, 2C]
    observed = np.mean([rows.mean(axis=0) for rows in stacked], axis=0)
    k = len(stacked)
    chosen_BK = rng.integers(0, k, size=(draws, k)) if k > 1 else np.zeros((draws, 1), dtype=np.int64)
    total_B = np.zeros((draws, observed.shape[0]))
    for slot in range(k):
        for seed, rows in enumerate(stacked):
            takes = np.flatnonzero(chosen_BK[:, slot] == seed)
            subjects = len(rows)
            counts = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=len(takes))
            total_B[takes] += counts @ rows / subjects
    boot_B = total_B / k
    return _ratio(observed[None])[0], _ratio(boot_B)


def _ratio(means: Floats) -> Floats:
    """Rank and null means of C conditions, [B, 2C], to OCR scores, [B, C]."""
    scores: Floats = 1 - means[:, 0::2] / means[:, 1::2]
    return scores


def _estimate(value: float, boot_B: Floats) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(boot_B, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))
