"""Is a mean rank below its null? A permutation test over units (groups, in pairs). Pure functions of per-subject ranks.

Under the null that the unit of a subject tells nothing of its answer, the units of a seed may exchange their
answers: every assignment of answers to units is as likely as the true one, and p is the share of assignments whose
mean rank is as low. Whole units exchange, not subjects, because the subjects of a unit are not independent
observations: they live in one city, and a model that prefers an answer for that city prefers it for all of them.

So few units cannot give a small p: n units of one seed have n! assignments, and the least p is 1 / n!, 1 / 120 at the
default of 5 groups. Where there are more than ``MOST_EXACT`` assignments over all seeds, they are drawn.

Dimension letters:  C cells,  S subjects,  n units,  F assignments of a seed,  B draws.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ocr_eval.analysis.bootstrap import DRAWS
from ocr_eval.common import streams
from ocr_eval.scoring.ranks import Floats, HeldOut

#: So many assignments, over all seeds together, are enumerated; of more some are drawn.
MOST_EXACT = 20_000
#: Cells that are tested in one matrix product: assignments x cells x 8 bytes at once.
_CELLS_AT_ONCE = 256


def permutation_p(seeds: Sequence[HeldOut], draws: int = DRAWS) -> float:
    """One-sided p-value of "mean rank is below its null", answers exchanged among the units of each seed.

    Exact where the assignments can be enumerated; else (1 + draws as low as what was seen) / (1 + draws).

    Raises:
        ValueError: no seeds.
    """
    return permutation_ps([seeds], draws)[0]


def permutation_ps(cells: Sequence[Sequence[HeldOut]], draws: int = DRAWS) -> list[float]:
    """``permutation_p`` of each cell.

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


def least_p(seeds: Sequence[HeldOut], draws: int = DRAWS) -> float:
    """The smallest p-value that such seeds could have; units that have one answer exchange nothing."""
    assignments = _assignments(list(map(_count, seeds)))
    return math.prod(map(_alike, seeds)) / assignments if assignments <= MOST_EXACT else 1 / (1 + draws)


def _alike(seed: HeldOut) -> int:
    """How many assignments of a seed are the true one."""
    return math.prod(map(math.factorial, Counter(seed.units[1].tolist()).values())) if seed.unit else 1


def _count(seed: HeldOut) -> int:
    """How many units there are."""
    return len(seed.units[1])


def _assignments(shape: Sequence[int]) -> int:
    return math.prod(math.factorial(n) for n in shape)


def _ps(cells: Sequence[Sequence[HeldOut]], shape: Sequence[int], draws: int) -> list[float]:
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


def _means(seed: HeldOut) -> Floats:
    """Sum of the ranks that a unit gives to another's answer, divided by all subjects. [n units, n answers of units]

    Ranks are multiples of 1/2, so the sums are exact.
    """
    unit_S, answer_n = seed.units
    is_of_Sn = unit_S[:, None] == np.arange(len(answer_n))
    means_nn: Floats = (is_of_Sn.T.astype(np.float64) @ seed.ranks[:, answer_n]) / len(seed.target)
    return means_nn


def _of_assignments(means_Cnn: Floats, answers_Fn: NDArray[np.int64]) -> Floats:
    """Mean rank of each cell if unit u had the answer of unit ``answers_Fn[f, u]``. [C, F]"""
    n = answers_Fn.shape[1]
    hot_Fnn = np.zeros((len(answers_Fn), n, n))
    np.put_along_axis(hot_Fnn, answers_Fn[:, :, None], 1.0, axis=2)
    means: Floats = means_Cnn.reshape(len(means_Cnn), -1) @ hot_Fnn.reshape(len(hot_Fnn), -1).T
    return means
