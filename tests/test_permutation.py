"""The permutation test over groups: hand-worked cases, its definition in plain loops, and its size."""

from itertools import permutations, product

import numpy as np
import pytest
from test_intervals import seed_of

from ocr_eval.analysis.permutation import least_p, permutation_p, permutation_ps
from ocr_eval.scoring.ranks import HeldOut


def naive(seeds: list[HeldOut]) -> float:
    """The share of all assignments of answers to groups, over all seeds, whose mean rank is as low."""

    def mean(assigned):
        return np.mean(
            [
                np.mean([seed.ranks[i, answers[group]] for i, group in enumerate(seed.target)])
                for seed, answers in zip(seeds, assigned, strict=True)
            ]
        )

    observed = mean([range(seed.ranks.shape[1]) for seed in seeds])
    assignments = list(product(*(permutations(range(seed.ranks.shape[1])) for seed in seeds)))
    return sum(mean(assigned) <= observed + 1e-9 for assigned in assignments) / len(assignments)


def favouring(rng, n=5, subjects=16, follow=0.8) -> HeldOut:
    """Groups that each have a favourite answer, whatever the true one: no inference, and no independent subjects."""
    target = np.repeat(np.arange(n), subjects)
    favourite = rng.integers(0, n, size=n)
    ranks = np.array([rng.permutation(n) for _ in target], dtype=float)
    for i in np.flatnonzero(rng.random(len(target)) < follow):
        first = int(np.flatnonzero(ranks[i] == 0)[0])
        answer = favourite[target[i]]
        ranks[i, first], ranks[i, answer] = ranks[i, answer], 0.0
    return HeldOut([str(i) for i in range(len(target))], target, ranks)


def test_two_groups_cannot_give_less_than_a_half():
    ranks = HeldOut(["a", "b", "c"], np.array([0, 1, 1]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    assert permutation_p([ranks]) == 0.5
    assert least_p([ranks]) == 0.5


def test_certain_inference_has_the_least_p_there_is():
    rng = np.random.default_rng(2)
    one, three = [seed_of(rng, infer=1.0)], [seed_of(rng, infer=1.0) for _ in range(3)]
    assert permutation_p(one) == least_p(one) == pytest.approx(1 / 120)
    assert permutation_p(three, draws=500) == least_p(three, draws=500) == pytest.approx(1 / 501)


def test_units_exchange_their_answers_whole_and_may_share_one():
    rng = np.random.default_rng(3)
    answer_of = {"d": 0, "a": 1, "c": 0, "b": 2}
    unit = ["d", "a", "c", "b", "a", "d", "b"]
    target = np.array([answer_of[name] for name in unit])
    seed = HeldOut(list("1234567"), target, rng.integers(0, 4, size=(7, 3)).astype(float), unit)

    def mean(answers):
        now = dict(zip(answer_of, answers, strict=True))
        return np.mean([seed.ranks[i, now[name]] for i, name in enumerate(unit)])

    assigned = [mean(answers) for answers in permutations(answer_of.values())]
    assert 0 < np.mean(np.array(assigned) <= mean(answer_of.values()) + 1e-9) < 1
    assert permutation_p([seed]) == np.mean(np.array(assigned) <= mean(answer_of.values()) + 1e-9)
    right = np.where(np.arange(3) == target[:, None], 0.0, 1.0)
    assert permutation_p([HeldOut(seed.subject, target, right, unit)]) == least_p([seed]) == 2 / 24


def test_units_that_are_the_answers_need_not_be_stated():
    seed = favouring(np.random.default_rng(1))
    stated = HeldOut(seed.subject, seed.target, seed.ranks, [str(t) for t in seed.target])
    assert permutation_p([seed]) == permutation_p([stated])
    assert least_p([seed]) == least_p([stated])


def test_ties_count_as_low():
    for subjects in range(2, 30):
        ranks = np.full((subjects, 3), 1.5)
        seed = HeldOut([str(i) for i in range(subjects)], np.arange(subjects) % 3, ranks)
        assert permutation_p([seed]) == 1.0
        assert permutation_p([seed] * 6, draws=50) == 1.0


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 3, 3)])
def test_it_is_its_definition_in_plain_loops(shape):
    rng = np.random.default_rng(sum(shape))
    seeds = [seed_of(rng, subjects=14, infer=0.2, n=n) for n in shape]
    assert permutation_p(seeds) == pytest.approx(naive(seeds))


def test_drawn_assignments_agree_with_all_of_them():
    rng = np.random.default_rng(4)
    seeds = [seed_of(rng, subjects=12, infer=0.1, n=4) for _ in range(3)]  # 13,824 assignments
    fourth = HeldOut(["x"], np.array([0]), np.zeros((1, 2)))  # all ties: changes nothing but their number
    assert permutation_p([*seeds, fourth], draws=20_000) == pytest.approx(permutation_p(seeds), abs=0.02)


def test_it_keeps_its_level_where_a_groups_subjects_all_err_alike():
    rng = np.random.default_rng(5)
    for seeds in (1, 3):
        values = np.array([permutation_p([favouring(rng) for _ in range(seeds)], draws=500) for _ in range(400)])
        assert np.mean(values <= 0.05) <= 0.08
        assert 0.4 <= values.mean() <= 0.7


def test_a_cell_among_others_has_the_p_it_has_alone():
    rng = np.random.default_rng(10)
    cells = [[seed_of(rng, subjects=20, n=n) for n in shape] for shape in ((5,), (3, 4), (5,), (5, 5, 5), (4, 3))]
    assert permutation_ps(cells, 300) == [permutation_p(cell, 300) for cell in cells]


def test_no_seeds_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        permutation_p([])
