from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr_eval.analysis.bootstrap import METRICS, compare, estimates, ocr_score
from ocr_eval.scoring.ranks import HeldOut


def seed_of(rng, subjects=80, infer=0.5, n=5, names=None) -> HeldOut:
    """Subjects that infer the right answer with a probability, and rank the in-use answers at random otherwise."""
    target = np.arange(subjects) % n
    ranks = np.array([rng.permutation(n) for _ in range(subjects)], dtype=float)
    for i in np.flatnonzero(rng.random(subjects) < infer):
        first = int(np.flatnonzero(ranks[i] == 0)[0])
        ranks[i, first], ranks[i, target[i]] = ranks[i, target[i]], 0.0
    return HeldOut(names or [f"s{i}" for i in range(subjects)], target, ranks)


def test_the_value_is_one_minus_rank_over_null():
    ranks = HeldOut(["a", "b"], np.array([0, 1]), np.array([[0.0, 3.0], [1.0, 2.0]]))
    assert ranks.rank.tolist() == [0.0, 2.0]
    assert ranks.null.tolist() == [1.5, 1.5]
    assert ocr_score([ranks]).value == pytest.approx(1 - 1.0 / 1.5)


def test_hand_worked_bootstrap():
    """Two subjects of scores 1 and -1/3: a resample has two, one or none of the first, 1/4, 1/2 and 1/4 of the time."""
    ranks = HeldOut(["a", "b"], np.array([0, 1]), np.array([[0.0, 3.0], [1.0, 2.0]]))
    estimate = ocr_score([ranks], draws=4000)
    assert (estimate.low, estimate.high) == pytest.approx((1 - 2 / 1.5, 1.0))


def test_subjects_that_agree_have_an_interval_of_no_width():
    ranks = HeldOut(["a", "b", "c"], np.array([0, 0, 0]), np.array([[1.0, 3.0]] * 3))
    estimate = ocr_score([ranks, ranks])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.5, 0.5, 0.5))


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = [seed_of(rng, infer=0.5) for _ in range(6)]
    apart = [seed_of(rng, infer=p) for p in (0.1, 0.9, 0.2, 0.8, 0.1, 0.9)]
    width = [(lambda e: e.high - e.low)(ocr_score(seeds)) for seeds in (alike, apart)]
    assert width[1] > 2 * width[0]


@pytest.mark.parametrize("seeds", [1, 12])
def test_the_interval_covers_the_truth_about_95_times_in_100(seeds):
    """Simulated studies with a known score; the truth is its mean over very many subjects."""
    rng = np.random.default_rng(1)
    spread = 0.0 if seeds == 1 else 0.15
    truth = ocr_score([seed_of(rng, subjects=200_000, infer=0.5)], draws=2).value
    studies = 300
    covered = 0
    for _ in range(studies):
        chances = np.clip(0.5 + rng.uniform(-spread, spread, size=seeds) * np.sqrt(3), 0, 1)
        estimate = ocr_score([seed_of(rng, subjects=40, infer=p) for p in chances], draws=300)
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / studies <= 0.985


def test_a_condition_differs_from_itself_by_exactly_nothing():
    rng = np.random.default_rng(4)
    condition = {0: seed_of(rng), 1: seed_of(rng)}
    comparison = compare(condition, condition)
    assert (comparison.difference.low, comparison.difference.value, comparison.difference.high) == (0.0, 0.0, 0.0)
    assert (comparison.subjects, comparison.seeds) == (160, 2)


def test_pairing_is_by_name_and_not_by_place():
    rng = np.random.default_rng(5)
    a = seed_of(rng)
    order = rng.permutation(80)
    b = HeldOut([a.subject[i] for i in order], a.target[order], a.ranks[order])
    difference = compare({0: a}, {0: b}).difference
    assert (difference.low, difference.high) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_pairing_narrows_the_interval_of_a_common_difference():
    rng = np.random.default_rng(6)
    easy = seed_of(rng, infer=0.6)
    harder = HeldOut(easy.subject, easy.target, easy.ranks.copy())
    for i in range(0, 80, 8):
        harder.ranks[i, harder.target[i]] += 1
    paired = compare({0: easy}, {0: harder}).difference
    apart = ocr_score([easy])
    assert paired.excludes_zero()
    assert paired.high - paired.low < (apart.high - apart.low) / 2


