"""Rerun noise from readings of remakes: standard deviations, what groups share, and a page of tables.

Pure; ``noise.py`` makes the readings. Dimension letters:  C cells (association, seed),  R remakes,  G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from ocr_eval.analysis.table import column_order
from ocr_eval.common import streams
from ocr_eval.scoring.ranks import LEARNED_TOP1
from ocr_eval.specs.published import published_mean_ranks

Floats = NDArray[np.float64]

#: How a run is read at its end: the readings whose mean is its score.
READINGS = {
    "last epoch": ("last",),
    "mean of 3 epochs": ("last-2", "last-1", "last"),
    "mean weights": ("mean-weights",),
}
NOISE = (
    *("condition; reading", "cells", "remakes", "sd of a run", "sd of 3 seeds", "sd / reference"),
    *("sd of a run, in use", "sd between seeds", "facts lost", "entailments lost"),
)
SHARED = ("condition; reading", "shared by a run's groups", "of each group", "intraclass correlation", "design effect")
PAGE = """# Rerun noise of the OCR score

Written by `python tests/benchmarks/noise.py show` from `runs.csv`. smollm2-135m in bfloat16 on a CPU, the default
protocol, {remakes} remakes of each cell (association, seed): the same data, order and initialization, and the
initial adapters moved by 1e-6 times normal noise. First-token scoring. A condition says what differs from a
constant rate clipped at 1; an unfinished condition is shown, and compared with the first, on the cells it has.

## How far scores move

Standard deviations (sd) of the OCR score over remakes, pooled over cells, with chi-square 95 % intervals ({freedom}
degrees of freedom per cell). These intervals assume normal noise with the same variance in all cells. The interval of
the ratio to the reference (the first row on the same cells) resamples cells and assumes neither, but is too narrow with
few cells (fewer than about ten). "Of 3 seeds": of a mean over three seeds, whose noise is independent. "In use" ranks
among the answers in use, everything else among ten candidates. "Between seeds": the sd of one run over seeds, rerun
noise included. Lost: runs whose facts, or train entailments, are below 95 % top-1 at the end.

{noise}

## Mean scores

Mean OCR score (mean rank) over remakes and the seeds that are finished; in the last row, the lowest and highest
published mean rank.

{means}

## What a run's groups share

Rerun variance of a group's OCR score among the answers in use: the part that the groups of one run share, the part
specific to each group, and the shared fraction (the intraclass correlation), with a 95 % interval from resampled cells.
Above zero, groups of a run move together, and only runs are independent observations; below zero, what one group gains
another loses. The design effect, 1 + (groups - 1) x correlation, is a run's variance over that of independent groups.

{shared}
"""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def spread(values_CR: Floats) -> Interval:
    """Standard deviation over remakes, pooled over cells with C (R - 1) degrees of freedom; chi-square interval."""
    cells, count = values_CR.shape
    dof, variance = cells * (count - 1), values_CR.var(axis=1, ddof=1).mean()
    low, high = np.sqrt(dof * variance / chi2.ppf([0.975, 0.025], dof))
    return Interval(float(np.sqrt(variance)), float(low), float(high))


def components(scores_CRG: Floats) -> tuple[float, float]:
    """Variance over remakes that a run's groups share, and variance specific to each group.

        score = cell and group + shared[run] + own[run, group]

    By mean squares of a two-way layout (remakes, groups) in each cell, pooled over cells. The shared variance is
    negative if groups of a run move in opposite directions, as when one group's favourite answer becomes another's.
    """
    _, runs, groups = scores_CRG.shape
    moved = scores_CRG - scores_CRG.mean(axis=1, keepdims=True)
    run = moved.mean(axis=2, keepdims=True)
    between = groups * (run**2).sum(axis=(1, 2)).mean() / (runs - 1)
    within = ((moved - run) ** 2).sum(axis=(1, 2)).mean() / ((runs - 1) * (groups - 1))
    return float((between - within) / groups), float(within)


def correlation(scores_CRG: Floats) -> float:
    """Intraclass correlation of the rerun noise of two groups of a run: the shared fraction of the variance.

    NaN if nothing varies.
    """
    shared, own = components(scores_CRG)
    return shared / (shared + own) if shared + own else math.nan


def deviation_ratio(values_CR: Floats, reference_CR: Floats) -> float:
    """Pooled standard deviation over remakes relative to a reference's; NaN if the latter is zero."""
    variance, reference = (values.var(axis=1, ddof=1).mean() for values in (values_CR, reference_CR))
    return float(np.sqrt(variance / reference)) if reference else math.nan


