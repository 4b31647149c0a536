"""Two conditions on the same subjects, paired by seed. Pure functions of per-subject ranks.

Luck in training moves all groups of a run, so the run is the unit: each seed gives one difference of OCR scores. The
interval over seeds is that of ``intervals.estimate``, and the p-value flips the signs of the seeds
(``significance.sign_flip_p``). With fewer than six seeds there is a difference but no verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ocr_eval.analysis.intervals import Estimate, Seed, averaged, estimate, of_subjects, units_of
from ocr_eval.analysis.significance import POWER, RUN_SD, SIGNIFICANT, detectable, seeds_needed, sign_flip_p
from ocr_eval.common.multiple_tests import holm
from ocr_eval.scoring.ranks import HeldOut


@dataclass(frozen=True)
class Difference:
    """Condition A minus condition B.

    Attributes:
        value: difference of OCR scores, with its interval.
        p: two-sided p-value; None with fewer than six seeds.
        seeds: number of seeds that both have.
        subjects: number of subjects that both have, over all seeds.
    """

    value: Estimate
    p: float | None
    seeds: int
    subjects: int


def corrected(differences: Sequence[Difference]) -> list[float | None]:
    """p of each, Holm-corrected over all of them; None with too few seeds to show anything.

    A difference with too few seeds is not a test, so the others are not corrected for it.
    """
    adjusted = iter(holm([each.p for each in differences if each.p is not None]))
    return [None if each.p is None else next(adjusted) for each in differences]


def comparisons(differences: Sequence[Difference]) -> list[int]:
    """The number of comparisons that each is corrected for, or would be if all had enough seeds for a test."""
    tests = sum(each.p is not None for each in differences)
    return [len(differences) if each.p is None else tests for each in differences]


def sign_of(apart: Difference, p: float | None, tests: int) -> int | None:
    """The verdict from a p corrected for this number of tests; None if its seeds are too few to be significant."""
    if p is not None and p <= SIGNIFICANT:
        return 1 if apart.value.value > 0 else -1
    return None if p is None or apart.seeds < seeds_needed(tests) else 0


def verdicts(differences: Sequence[Difference]) -> list[int | None]:
    """For each, 1 if A is above B, -1 if it is below, 0 if neither is shown; p is Holm-corrected over all.

    None if even the clearest difference would not be significant with so few seeds.
    """
    return list(map(sign_of, differences, corrected(differences), comparisons(differences)))


def too_few(seeds: int, tests: int = 1) -> str:
    """Why there is no verdict between conditions with this few seeds."""
    needed = seeds_needed(tests)
    verdict = f"a verdict on {tests} comparisons" if tests > 1 else "a verdict"
    few = "1 seed is" if seeds == 1 else f"{seeds} seeds are"
    return f"{few} too few for {verdict}; {needed} are needed (--seeds 0-{needed - 1})"


def power(seeds: int, tests: int = 1, associations: int = 1) -> str:
    """The smallest detectable difference in OCR score, in words; empty if this many seeds can show none.

    Each seed's score is the mean over ``associations``, whose runs are independent.
    """
    least = detectable(seeds, tests, RUN_SD / math.sqrt(associations))
    of = f" in each of {tests} comparisons" if tests > 1 else ""
    mean = f"mean OCR score over {associations} associations" if associations > 1 else "OCR score"
    chance = f"{100 * POWER:.0f} % power, sd of a run {RUN_SD:g}"
    return f"{seeds} seeds show a difference in {mean} of {least:.2f} or more{of} ({chance})" if least else ""


def difference(a: Mapping[int, Seed], b: Mapping[int, Seed]) -> Difference:
    """Compare two conditions on the seeds and subjects that both have.

    Raises:
        ValueError: they have no seed and subject in common, or their groups do not match.
    """
    return mean_difference([(a, b)])


def mean_difference(pairs: Sequence[tuple[Mapping[int, Seed], Mapping[int, Seed]]]) -> Difference:
    """Compare two conditions over several associations, averaging their differences within each seed that all have.

    Raises:
        ValueError: no seed and subject in common, or groups that do not match.
    """
    both = [matched(a, b) for a, b in pairs]
    seeds = sorted(set.intersection(*(set(of) for of in both)))
    if not seeds:
        raise ValueError(_NOTHING)
    apart = [averaged([units_of(of[seed][0]) - units_of(of[seed][1]) for of in both]) for seed in seeds]
    return Difference(
        value=estimate(apart, (-2, 2)),
        p=sign_flip_p([units.mean for units in apart]),
        seeds=len(seeds),
        subjects=sum(len(of[seed][0][0].subject) for of in both for seed in seeds),
    )


def matched(a: Mapping[int, Seed], b: Mapping[int, Seed]) -> dict[int, tuple[Seed, Seed]]:
    """Both conditions' runs by seed, restricted to the subjects that both have, in the same order.

    Raises:
        ValueError: no seed and subject in common, or groups that do not match.
    """
    pairs: dict[int, tuple[Seed, Seed]] = {}
    for seed in sorted(a.keys() & b.keys()):
        runs = [*a[seed], *b[seed]]
        there = [set(run.subject) for run in runs]
        common = [name for name in runs[0].subject if all(name in names for names in there)]
        if common:
            cut = [of_subjects(run, common) for run in runs]
            _check_groups(seed, cut)
            pairs[seed] = (cut[: len(a[seed])], cut[len(a[seed]) :])
    if not pairs:
        raise ValueError(_NOTHING)
    return pairs


_NOTHING = "the two conditions have no seed and subject in common"


def _check_groups(seed: int, runs: Sequence[HeldOut]) -> None:
    """Check that all runs have the same number of answers in use and the same subjects in each group."""
    first = runs[0]
    for run in runs[1:]:
        in_use = first.ranks.shape[1], run.ranks.shape[1]
        if in_use[0] != in_use[1]:
            raise ValueError(f"their groups do not match: seed {seed} has {in_use[0]} answers in use and {in_use[1]}")
        if first.target.tolist() != run.target.tolist() or list(first.unit) != list(run.unit):
            raise ValueError(f"their groups do not match: seed {seed} puts the same people into different groups")