def naive_bootstrap(seeds: list[HeldOut], draws: int) -> np.ndarray:
    """The definition in plain loops: seeds drawn with replacement, then subjects of each drawn seed."""
    rng = np.random.default_rng(8)
    scores = []
    for _ in range(draws):
        ranks, nulls = [], []
        for k in rng.integers(0, len(seeds), size=len(seeds)):
            chosen = rng.integers(0, len(seeds[k].rank), size=len(seeds[k].rank))
            ranks.append(seeds[k].rank[chosen].mean())
            nulls.append(seeds[k].null[chosen].mean())
        scores.append(1 - np.mean(ranks) / np.mean(nulls))
    return np.quantile(scores, [0.025, 0.975])


def test_seeds_of_unequal_size_count_alike():
    """Where all ranks of a seed agree, only seeds are resampled, and every seed weighs as much as another."""
    sizes = {40: 1.0, 25: 3.0}
    seeds = [HeldOut([str(i) for i in range(n)], np.zeros(n, int), np.full((n, 2), r)) for n, r in sizes.items()]
    (found,) = estimates([seeds], ("mean-rank",), draws=400)
    assert (found["mean-rank"].low, found["mean-rank"].value, found["mean-rank"].high) == pytest.approx((1.0, 2.0, 3.0))


def test_the_interval_is_that_of_the_naive_bootstrap():
    rng = np.random.default_rng(9)
    seeds = [seed_of(rng, subjects=size, infer=infer) for size, infer in ((40, 0.3), (25, 0.6), (40, 0.5))]
    estimate = ocr_score(seeds, draws=20_000)
    assert [estimate.low, estimate.high] == pytest.approx(naive_bootstrap(seeds, 20_000), abs=0.015)


def test_a_cell_among_others_has_the_interval_it_has_alone():
    rng = np.random.default_rng(10)
    cells = [[seed_of(rng, subjects=s) for s in shape] for shape in ((20,), (20, 30), (20,), (30, 20), (20, 30))]
    together = estimates(cells, draws=300)
    for cell, found in zip(cells, together, strict=True):
        (alone,) = estimates([cell], draws=300)
        for metric in METRICS:
            assert asdict(found[metric]) == pytest.approx(asdict(alone[metric]), abs=1e-12)


def test_each_metric_is_the_mean_of_its_definition():
    ranks = HeldOut(["a", "b"], np.array([0, 1]), np.array([[0.0, 3.0], [1.0, 2.0]]))
    (found,) = estimates([[ranks]])
    assert {metric: found[metric].value for metric in METRICS} == pytest.approx(
        {"mean-rank": 1.0, "null-rank": 1.5, "ocr-score": 1 / 3, "top1": 0.5, "mrr": (1 + 1 / 3) / 2}
    )


def test_only_subjects_of_both_sides_count():
    rng = np.random.default_rng(7)
    a = seed_of(rng, subjects=10)
    b = seed_of(rng, subjects=10, names=[f"s{i}" for i in range(5, 15)])
    assert compare({0: a, 3: a}, {0: b}).subjects == 5
    with pytest.raises(ValueError, match="in common"):
        compare({0: a}, {1: b})


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        ocr_score([])
    with pytest.raises(ValueError, match="no subjects"):
        HeldOut([], np.array([], dtype=int), np.empty((0, 5)))


@given(st.integers(0, 100), st.floats(0, 1), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_value_lies_in_its_interval_and_repeats(seed, infer, count):
    rng = np.random.default_rng(seed)
    seeds = [seed_of(rng, subjects=20, infer=infer) for _ in range(count)]
    estimate = ocr_score(seeds, draws=200)
    assert estimate.low - 0.05 <= estimate.value <= estimate.high + 0.05
    assert estimate == ocr_score(seeds, draws=200)
