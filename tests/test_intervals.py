"""Intervals over seeds and paired differences: hand-worked cases, bad input, simulated studies of known truth."""

import numpy as np
import pytest
from scipy import stats
from simulated import Study

from ocr_eval.analysis.difference import difference, verdicts
from ocr_eval.analysis.intervals import METRICS, Units, above_zero, averaged, of_metric, units_of
from ocr_eval.scoring.ranks import HeldOut


def seed_of(rng, subjects=80, infer=0.5, n=5, names=None) -> HeldOut:
    """Subjects that infer the right answer with a probability, and rank the in-use answers at random otherwise."""
    target = np.arange(subjects) % n
    ranks = np.array([rng.permutation(n) for _ in range(subjects)], dtype=float)
    for i in np.flatnonzero(rng.random(subjects) < infer):
        first = int(np.flatnonzero(ranks[i] == 0)[0])
        ranks[i, first], ranks[i, target[i]] = ranks[i, target[i]], 0.0
    return HeldOut(names or [f"s{i}" for i in range(subjects)], target, ranks)


def uniform(rank: float, n: int = 3, subjects: int = 2) -> HeldOut:
    """Every subject ranks its right answer alike, so that groups of a seed do not differ."""
    target = np.repeat(np.arange(n), subjects)
    ranks = np.array([[r if r < rank else r + 1 for r in range(n - 1)] for _ in target], dtype=float)
    ranks = np.array([np.insert(row, t, rank) for row, t in zip(ranks, target, strict=True)])
    return HeldOut([f"s{i}" for i in range(len(target))], target, ranks)


def test_hand_worked_ranks_among_all_candidates_and_among_those_in_use():
    """Of ten candidates two distractors are better than the first right answer, and one is than the second."""
    held = HeldOut(["a", "b"], np.array([0, 1]), np.array([[2.0, 4.0, 7.0], [0.0, 2.0, 5.0]]))
    assert held.rank.tolist() == [2.0, 2.0]
    assert held.in_use.tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    assert held.in_use_rank.tolist() == [0.0, 1.0]
    assert held.scores.tolist() == [1.0, 0.0]
    assert held.ocr_score == 0.5
    tied = HeldOut(["a"], np.array([1]), np.array([[3.5, 3.5, 1.0]]))
    assert (tied.in_use_rank.tolist(), tied.ocr_score) == ([1.5], -0.5)


def test_hand_worked_interval():
    """Scores of 0.25, 0 and 0.5: mean 0.25, standard error 0.25 / sqrt(3), 97.5 % quantile of t(2) 4.302653."""
    found = of_metric([[uniform(rank, n=9)] for rank in (3, 4, 2)])
    half = 4.302653 * 0.25 / np.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))


def test_an_interval_ends_where_scores_end():
    assert of_metric([[uniform(rank)] for rank in (0, 2, 1)]).bounds == (-1.0, 1.0)


def test_the_interval_is_that_of_scipy_where_groups_do_not_differ():
    ranks = (0, 1, 1, 2, 1, 3)
    found = of_metric([[uniform(rank, n=9)] for rank in ranks])
    low, high = stats.ttest_1samp([1 - rank / 4 for rank in ranks], 0).confidence_interval(0.95)
    assert found.bounds == pytest.approx((low, high))
    p = stats.ttest_1samp([1 - rank / 4 for rank in ranks], 0, alternative="greater").pvalue
    assert above_zero([units_of([uniform(rank, n=9)]) for rank in ranks]) == pytest.approx(p)


def test_seeds_that_agree_by_luck_have_no_narrower_interval_than_their_groups_allow():
    """Both groups of each seed score 1 and -1: the seeds agree on 0, and their groups show an error of 1."""
    target = np.array([0, 0, 1, 1])
    ranks = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    seeds = [[HeldOut(list("abcd"), target, ranks)]] * 2
    assert units_of(seeds[0]).values.tolist() == [1.0, -1.0]
    assert units_of(seeds[0]).variance == pytest.approx(2 / 2)  # sample variance 2 of two groups
    assert of_metric(seeds).bounds == (-1.0, 1.0)


def test_one_seed_has_no_interval():
    found = of_metric([[uniform(1)]])
    assert (found.value, found.bounds) == (0.0, None)


def test_runs_of_one_seed_are_one_seed():
    """Two trainings of one data set are averaged: scores 1 and -1 make a seed of 0."""
    both = of_metric([[uniform(0), uniform(2)], [uniform(1)]])
    assert (both.value, both.bounds) == (0.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="different subjects"):
        units_of([uniform(0), uniform(0, subjects=3)])


