"""Why runs of one cell differ: variance components, and standard errors by what is taken as independent. Pure.

**Components.** If D data seeds are crossed with T train seeds, a run's OCR score is

    y[d, t] = mean + data[d] + training[t] + rest[d, t]

with the rest their interaction and rerun noise. The variances follow from the mean squares of the two-way layout
without replication (Searle, Casella and McCulloch 1992): rest = MS_rest, data = (MS_data - MS_rest) / T, training =
(MS_training - MS_rest) / D. An estimate may be negative if the true variance is small.

**Clusters.** Pairs recur across seeds: two seeds of five pairs out of twenty share 1.25 on average. So the groups of
all seeds are clustered both ways, with V = V_seed + V_pair - V_group (Cameron, Gelbach and Miller 2011). This checks
the interval, which clusters by seed; roughly, because there are few clusters.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ocr_eval.analysis.intervals import units_of
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association, group_rows, ranks_by_seed
from ocr_eval.scoring.ranks import Floats
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class Components:
    """Variances of a run's OCR score; an estimate below zero means that none was found."""

    data: float
    training: float
    rest: float


@dataclass(frozen=True)
class Clustered:
    """Standard errors of the mean OCR score with clusters by seed, by pair, and by both; NaN if V < 0."""

    seed: float
    pair: float
    both: float


@dataclass(frozen=True)
class Spread:
    """How the runs of one cell differ.

    Attributes:
        seeds: number of data seeds.
        sd: standard deviation of their OCR scores; None for one seed.
        components: None unless data seeds are crossed with train seeds.
        clustered: None for one seed, and for records that do not state their answers.
    """

    row: str
    association: str
    seeds: int
    sd: float | None
    components: Components | None
    clustered: Clustered | None


def spreads(records: Sequence[Record], scoring: Scoring) -> list[Spread]:
    """How the runs of each cell of the table differ."""
    found = []
    for key, rows in group_rows(records).items():
        for association, runs in by_association(rows).items():
            ranks = ranks_by_seed(runs, scoring)
            units = {seed: units_of(held) for seed, held in ranks.items()}
            means = [each.mean for each in units.values()]
            is_stated = all(held[0].answers for held in ranks.values())
            groups = [
                (seed, held[0].answers[answer], score)
                for seed, held in ranks.items()
                for answer, score in zip(held[0].units[1] if is_stated else (), units[seed].values, strict=False)
            ]
            found.append(
                Spread(
                    row=key.name,
                    association=association,
                    seeds=len(units),
                    sd=float(np.std(means, ddof=1)) if len(means) > 1 else None,
                    components=components(
                        {(run.seed, run.training_seed): run.held_out[scoring].ocr_score for run in runs}
                    ),
                    clustered=clustered(*zip(*groups, strict=True)) if is_stated and len(units) > 1 else None,
                )
            )
    return found


def components(scores: Mapping[tuple[int, int], float]) -> Components | None:
    """Variance components of scores by data seed and train seed; None unless crossed, with at least two of each."""
    rows, columns = (sorted({key[i] for key in scores}) for i in (0, 1))
    if min(len(rows), len(columns)) < 2 or len(scores) < len(rows) * len(columns):
        return None
    y_DT = np.array([[scores[d, t] for t in columns] for d in rows])
    data_D, training_T, mean = y_DT.mean(axis=1), y_DT.mean(axis=0), y_DT.mean()
    rest_DT = y_DT - data_D[:, None] - training_T + mean
    d, t = y_DT.shape
    rest = float((rest_DT**2).sum()) / ((d - 1) * (t - 1))
    return Components(
        data=float(data_D.var(ddof=1)) - rest / t, training=float(training_T.var(ddof=1)) - rest / d, rest=rest
    )


def clustered(seeds: Sequence[int], pairs: Sequence[str], scores: Sequence[float]) -> Clustered:
    """Standard errors of the mean of group scores, given the seed and the pair of each group.

    Raises:
        ValueError: a single seed or pair.
    """
    apart = np.asarray(scores) - np.mean(scores)
    seed, pair = _variance(seeds, apart), _variance(pairs, apart)
    both = seed + pair - _variance(range(len(apart)), apart)
    return Clustered(*(math.sqrt(v) if v >= 0 else math.nan for v in (seed, pair, both)))


def _variance(cluster: Sequence[Hashable], apart: Floats) -> float:
    """Variance of a mean whose deviations add up within clusters."""
    sums: dict[Hashable, float] = defaultdict(float)
    for name, value in zip(cluster, apart.tolist(), strict=True):
        sums[name] += value
    if len(sums) < 2:
        raise ValueError("a single cluster shows no variance")
    return sum(value**2 for value in sums.values()) / len(apart) ** 2 * len(sums) / (len(sums) - 1)
