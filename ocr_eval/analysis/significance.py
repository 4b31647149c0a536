"""Which differences are more than chance: permutation of groups, sign flips over seeds, Holm's correction. Pure.

**Within trainings** (is a mean rank below its null?) the unit is the group. Under the null that a subject's unit is
uninformative about its answer, the units of a seed are exchangeable: every assignment of answers to units is as likely
as the true one, and p is the share of assignments whose mean in-use rank is as low. Whole units are permuted, not
subjects, because the subjects of a unit are not independent observations: they live in one city, and a model that
prefers an answer for that city prefers it for all of them. So a few units cannot give a small p: n units of one seed
have n! assignments, and the smallest p is 1 / n!, or 1 / 120 with the default of 5 groups. Trainings on the
same subjects, as of a fixed table of facts, share one assignment: they are not further data. If there are more than
``MOST_EXACT`` assignments over all seeds, they are sampled.

This test is about the trainings that were run. With two or more seeds, p is the larger of this one and of Student's t
over seeds (one-sided), which asks whether a new training would show it too: seeds may differ by more than their groups.

**Between trainings** (is one condition above another?) the unit is the run, because luck in training moves all groups
of a run. The signs of the seeds' differences are flipped (Fisher's randomization test, two-sided, exact), so with S
seeds p is at least 2 / 2^S, and fewer than six give no verdict.

Dimension letters:  C cells,  S subjects,  n units,  F assignments of a seed,  B draws.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_eval.analysis.intervals import Seed, above_zero, of_subjects, units_of
from ocr_eval.common import streams
from ocr_eval.scoring.ranks import Floats, HeldOut

#: The largest p-value at which a sentence reports an inference or a difference.
SIGNIFICANT = 0.05
#: Up to MOST_EXACT assignments or sign flips, over all seeds together, are enumerated; beyond that, DRAWS are sampled.
MOST_EXACT = 20_000
DRAWS = 2000
#: Standard deviation of a run's OCR score that pairing by seed does not remove. Rerun noise is about half of it
#: (results/noise/noise.md); the rest is luck that two conditions do not share in a seed.
RUN_SD = 0.15
#: How often the smallest detectable difference is found.
POWER = 0.8
#: Cells tested in one matrix product, which takes assignments x cells x 8 bytes.
_CELLS_AT_ONCE = 256
#: Draws of noise in ``detectable``; most pairs of a draw and a flip, in all and at once.
_STUDIES, _LOOKED_AT, _AT_ONCE = 6000, 4_000_000, 500_000


def inference_ps(cells: Sequence[Sequence[Seed]], draws: int = DRAWS) -> list[float]:
    """p-value of "nothing was inferred" per cell: that of permutation or, if larger and there are several seeds, of t.

    Raises:
        ValueError: a cell without seeds.
    """
    return [
        max(p, above_zero([units_of(seed) for seed in seeds])) if len(seeds) > 1 else p
        for p, seeds in zip(permutation_ps(cells, draws), cells, strict=True)
    ]


def permutation_ps(cells: Sequence[Sequence[Seed]], draws: int = DRAWS) -> list[float]:
    """One-sided p-value of "the mean rank is not below its null" per cell, permuting answers among the units of a seed.

    Exact if the assignments can be enumerated; else (1 + draws as low as the observed mean) / (1 + draws).

    Raises:
        ValueError: a cell without seeds.
    """
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    cells = [_by_data(seeds) for seeds in cells]
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
    """The smallest permutation p-value possible with these seeds; swapping units with the same answer has no effect."""
    seeds = _by_data(seeds)
    assignments = _assignments(list(map(_count, seeds)))
    answers = [Counter(seed[0].units[1].tolist()).values() for seed in seeds if seed[0].unit]
    least = math.prod(math.factorial(alike) for of_seed in answers for alike in of_seed) / assignments
    return least if assignments <= MOST_EXACT else max(least, 1 / (1 + draws))


def _by_data(seeds: Sequence[Seed]) -> list[Seed]:
    """The runs of seeds that ask about the same subjects in the same units, together and in one order."""
    alike: dict[frozenset[tuple[str, Any]], list[HeldOut]] = defaultdict(list)
    for seed in seeds:
        together = alike[frozenset(zip(seed[0].subject, seed[0].unit or seed[0].target.tolist(), strict=True))]
        together += [of_subjects(run, (together or seed)[0].subject) for run in seed]
    return list(alike.values())


def seeds_needed(comparisons: int = 1) -> int:
    """Seeds needed for a verdict between two conditions: with fewer, no signs give a small enough p after Holm."""
    return math.ceil(math.log2(2 * comparisons / SIGNIFICANT))


def sign_flip_p(differences: Sequence[float], draws: int = DRAWS) -> float | None:
    """Two-sided p-value of "the differences of the seeds are as likely negative as positive".

    None with fewer than ``seeds_needed`` seeds, because no differences could be significant.
    """
    seeds = len(differences)
    if seeds < seeds_needed():
        return None
    signs_BS, exact = _signs(seeds, draws)
    values_S = np.asarray(differences)
    as_far = np.count_nonzero(abs(signs_BS @ values_S) >= abs(values_S.sum()) - 1e-9)
    return as_far / len(signs_BS) if exact else (1 + as_far) / (1 + draws)


def detectable(seeds: int, comparisons: int = 1, sd: float = RUN_SD) -> float | None:
    """The difference of two conditions' OCR scores that sign flips over these seeds detect with 80 % power.

    Assumes paired runs with independent normal noise of standard deviation ``sd``. With several comparisons it uses the
    strictest level of Holm's correction, as if the others showed nothing. None if no difference could be shown.
    """
    least = _detectable(seeds, comparisons)
    return None if least is None else least * sd * math.sqrt(2)


@cache
def _detectable(seeds: int, comparisons: int) -> float | None:
    """``detectable`` in standard deviations of a seed's difference, simulated.

    Draw noise z per seed. Flipping the seeds F leaves a sum as far from zero as the observed one exactly if the true
    difference is at most the mean of -z over F, or over the other seeds. So each draw of z has a smallest difference at
    which few enough flips do; the result is the ``POWER`` quantile of these.
    """
    if seeds < seeds_needed(comparisons):
        return None
    signs_BS, exact = _signs(seeds, DRAWS)
    # A flip and its opposite are equally far from zero, so the half of all flips that keeps the last seed is enough.
    flips_BS = (signs_BS[: len(signs_BS) // 2] if exact else signs_BS) < 0
    level = SIGNIFICANT / comparisons
    allowed = math.floor((level * len(flips_BS) if exact else level * (1 + DRAWS) - 1) + 1e-9)
    if allowed < 0:
        return None
    flips_SB, flipped_B = flips_BS.T.astype(np.float64), flips_BS.sum(axis=1)
    nothing_B = (flipped_B == 0) | (flipped_B == seeds)
    shares_2B = np.where(nothing_B, 1, [flipped_B, seeds - flipped_B])
    kept = len(flips_BS) - 1 - allowed
    studies = min(_STUDIES, _LOOKED_AT // len(flips_BS))
    z_RS = np.random.default_rng(streams.integer("evaluation/power")).normal(size=(studies, seeds))
    enough = []
    for some_RS in np.array_split(z_RS, math.ceil(studies * len(flips_BS) / _AT_ONCE)):
        sums_RB, mean_R = some_RS @ flips_SB, some_RS.mean(axis=1)
        least_RB = np.maximum(sums_RB / shares_2B[0], (seeds * mean_R[:, None] - sums_RB) / shares_2B[1])
        least_RB[:, nothing_B] = np.inf
        enough.append(np.maximum(np.partition(least_RB, kept, axis=1)[:, kept], mean_R))
    return float(np.quantile(np.concatenate(enough), POWER))


def _signs(seeds: int, draws: int) -> tuple[Floats, bool]:
    """All sign flips over some seeds, or ``draws`` of them if there are too many; and whether they are all. [B, S]"""
    if 2**seeds <= MOST_EXACT:
        flips_BS = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
        return (1 - 2 * flips_BS).astype(np.float64), True
    rng = np.random.default_rng(streams.integer("evaluation/signs"))
    return rng.choice([-1.0, 1.0], size=(draws, seeds)), False


def _count(seed: Seed) -> int:
    """Number of units."""
    return len(seed[0].units[1])


def _assignments(shape: Sequence[int]) -> int:
    return math.prod(math.factorial(n) for n in shape)


def _ps(cells: Sequence[Sequence[Seed]], shape: Sequence[int], draws: int) -> list[float]:
    """p of cells whose seeds have these numbers of units (``shape``)."""
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
    """Mean in-use ranks that each unit gives to each unit's answer, as shares of a mean over units and runs.

    [n units, n answers of units]
    """
    means_nn = np.zeros((_count(seed), _count(seed)))
    for run in seed:
        unit_S, answer_n = run.units
        is_of_Sn = unit_S[:, None] == np.arange(len(answer_n))
        sizes_n = np.maximum(is_of_Sn.sum(axis=0), 1)  # an answer in use may have no subject
        means_nn += is_of_Sn.T.astype(np.float64) @ run.in_use[:, answer_n] / sizes_n[:, None]
    return means_nn / (len(seed) * len(means_nn))


def _of_assignments(means_Cnn: Floats, answers_Fn: NDArray[np.int64]) -> Floats:
    """Mean rank of each cell if unit u had the answer of unit ``answers_Fn[f, u]``. [C, F]"""
    n = answers_Fn.shape[1]
    hot_Fnn = (answers_Fn[:, :, None] == np.arange(n)).astype(np.float64)
    return means_Cnn.reshape(len(means_Cnn), -1) @ hot_Fnn.reshape(len(hot_Fnn), -1).T
