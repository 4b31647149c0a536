"""Intervals, permutation tests and paired comparisons of OCR scores. Pure functions of per-subject ranks.

- Interval: hierarchical bootstrap, subjects resampled within each seed and then seeds, percentiles. With one
  seed only subjects are resampled, and the interval says nothing of how seeds differ.
- Permutation test: under the null that a subject's group tells nothing of its answer, labels are exchanged
  among the test subjects of a seed; p is the share of exchanges whose mean rank is as low as the observed one.
- Paired comparison: two conditions on the same subjects (matched by seed and name) are resampled together, so
  what subjects and seeds have in common cancels.

All draw from the evaluation stream, so the same ranks give the same numbers, and nothing else is disturbed.

A bootstrap draw weighs subjects, and the weights depend only on how many subjects each seed has. So cells of one
shape share one matrix of weights, and a table's resampled means are one matrix product:

    boot[column, b] = sum over seeds k and subjects s of  value[column, (k, s)] * weight[b, (k, s)]

The permutation test is put the same way: with subjects sorted by their answer, the exchanged labels of all cells
of one shape are one 0/1 matrix.

Dimension letters:  B draws,  S subjects,  K seeds,  n in-use answers,  R = K * S rows,  C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ocr_eval import draw

Floats = NDArray[np.float64]

LEVEL = 0.95
DRAWS = 2000

#: What can be computed from the ranks of each subject, and so has an interval.
Metric = Literal["mean-rank", "null-rank", "ocr-score", "top1", "mrr"]
METRICS: tuple[Metric, ...] = ("mean-rank", "null-rank", "ocr-score", "top1", "mrr")
_COLUMNS: tuple[Metric, ...] = ("mean-rank", "null-rank", "top1", "mrr")

#: Cells that are resampled in one matrix product: draws x cells x 8 bytes at once.
_CELLS_AT_ONCE = 256


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

    @cached_property
    def rank(self) -> Floats:
        """Midrank of the right answer. [S]"""
        right: Floats = self.ranks[np.arange(len(self.target)), self.target]
        return right

    @cached_property
    def null(self) -> Floats:
        """Mean midrank of the in-use answers. [S]"""
        mean: Floats = np.add.reduce(self.ranks, axis=1) / self.ranks.shape[1]
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
    return estimates([seeds], ("ocr-score",), draws)[0]["ocr-score"]


def estimates(
    cells: Sequence[Sequence[SubjectRanks]], metrics: Sequence[Metric] = METRICS, draws: int = DRAWS
) -> list[dict[Metric, Estimate]]:
    """Each metric of each cell with its bootstrap interval; a cell is the seeds of one condition.

    Raises:
        ValueError: a cell without seeds.
    """
    columns = [
        name for name in _COLUMNS if name in metrics or (name in ("mean-rank", "null-rank") and "ocr-score" in metrics)
    ]
    result: list[dict[Metric, Estimate]] = [{} for _ in cells]
    for shape, members in _by_shape(cells).items() if metrics else ():
        weights_BR = _weights(shape, draws)
        for start in range(0, len(members), _CELLS_AT_ONCE):
            some = members[start : start + _CELLS_AT_ONCE]
            values_CR = np.stack([_column(cells[i], name) for name in columns for i in some])
            observed_C = values_CR @ _observed_weights(shape)
            drawn_CB = values_CR @ weights_BR.T
            at = {name: slice(c * len(some), (c + 1) * len(some)) for c, name in enumerate(columns)}
            for metric in metrics:
                value, boot = (_metric(metric, table, at) for table in (observed_C, drawn_CB))
                for i, estimate in zip(some, _estimates(value, boot), strict=True):
                    result[i][metric] = estimate
    return result


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
            parts = [a[seed].rank[in_a], a[seed].null[in_a], b[seed].rank[in_b], b[seed].null[in_b]]
            columns.append(np.stack(parts))
    if not columns:
        raise ValueError("the two conditions have no seed and subject in common")
    shape = [column.shape[1] for column in columns]
    values_CR = np.concatenate(columns, axis=1)
    value, boot = (
        _difference(values_CR @ weights.T) for weights in (_observed_weights(shape)[None], _weights(shape, draws))
    )
    return Comparison(_estimates(value[:, 0], boot)[0], subjects=sum(shape), seeds=len(columns))


def _difference(means_CB: Floats) -> Floats:
    """OCR score of A minus that of B, from the means of their ranks and nulls. [4, B] -> [1, B]"""
    rank_a, null_a, rank_b, null_b = means_CB
    difference: Floats = rank_b / null_b - rank_a / null_a
    return difference[None]


def permutation_p(seeds: Sequence[SubjectRanks], draws: int = DRAWS) -> float:
    """One-sided p-value of "mean rank is below its null", labels exchanged within seeds.

    The smallest possible value is 1 / (draws + 1).

    Raises:
        ValueError: no seeds.
    """
    return permutation_ps([seeds], draws)[0]


def permutation_ps(cells: Sequence[Sequence[SubjectRanks]], draws: int = DRAWS) -> list[float]:
    """``permutation_p`` of each cell.

    Raises:
        ValueError: a cell without seeds.
    """
    result = [0.0] * len(cells)
    groups: dict[tuple[bytes, ...], list[int]] = defaultdict(list)
    for i, seeds in enumerate(cells):
        if not seeds:
            raise ValueError("no seeds to test")
        groups[tuple(np.bincount(seed.target, minlength=seed.ranks.shape[1]).tobytes() for seed in seeds)].append(i)
    for members in groups.values():
        exchanged = _exchanges(cells[members[0]], draws)
        for start in range(0, len(members), _CELLS_AT_ONCE):
            some = members[start : start + _CELLS_AT_ONCE]
            total_CB = np.zeros((len(some), draws))
            observed_C = np.zeros(len(some))
            for k, hot_BX in enumerate(exchanged):
                seeds = [cells[i][k] for i in some]
                # midranks are multiples of 1/2, so their doubled sums are exact in fp32
                doubled_CSn = np.stack([seed.ranks for seed in seeds]).astype(np.float32) * 2
                by_answer_CS = np.argsort(np.stack([seed.target for seed in seeds]), axis=1, kind="stable")
                doubled_CX = np.take_along_axis(doubled_CSn, by_answer_CS[:, :, None], axis=1).reshape(len(some), -1)
                total_CB += np.divide(doubled_CX @ hot_BX.T, 2 * doubled_CSn.shape[1], dtype=np.float64)
                observed_C += np.stack([seed.rank for seed in seeds]).mean(axis=1)
            as_low_C = np.count_nonzero(total_CB <= observed_C[:, None] + 1e-9, axis=1)
            for i, as_low in zip(some, as_low_C.tolist(), strict=True):
                result[i] = (1 + as_low) / (draws + 1)
    return result


def _exchanges(seeds: Sequence[SubjectRanks], draws: int) -> list[NDArray[np.float32]]:
    """Exchanged labels of each seed: 1 where a draw gives a subject, by order of answers, an answer. K of [B, S * n]"""
    rng = np.random.default_rng(draw.integer("evaluation/permutation"))
    exchanged = []
    for seed in seeds:
        subjects, n = seed.ranks.shape
        labels_BS = rng.permuted(np.tile(np.sort(seed.target), (draws, 1)), axis=1)
        hot_BX = np.zeros((draws, subjects * n), dtype=np.float32)
        np.put_along_axis(hot_BX, labels_BS + n * np.arange(subjects), 1.0, axis=1)
        exchanged.append(hot_BX)
    return exchanged


def _by_shape(cells: Sequence[Sequence[SubjectRanks]]) -> dict[tuple[int, ...], list[int]]:
    """Indices of the cells by how many subjects each of their seeds has."""
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, seeds in enumerate(cells):
        if not seeds:
            raise ValueError("no seeds to resample")
        shapes[tuple(len(seed.subject) for seed in seeds)].append(i)
    return shapes


def _observed_weights(shape: Sequence[int]) -> Floats:
    """The weight of each subject in the mean over seeds of the seeds' means. [R]"""
    return np.concatenate([np.full(subjects, 1 / (subjects * len(shape))) for subjects in shape])


