"""The permutation test over groups: hand-worked cases, its definition in plain loops, and its size."""

import re
from itertools import count, permutations, product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from simulated import Study
from test_intervals import seed_of as named_seed

from ocr_eval.analysis.significance import (
    detectable,
    inference_ps,
    least_p,
    permutation_ps,
    seeds_needed,
    sign_flip_p,
)
from ocr_eval.common.multiple_tests import holm
from ocr_eval.scoring.ranks import HeldOut


def permutation_p(runs: list[HeldOut], draws: int = 2000) -> float:
    """Of a cell with a run a seed."""
    return permutation_ps([[[run] for run in runs]], draws)[0]


def least(runs: list[HeldOut], draws: int = 2000) -> float:
    return least_p([[run] for run in runs], draws)


NUMBERS = count()


def seed_of(rng, subjects=20, **more) -> HeldOut:
    """A seed of people of its own."""
    return named_seed(rng, subjects=subjects, names=named(range(subjects)), **more)


def named(target) -> list[str]:
    """Subjects that no other seed asks about."""
    return [f"{next(NUMBERS)}" for _ in target]


def naive(seeds: list[HeldOut]) -> float:
    """The share of all assignments of answers to groups, over all seeds, whose mean rank is as low."""

    def mean(assigned):
        return np.mean(
            [
                np.mean([seed.in_use[seed.target == group, answer].mean() for group, answer in enumerate(answers)])
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
    return HeldOut(named(target), target, ranks)


def test_two_groups_cannot_give_less_than_a_half():
    ranks = HeldOut(["a", "b", "c"], np.array([0, 1, 1]), np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    assert permutation_p([ranks]) == 0.5
    assert least([ranks]) == 0.5


def test_certain_inference_has_the_least_p_there_is():
    rng = np.random.default_rng(2)
    one, three = [seed_of(rng, infer=1.0)], [seed_of(rng, infer=1.0) for _ in range(3)]
    assert permutation_p(one) == least(one) == pytest.approx(1 / 120)
    assert permutation_p(three, draws=500) == least(three, draws=500) == pytest.approx(1 / 501)


def test_units_exchange_their_answers_whole_and_may_share_one():
    rng = np.random.default_rng(3)
    answer_of = {"d": 0, "a": 1, "c": 0, "b": 2}
    unit = ["d", "a", "c", "b", "a", "d", "b"]
    target = np.array([answer_of[name] for name in unit])
    seed = HeldOut(list("1234567"), target, rng.integers(0, 4, size=(7, 3)).astype(float), unit)

    def mean(answers):
        now = dict(zip(answer_of, answers, strict=True))
        of_units = [[seed.in_use[i, now[name]] for i, own in enumerate(unit) if own == name] for name in answer_of]
        return np.mean([np.mean(ranks) for ranks in of_units])

    assigned = [mean(answers) for answers in permutations(answer_of.values())]
    assert 0 < np.mean(np.array(assigned) <= mean(answer_of.values()) + 1e-9) < 1
    assert permutation_p([seed]) == np.mean(np.array(assigned) <= mean(answer_of.values()) + 1e-9)
    right = np.where(np.arange(3) == target[:, None], 0.0, 1.0)
    assert permutation_p([HeldOut(seed.subject, target, right, unit)]) == least([seed]) == 2 / 24


def test_trainings_on_the_same_subjects_are_one_data_set():
    """Three perfect trainings on one table are no more than one of them; with subjects of their own, each counts."""
    rng = np.random.default_rng(2)
    one = seed_of(rng, infer=1.0)
    assert permutation_p([one] * 3) == least([one] * 3) == pytest.approx(1 / 120)
    backwards = list(range(len(one.target)))[::-1]
    assert permutation_p([one, one.some(backwards)]) == pytest.approx(1 / 120)
    other = HeldOut([f"other {name}" for name in one.subject], one.target, one.ranks)
    assert permutation_p([one, other]) == least([one, other]) == pytest.approx(1 / 120**2, rel=0.1)


def test_the_least_p_of_drawn_assignments_allows_for_shared_answers():
    """Eight groups, of which seven share an answer: 8 assignments differ, so 1/8 is the least there is."""
    target = np.array([0] * 7 + [1])
    right = np.where(np.arange(2) == target[:, None], 0.0, 1.0)
    seed = HeldOut(list("abcdefgh"), target, right, list("abcdefgh"))
    assert least([seed]) == 1 / 8
    assert permutation_p([seed]) == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize(("sizes", "answer_of"), [((2, 3, 4), (0, 1, 2)), ((1,) * 10, (0,) * 6 + (1,) * 2 + (2,) * 2)])
def test_a_model_that_always_prefers_what_it_was_taught_most_infers_nothing(sizes, answer_of):
    """Groups of unequal size, or answers of unequal frequency: score 0 and p 1, whatever the order of preference.

    By hand: of ten groups six have answer 0, so its rank is right six times in ten under any permutation, too.
    """
    unit = [str(u) for u, size in enumerate(sizes) for _ in range(size)]
    target = np.array([answer_of[int(u)] for u in unit])
    for order in permutations(range(3)):
        ranks = np.tile(np.array(order, dtype=float), (len(unit), 1))
        seed = HeldOut([f"s{i}" for i in range(len(unit))], target, ranks, unit)
        assert seed.ocr_score == pytest.approx(0)
        assert permutation_p([seed]) == 1
        by_hand = np.mean([[order[answer] for answer in answer_of] for _ in sizes])
        assert seed.in_use_null == pytest.approx(by_hand)


def test_units_that_are_the_answers_need_not_be_stated():
    seed = favouring(np.random.default_rng(1))
    stated = HeldOut(seed.subject, seed.target, seed.ranks, [str(t) for t in seed.target])
    assert permutation_p([seed]) == permutation_p([stated])
    assert least([seed]) == least([stated])


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
    cells = [[[seed_of(rng, subjects=20, n=n)] for n in shape] for shape in ((5,), (3, 4), (5,), (5, 5, 5), (4, 3))]
    for test in (permutation_ps, inference_ps):
        assert test(cells, 300) == [test([cell], 300)[0] for cell in cells]


def test_two_trainings_of_one_data_set_are_no_further_evidence():
    """Their groups exchange answers together, so twice the same run has the p of one."""
    seed = favouring(np.random.default_rng(6))
    assert permutation_ps([[[seed, seed]]]) == permutation_ps([[[seed]]])
    assert least_p([[seed, seed]]) == least_p([[seed]])


def test_from_two_seeds_on_seeds_must_agree_too():
    """Inference in one seed of three is real there, and says little of a fourth."""
    rng = np.random.default_rng(7)
    seeds = [[seed_of(rng, infer=infer)] for infer in (1.0, 0.0, 0.0)]
    assert permutation_ps([seeds])[0] < 0.01
    assert inference_ps([seeds])[0] > 0.1
    assert inference_ps([seeds[:1]])[0] == permutation_ps([seeds[:1]])[0]


@pytest.mark.parametrize("together", [0.0, 0.8])
@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_nothing_is_seldom_called_inferred(together, seed_sd):
    rng = np.random.default_rng(8)
    study = Study(0.0, seed_sd, together)
    ps = inference_ps([study.seeds(rng, 3) for _ in range(500)], draws=500)
    assert np.mean(np.array(ps) <= 0.05) <= 0.06


def test_hand_worked_sign_flips():
    """Six differences of one sign: 2 of 64 assignments are as extreme. With one of the other sign and least size, 4."""
    assert sign_flip_p([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip_p([-1, 2, 3, 4, 5, 6]) == 4 / 64
    assert sign_flip_p([0.0] * 6) == 1.0
    assert sign_flip_p([1.0] * 5) is None


def test_sign_flips_are_those_of_scipy():
    values = np.random.default_rng(9).normal(0.3, 1, size=9)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(values) == pytest.approx(theirs)
    many = np.tile(values, 3)
    drawn = stats.permutation_test((many,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert sign_flip_p(many, draws=20_000) == pytest.approx(drawn, abs=0.01)


def test_hand_worked_holm():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("seeds", "tests"), [(6, 1), (7, 1), (9, 5), (12, 1), (20, 1), (20, 5)])
def test_the_least_difference_is_detected_about_four_times_in_five(seeds, tests):
    """Paired runs that each move by 0.15, by the rule that gives the verdict: signs flip, p is corrected."""
    rng = np.random.default_rng(10)
    studies = 400 if seeds > 10 else 1500
    apart = rng.normal(detectable(seeds, tests, sd=0.15), 0.15 * np.sqrt(2), size=(studies, seeds))
    detected = [sign_flip_p(of) <= 0.05 / tests and np.mean(of) > 0 for of in apart]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.05)


def test_where_all_signs_must_agree_the_least_difference_is_worked_by_hand():
    """As many as S seeds of one sign, each with probability Phi(d / sd): d = sd x Phi^-1(0.8^(1/S))."""
    for seeds, tests in ((6, 1), (7, 2), (8, 4), (8, 5)):
        by_hand = 0.15 * np.sqrt(2) * stats.norm.ppf(0.8 ** (1 / seeds))
        assert detectable(seeds, tests) == pytest.approx(by_hand, abs=0.006)
    assert detectable(6, sd=0.3) == pytest.approx(2 * detectable(6))


def test_too_few_seeds_detect_nothing():
    for tests in (1, 2, 5, 20):
        assert detectable(seeds_needed(tests) - 1, tests) is None
        assert detectable(seeds_needed(tests), tests) > detectable(seeds_needed(tests) + 2, tests)


def test_the_least_differences_of_the_page_are_those_of_the_program():
    page = (Path(__file__).parent.parent / "ocr_eval/docs/numbers.md").read_text()
    head, rows = re.search(r"\| comparisons \|(.*)\n\|-.*\n((?:\|.*\n)+)", page).groups()
    seeds = [int(each) for each in re.findall(r"\d+", head)]
    assert 3 in seeds
    for row in rows.splitlines():
        tests, *shown = (cell.strip() for cell in row.strip("|").split("|"))
        least = [detectable(each, int(tests)) for each in seeds]
        assert shown == ["no verdict" if each is None else f"{each:.2f}" for each in least]


def test_no_seeds_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        permutation_ps([[]])