def resampled(statistic: Callable[..., float], *of_cells: Floats) -> Interval:
    """A statistic of arrays [C, ...] with its percentile interval, cells resampled (2000 draws)."""
    generator = np.random.default_rng(streams.integer("evaluation/noise"))
    drawn = generator.integers(0, len(of_cells[0]), size=(2000, len(of_cells[0])))
    low, high = np.quantile([statistic(*(values[cells] for values in of_cells)) for cells in drawn], [0.025, 0.975])
    return Interval(statistic(*of_cells), float(low), float(high))


def by_remake(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column by cell and remake, averaged over the readings of each run. [C, R]"""
    return rows.groupby(["association", "seed", "remake"])[column].mean().unstack("remake")


def by_group(rows: pd.DataFrame) -> Floats:
    """OCR scores of the groups of each run, among the answers in use; for one reading. [C, R, G]"""
    ordered = rows.sort_values(["association", "seed", "remake"])
    ranks = np.array([text.split() for text in ordered.ranks_in_use], dtype=np.float64)
    groups = ranks.shape[1]
    return 1 - ranks.reshape(-1, rows.remake.nunique(), groups) / ((groups - 1) / 2)


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table."""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *lines))


def on_cells_of(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The rows whose cells are in a reference, which is by cell and remake."""
    return rows[pd.MultiIndex.from_frame(rows[["association", "seed"]]).isin(reference.index)]


def noise_line(rows: pd.DataFrame, reference: pd.DataFrame) -> Iterator[object]:
    """How far scores move under one condition and reading, also relative to a reference."""
    scores = by_remake(rows, "score")
    of_run = spread(scores.to_numpy())
    yield from scores.shape
    yield of_run
    yield f"{of_run.value / math.sqrt(3):.3f}"
    yield resampled(deviation_ratio, scores.to_numpy(), reference.loc[scores.index].to_numpy())
    yield spread(by_remake(rows, "score_in_use").to_numpy())
    between_seeds = math.sqrt(scores.groupby("association").var(ddof=1).mean(axis=None))
    yield "" if math.isnan(between_seeds) else f"{between_seeds:.3f}"
    for premise in ("facts", "taught"):
        yield (by_remake(rows, premise) < LEARNED_TOP1).to_numpy().sum()


def mean_line(rows: pd.DataFrame, associations: Sequence[str]) -> Iterator[str]:
    """Mean score and mean rank of each association under one condition and reading."""
    ranks = [np.mean([float(rank) for rank in text.split()]) for text in rows.ranks]
    means = rows.assign(rank=ranks).groupby("association")[["score", "rank"]].mean()
    for name in associations:
        yield f"{means.score[name]:+.2f} ({means['rank'][name]:.2f})" if name in means.index else ""


def shared_line(rows: pd.DataFrame) -> Iterator[object]:
    """What the groups of a run share under one condition and reading."""
    scores_CRG = by_group(rows)
    icc = resampled(correlation, scores_CRG)
    yield from (f"{variance:.4f}" for variance in components(scores_CRG))
    yield icc
    yield f"{1 + (scores_CRG.shape[2] - 1) * icc.value:.2f}"


def page(table: pd.DataFrame, conditions: Sequence[str]) -> str:
    """The page of the rows of runs.csv, as Markdown; conditions keep this order, and the first is the reference."""
    associations = column_order(table.association.unique())
    reference = by_remake(table[(table.condition == conditions[0]) & (table.reading == "last")], "score")
    noise, means, shared = [], [], []
    for condition, (way, readings) in product(conditions, READINGS.items()):
        rows = on_cells_of(table[(table.condition == condition) & table.reading.isin(readings)], reference)
        if rows.empty:
            continue
        label = f"{condition}; {way}"
        noise.append((label, *noise_line(rows, reference)))
        means.append((label, *mean_line(rows, associations)))
        if len(readings) == 1:
            shared.append((label, *shared_line(rows)))
    published = [[ranks[name] for ranks in published_mean_ranks().values()] for name in associations]
    means.append(("published, 7-9B", *(f"({min(ranks):.2f} to {max(ranks):.2f})" for ranks in published)))
    return PAGE.format(
        remakes=reference.shape[1],
        freedom=reference.shape[1] - 1,
        noise=markdown(NOISE, noise),
        means=markdown(["condition; reading", *associations], means),
        shared=markdown(SHARED, shared),
    )
