"""Which differences are more than chance: permutation of groups, sign flips over seeds, Holm's correction. Pure.

**Within trainings** (is a mean rank below its null?) the unit is the group. Under the null that the unit of a subject
tells nothing of its answer, the units of a seed may exchange their answers: every assignment of answers to units is as
likely as the true one, and p is the share of assignments whose mean in-use rank is as low. Whole units exchange, not
subjects, because the subjects of a unit are not independent observations: they live in one city, and a model that
prefers an answer for that city prefers it for all of them. So few units cannot give a small p: n units of one seed have
n! assignments, and the least p is 1 / n!, 1 / 120 at the default of 5 groups. Where there are more than ``MOST_EXACT``
assignments over all seeds, they are drawn.

That speaks of the trainings that were made. From two seeds on, p is the larger of this one and of Student's t over
seeds (one-sided), which asks whether a new training would show it too: seeds may differ by more than their groups.

**Between trainings** (is one condition above another?) the unit is the run: what moves a run moves all its groups. The
signs of the seeds' differences flip (Fisher's randomization test, two-sided, exact), so S seeds have a p of 2 / 2^S at
least, and fewer than six can give no verdict.

Dimension letters:  C cells,  S subjects,  n units,  F assignments of a seed,  B draws.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ocr_eval.analysis.intervals import Seed, above_zero, t_quantile, units_of
from ocr_eval.common import streams
from ocr_eval.scoring.ranks import Floats

#: A sentence speaks of inference, or of a difference, at this p-value.
SIGNIFICANT = 0.05
#: So many assignments or sign flips, over all seeds together, are enumerated; of more some are drawn.
MOST_EXACT = 20_000
DRAWS = 2000
#: Standard deviation of a run's OCR score that pairing by seed does not take away. Rerun noise is about half of it
#: (results/noise/noise.md); the rest is that two conditions do not meet the same luck in a seed.
RUN_SD = 0.15
#: Cells that are tested in one matrix product: assignments x cells x 8 bytes at once.
_CELLS_AT_ONCE = 256


def inference_ps(cells: Sequence[Sequence[Seed]], draws: int = DRAWS) -> list[float]:
    """p-value of each cell of "nothing was inferred": of its permutation test and, from two seeds on, of t over seeds.

    Raises:
        ValueError: a cell without seeds.
    """
    return [
        max(p, above_zero([units_of(seed) for seed in seeds])) if len(seeds) > 1 else p
        for p, seeds in zip(permutation_ps(cells, draws), cells, strict=True)
    ]


def permutation_ps(cells: Sequence[Sequence[Seed]], draws: int = DRAWS) -> list[float]:
    """One-sided p-value of each cell of "mean rank is below its null", answers exchanged among the units of each seed.

    Exact where the assignments can be enumerated; else (1 + draws as low as what was seen) / (1 + draws).

    Raises:
        ValueError: a cell without seeds.
    """
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, seeds in enumerate(cells):
        if not seeds:
            raise ValueError("no seeds to test")
        shapes[tuple(map(_count, seeds))].append(i)
    result = [0.0] * len(cells)
    for shape, members in shapes.items():
        for start in range(0, len(members), _CELLS_AT_ONCE):
            some = members[start : start + _CELLS_AT_ONCE]
            for i, p in zip(some, _ps([cells[i] for i in some], shape, draws), strict=True):
                result[i] = p
    return result


def least_p(seeds: Sequence[Seed], draws: int = DRAWS) -> float:
    """The smallest permutation p-value that such seeds could have; units that have one answer exchange nothing."""
    assignments = _assignments(list(map(_count, seeds)))
    if assignments > MOST_EXACT:
        return 1 / (1 + draws)
    answers = [Counter(seed[0].units[1].tolist()).values() for seed in seeds if seed[0].unit]
    return math.prod(math.factorial(alike) for of_seed in answers for alike in of_seed) / assignments


def seeds_needed(comparisons: int = 1) -> int:
    """Seeds that a verdict between two conditions takes: with fewer, no signs give a small enough p after Holm."""
    return math.ceil(math.log2(2 * comparisons / SIGNIFICANT))


def sign_flip_p(differences: Sequence[float], draws: int = DRAWS) -> float | None:
    """Two-sided p-value of "the differences of the seeds are as likely negative as positive".

    Returns:
        None from fewer than ``seeds_needed`` seeds, which no differences could make significant.
    """
    seeds = len(differences)
    if seeds < seeds_needed():
        return None
    exact = 2**seeds <= MOST_EXACT
    if exact:
        signs_BS = 1 - 2 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)
    else:
        signs_BS = np.random.default_rng(streams.integer("evaluation/signs")).choice([-1, 1], size=(draws, seeds))
    values_S = np.asarray(differences)
    as_far = np.count_nonzero(abs(signs_BS @ values_S) >= abs(values_S.sum()) - 1e-9)
    return as_far / len(signs_BS) if exact else (1 + as_far) / (1 + draws)


def detectable(seeds: int, sd: float = RUN_SD) -> float | None:
    """The difference of two conditions' OCR scores that so many seeds show with a power of 80 %, about.

    For paired runs, each moved independently: (t(S - 1, 97.5 %) + t(S - 1, 80 %)) * sd * sqrt(2 / S).

    Returns:
        None for a single seed.
    """
    if seeds < 2:
        return None
    quantiles = t_quantile(seeds - 1, 0.975) + t_quantile(seeds - 1, 0.8)
    return quantiles * sd * math.sqrt(2 / seeds)


def _count(seed: Seed) -> int:
    """How many units there are."""
    return len(seed[0].units[1])


def _assignments(shape: Sequence[int]) -> int:
    return math.prod(math.factorial(n) for n in shape)


def _ps(cells: Sequence[Sequence[Seed]], shape: Sequence[int], draws: int) -> list[float]:
    """p of cells whose seeds have as many units each."""
    observed_C = np.zeros(len(cells))
    exact = _assignments(shape) <= MOST_EXACT
    total_CB = np.zeros((len(cells), 1 if exact else draws))
    rng = np.random.default_rng(streams.integer("evaluation/permutation"))
    for k, n in enumerate(shape):
        means_Cnn = np.stack([_means(cell[k]) for cell in cells])
        observed_C += np.trace(means_Cnn, axis1=1, axis2=2)
        if exact:
            of_seed_CF = _of_assignments(means_Cnn, np.array(list(permutations(range(n)))))
            total_CB = (total_CB[:, :, None] + of_seed_CF[:, None, :]).reshape(len(cells), -1)
        else:
            total_CB += _of_assignments(means_Cnn, rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1))
    as_low_C = np.count_nonzero(total_CB <= observed_C[:, None] + 1e-9, axis=1)
    p_C: Floats = as_low_C / total_CB.shape[1] if exact else (1 + as_low_C) / (1 + draws)
    return [float(p) for p in p_C]


def _means(seed: Seed) -> Floats:
    """In-use ranks that a unit gives to another's answer, summed over the seed's runs and divided by their subjects.

    Ranks are multiples of 1/2, so the sums are exact. [n units, n answers of units]
    """
    sums_nn = np.zeros((_count(seed), _count(seed)))
    for run in seed:
        unit_S, answer_n = run.units
        is_of_Sn = unit_S[:, None] == np.arange(len(answer_n))
        sums_nn += is_of_Sn.T.astype(np.float64) @ run.in_use[:, answer_n]
    return sums_nn / sum(len(run.target) for run in seed)


def _of_assignments(means_Cnn: Floats, answers_Fn: NDArray[np.int64]) -> Floats:
    """Mean rank of each cell if unit u had the answer of unit ``answers_Fn[f, u]``. [C, F]"""
    n = answers_Fn.shape[1]
    hot_Fnn = (answers_Fn[:, :, None] == np.arange(n)).astype(np.float64)
    means: Floats = means_Cnn.reshape(len(means_Cnn), -1) @ hot_Fnn.reshape(len(hot_Fnn), -1).T
    return means
