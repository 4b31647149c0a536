"""Intervals and paired comparisons of OCR scores. Pure functions of per-subject ranks.

- Interval: hierarchical bootstrap, subjects resampled within each seed and then seeds, percentiles. With one
  seed only subjects are resampled, and the interval says nothing of how seeds differ.
- Paired comparison: two conditions on the same subjects (matched by seed and name) are resampled together, so
  what subjects and seeds have in common cancels.

All draw from the evaluation stream, so the same ranks give the same numbers, and nothing else is disturbed.

A bootstrap draw weighs subjects, and the weights depend only on how many subjects each seed has. So cells of one
shape share one matrix of weights, and a table's resampled means are one matrix product:

    boot[column, b] = sum over seeds k and subjects s of  value[column, (k, s)] * weight[b, (k, s)]

Subjects are resampled within the pairs that are in use: an interval says how sure the score is *for these pairs*, and
not what other cities, or another choice of five, would have given. Whether there is any inference at all is a question
to the groups and has a test of its own (analysis/permutation.py).

Dimension letters:  B draws,  S subjects,  K seeds,  n in-use answers,  R = K * S rows,  C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ocr_eval.common import streams
from ocr_eval.scoring.ranks import Floats, HeldOut

LEVEL = 0.95
DRAWS = 2000

#: What can be computed from the ranks of each subject, and so has an interval.
Metric = Literal["mean-rank", "null-rank", "ocr-score", "top1", "mrr"]
METRICS: tuple[Metric, ...] = ("mean-rank", "null-rank", "ocr-score", "top1", "mrr")
_COLUMNS: tuple[Metric, ...] = ("mean-rank", "null-rank", "top1", "mrr")

#: Cells that are resampled in one matrix product: draws x cells x 8 bytes at once.
_CELLS_AT_ONCE = 256


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


def ocr_score(seeds: Sequence[HeldOut], draws: int = DRAWS) -> Estimate:
    """OCR score over seeds (1 - mean of mean ranks / mean of null ranks) with its bootstrap interval.

    Raises:
        ValueError: no seeds.
    """
    return estimates([seeds], ("ocr-score",), draws)[0]["ocr-score"]


def estimates(
    cells: Sequence[Sequence[HeldOut]], metrics: Sequence[Metric] = METRICS, draws: int = DRAWS
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


def matched(a: Mapping[int, HeldOut], b: Mapping[int, HeldOut]) -> list[tuple[HeldOut, HeldOut]]:
    """Both conditions' ranks of the subjects that both have, seed by seed, in one order.

    Raises:
        ValueError: the two have no subject in common.
    """
    pairs = []
    for seed in sorted(a.keys() & b.keys()):
        row_of_b = {name: i for i, name in enumerate(b[seed].subject)}
        rows = [(i, row_of_b[name]) for i, name in enumerate(a[seed].subject) if name in row_of_b]
        if rows:
            in_a, in_b = zip(*rows, strict=True)
            pairs.append((a[seed].some(in_a), b[seed].some(in_b)))
    if not pairs:
        raise ValueError("the two conditions have no seed and subject in common")
    return pairs


def compare(a: Mapping[int, HeldOut], b: Mapping[int, HeldOut], draws: int = DRAWS) -> Comparison:
    """Difference of two conditions' OCR scores, paired by seed and subject.

    Args:
        a: ranks by seed.
        b: ranks by seed; seeds and subjects that only one side has are left out.
        draws: bootstrap draws.

    Raises:
        ValueError: the two have no subject in common.
    """
    columns = [np.stack([of_a.rank, of_a.null, of_b.rank, of_b.null]) for of_a, of_b in matched(a, b)]
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


def _by_shape(cells: Sequence[Sequence[HeldOut]]) -> dict[tuple[int, ...], list[int]]:
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
    rng = np.random.default_rng(streams.integer("evaluation/bootstrap"))
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


def _column(seeds: Sequence[HeldOut], name: Metric) -> Floats:
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