def test_units_of_unequal_size_weigh_alike_in_the_score_and_by_their_subjects_elsewhere():
    held = HeldOut(list("abc"), np.array([0, 0, 1]), np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    units = units_of([held])
    assert (units.values.tolist(), units.weights.tolist()) == ([1.0, -1.0], [0.5, 0.5])
    assert units.mean == held.ocr_score == 0
    of_subjects = units_of([held], "top1")
    assert (of_subjects.values.tolist(), of_subjects.weights.tolist()) == ([1.0, 0.0], pytest.approx([2 / 3, 1 / 3]))
    halved = averaged([of_subjects, units_of([uniform(1)])])
    assert (halved.mean, len(halved.values)) == (pytest.approx(of_subjects.mean / 2), 1)


def test_the_mean_of_metrics_with_unequal_weights_is_that_of_their_means():
    one, other = Units(np.array([1.0, 0.0]), np.array([0.9, 0.1])), Units(np.array([0.0, 1.0]), np.array([0.1, 0.9]))
    assert averaged([one, other]).mean == pytest.approx(0.9)


def test_intervals_of_differences_stay_within_what_is_possible():
    a, b = {seed: [uniform(0)] for seed in (0, 1)}, {0: [uniform(2)], 1: [uniform(0)]}
    assert difference(a, b).value.bounds == (-2, 2)


def test_each_metric_is_the_mean_of_its_definition():
    ranks = HeldOut(["a", "b"], np.array([0, 1]), np.array([[0.0, 3.0], [1.0, 2.0]]))
    assert {metric: of_metric([[ranks]], metric).value for metric in METRICS} == pytest.approx(
        {"mean-rank": 1.0, "null-rank": 1.5, "ocr-score": 0.0, "top1": 0.5, "mrr": (1 + 1 / 3) / 2}
    )


@pytest.mark.parametrize("together", [0.0, 0.8])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
@pytest.mark.parametrize("score", [0.0, 0.3, 0.7])
def test_the_interval_holds_the_truth(together, seed_sd, score):
    """At least 92 times in 100 from three seeds on, whatever groups share and seeds differ by."""
    rng = np.random.default_rng(1)
    study = Study(score, seed_sd, together)
    truth = study.truth(rng)
    found = [of_metric(study.seeds(rng, 3)).bounds for _ in range(500)]
    assert np.mean([low <= truth <= high for low, high in found]) >= 0.915  # 0.5 % below, for 500 studies


def test_a_condition_differs_from_itself_by_exactly_nothing():
    rng = np.random.default_rng(4)
    condition = {seed: [seed_of(rng)] for seed in range(6)}
    found = difference(condition, condition)
    assert (found.value.low, found.value.value, found.value.high) == (0.0, 0.0, 0.0)
    assert (found.p, found.subjects, found.seeds) == (1.0, 480, 6)
    assert verdicts([found]) == [0]


def test_pairing_is_by_name_and_not_by_place():
    rng = np.random.default_rng(5)
    a = {seed: [seed_of(rng)] for seed in range(2)}
    order = rng.permutation(80)
    b = {seed: [run.some(order)] for seed, (run,) in a.items()}
    assert difference(a, b).value.bounds == pytest.approx((0.0, 0.0), abs=1e-12)


def test_only_seeds_and_subjects_of_both_sides_count():
    rng = np.random.default_rng(7)
    a = seed_of(rng, subjects=10)
    b = seed_of(rng, subjects=10, names=[f"s{i}" for i in range(5, 15)])
    found = difference({0: [a], 3: [a]}, {0: [b]})
    assert (found.subjects, found.seeds, found.p, found.value.bounds) == (5, 1, None, None)
    with pytest.raises(ValueError, match="in common"):
        difference({0: [a]}, {1: [b]})


def test_groups_that_do_not_pair_are_an_error():
    rng = np.random.default_rng(8)
    a = seed_of(rng, subjects=12, n=3)
    with pytest.raises(ValueError, match="3 answers in use and 4"):
        difference({0: [a]}, {0: [seed_of(rng, subjects=12, n=4)]})
    with pytest.raises(ValueError, match="different groups"):
        difference({0: [a]}, {0: [HeldOut(a.subject, (a.target + 1) % 3, a.ranks)]})


def test_verdicts_take_six_seeds_and_more_where_more_is_compared():
    def apart(seeds):
        return difference({s: [uniform(0)] for s in range(seeds)}, {s: [uniform(1)] for s in range(seeds)})

    assert verdicts([apart(5)]) == [None]
    assert verdicts([apart(6)]) == [1]
    assert verdicts([apart(6)] * 5) == [None] * 5
    assert verdicts([apart(8)] * 5) == [1] * 5


@pytest.mark.parametrize("together", [0.0, 0.8])
def test_a_difference_of_nothing_is_seldom_called_one(together):
    """Runs that move by 0.15 for reasons of their own; with independent groups it would be 8 to 24 times in 100."""
    rng = np.random.default_rng(2)
    study = Study(0.2, 0.15, together)
    found = [difference(*(dict(enumerate(study.seeds(rng, 6))) for _ in "ab")) for _ in range(400)]
    assert np.mean([verdicts([each]) != [0] for each in found]) <= 0.06
    assert np.mean([each.value.low <= 0 <= each.value.high for each in found]) >= 0.92


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        of_metric([])
    with pytest.raises(ValueError, match="no runs"):
        units_of([])
    with pytest.raises(ValueError, match="no subjects"):
        HeldOut([], np.array([], dtype=int), np.empty((0, 5)))