def _weights(shape: Sequence[int], draws: int) -> Floats:
    """The weight of each subject in each bootstrap draw: seeds drawn, and subjects within each drawn seed. [B, R]"""
    rng = np.random.default_rng(draw.integer("evaluation/bootstrap"))
    k = len(shape)
    chosen_BK = rng.integers(0, k, size=(draws, k)) if k > 1 else np.zeros((draws, 1), dtype=np.int64)
    starts = np.cumsum([0, *shape])
    weights_BR = np.zeros((draws, int(starts[-1])))
    for slot in range(k):
        for seed, subjects in enumerate(shape):
            takes = np.flatnonzero(chosen_BK[:, slot] == seed)
            counts = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=len(takes))
            weights_BR[takes, starts[seed] : starts[seed + 1]] += counts / (subjects * k)
    return weights_BR


def _column(seeds: Sequence[SubjectRanks], name: Metric) -> Floats:
    """One number a subject of each seed, whose mean over subjects is the metric. [R]"""
    if name == "null-rank":
        return np.concatenate([seed.null for seed in seeds])
    rank = np.concatenate([seed.rank for seed in seeds])
    if name == "top1":
        return (rank == 0).astype(np.float64)
    return 1 / (rank + 1) if name == "mrr" else rank


def _metric(metric: Metric, means: Floats, at: Mapping[Metric, slice]) -> Floats:
    """A metric of each cell out of the means of the columns. [C, ...] -> [cells, ...]"""
    if metric != "ocr-score":
        return means[at[metric]]
    scores: Floats = 1 - means[at["mean-rank"]] / means[at["null-rank"]]
    return scores


def _estimates(value_C: Floats, boot_CB: Floats) -> list[Estimate]:
    tail = (1 - LEVEL) / 2
    low_C, high_C = np.quantile(boot_CB, [tail, 1 - tail], axis=1)
    return [Estimate(*three) for three in zip(value_C.tolist(), low_C.tolist(), high_C.tolist(), strict=True)]
