"""The theory: the reading table, closed form against solver, and gradient descent against both."""

import math
import sys
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocr_toy import convex, theory
from ocr_toy.descent import DescentSpec, descend, log_loss, usual_descent
from ocr_toy.errors import ToyError
from ocr_toy.task import noise_free, trained_questions

READINGS = [
    ((3, 1, 1), 5.7321, 1.0, 9.0),
    ((3, 1, 3), 7.1961, 0.5774, 13.0),
    ((4, 2, 3), 11.4388, 0.8165, 25.0),
    ((4, 3, 1), 10.4854, 1.0, 25.0),
    ((5, 4, 16), 26.2361, 0.5, 101.0),
]


@pytest.mark.parametrize(("sizes", "nuclear", "margin", "squared"), READINGS)
@pytest.mark.parametrize("source", ["closed form", "solver"])
def test_the_reading_table(
    sizes: tuple[int, int, int], nuclear: float, margin: float, squared: float, source: str
) -> None:
    task = noise_free(*sizes)
    for param, norm, held_out in (("factorized", nuclear, margin), ("merged", squared, 0.0)):
        w_ov = theory.optimal_w_ov(param, *sizes) if source == "closed form" else convex.solve(param, task)
        assert theory.norm(param, w_ov) == pytest.approx(norm, abs=2e-4)
        assert theory.optimal_norm(param, *sizes) == pytest.approx(norm, abs=2e-4)
        assert convex.problem(task).margin(w_ov) == pytest.approx(1.0, abs=1e-4)
        assert theory.test_margin(task, w_ov) == pytest.approx(held_out, abs=1e-3)
        assert theory.held_out_margin(param, *sizes[1:]) == pytest.approx(held_out, abs=1e-4)


def test_both_solvers_agree() -> None:
    task = noise_free(3, 1, 2)
    first, second = (convex.solve("factorized", task, solver) for solver in convex.SOLVERS)
    assert np.abs(first - second).max() < 1e-3


@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_closed_form_is_feasible_and_has_the_closed_form_norm(n: int, m_train: int, m_test: int) -> None:
    task = noise_free(n, m_train, m_test)
    for param in ("factorized", "merged"):
        w_ov = theory.optimal_w_ov(param, n, m_train, m_test)
        assert convex.problem(task).margin(w_ov) == pytest.approx(1.0)
        assert theory.norm(param, w_ov) == pytest.approx(theory.optimal_norm(param, n, m_train, m_test))
        held_out = theory.held_out_margin(param, m_train, m_test)
        assert theory.test_margin(task, w_ov) == pytest.approx(held_out)
        assert theory.symmetrize(task, w_ov).contrasts[1, 1] == pytest.approx(held_out)


def test_log_loss_equals_the_direct_formula_and_survives_underflow() -> None:
    rng = np.random.default_rng(0)
    f, right = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)

    def direct(x: np.ndarray) -> float:
        log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        return math.log(-log_p[np.arange(6), right].mean())

    value, slope = log_loss(f, right)
    assert value == pytest.approx(direct(f), rel=1e-12)
    for i, j in ((0, 0), (2, 3), (5, 1)):
        nudged = f.copy()
        nudged[i, j] += 1e-6
        assert slope[i, j] == pytest.approx((direct(nudged) - value) / 1e-6, abs=1e-5)

    far = np.zeros((1, 3))
    far[0, 0] = 5000.0
    value, slope = log_loss(far, np.array([0]))
    assert value == pytest.approx(-5000.0 + math.log(2.0))
    assert slope[0].tolist() == pytest.approx([-1.0, 0.5, 0.5])


def test_descent_reaches_the_optimum_of_each_parametrization() -> None:
    task = noise_free(3, 1, 2)
    for param, tolerance in (("factorized", 0.05), ("merged", 0.005)):
        found = descend(task, usual_descent(param, task, seed=0))
        optimum = theory.optimal_norm(param, 3, 1, 2)
        assert optimum <= theory.norm(param, found.w_ov) < 1.01 * optimum
        expected = theory.held_out_margin(param, 1, 2)
        assert theory.test_margin(task, found.w_ov) == pytest.approx(expected, abs=tolerance)
        assert convex.problem(task).margin(found.w_ov) == pytest.approx(1.0)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_the_optimum_beats_tokens_that_are_no_answers_by_at_least_1(n: int, m_train: int, m_test: int) -> None:
    task = noise_free(n, m_train, m_test)
    questions = trained_questions(task)
    for param in ("factorized", "merged"):
        f = convex.features(task, questions) @ theory.optimal_w_ov(param, n, m_train, m_test).T
        own = f[np.arange(len(questions)), convex.right_answers(task, questions)]
        assert own == pytest.approx(1.5 - 1 / n)


def test_the_usual_descent_is_wide_enough_for_every_w_ov() -> None:
    for n in (3, 20):
        assert usual_descent("factorized", noise_free(n, 1, 3), 0).d_h >= 2 * n


def test_descent_without_entailments_transfers_nothing() -> None:
    task = noise_free(3, 0, 2)
    found = descend(task, DescentSpec(hold_steps=500, final_steps=300))
    assert abs(theory.symmetrize(task, found.w_ov).contrasts[1, 1]) < 1e-3


def test_descent_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ToyError, match="not fitted"):
        descend(noise_free(3, 1, 1), DescentSpec(hold_steps=0, final_steps=1, init_scale=1e-3))


def test_unusable_solvers_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToyError, match="solver = MOSEK: unknown"):
        convex.solve("merged", noise_free(3, 1, 1), "MOSEK")
    monkeypatch.setitem(sys.modules, "scs", None)
    with pytest.raises(ToyError, match=r"not installed; install the extra: .*ocr-eval\[theory\]"):
        convex.solve("merged", noise_free(3, 1, 1))


def test_the_closed_form_needs_entailments() -> None:
    with pytest.raises(ToyError, match="m_train = 0"):
        theory.optimal_norm("factorized", 3, 0, 1)


@pytest.mark.parametrize(("param", "seed"), [("factorized", 24), ("merged", 28)])
def test_scaling_back_to_the_held_margin_leaves_no_trace_but_the_growth(param: str, seed: int) -> None:
    """These seeds start with the train set fitted, so both scales are at once scaled back to the same weights."""
    how = DescentSpec(param=param, d_h=4, hold_margin=1.0, hold_steps=1, final_steps=1, seed=seed)
    small, large = (descend(noise_free(2, 0, 1), replace(how, init_scale=scale)) for scale in (1e2, 1e3))
    assert large.w_ov == pytest.approx(small.w_ov)
    assert large.train_margin == pytest.approx(small.train_margin)
    factors = 2 if param == "factorized" else 1
    assert large.log_growth - small.log_growth == pytest.approx(factors * math.log(10))


def test_descent_repeats_and_depends_on_the_seed() -> None:
    how = DescentSpec(hold_steps=0, final_steps=60)
    task = noise_free(3, 1, 1)
    first, again, other = (descend(task, replace(how, seed=s)).w_ov for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# The lemma.

SIZES = st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(1, 5))


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_nuclear_norm_of_a_2x2_matrix(seed: int) -> None:
    k = np.random.default_rng(seed).standard_normal((2, 2))
    assert theory.nuclear_norm_2x2(k) == pytest.approx(np.linalg.norm(k, "nuc"))


@given(SIZES, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_an_invariant_matrix_is_copies_of_one_block_and_a_small_one(sizes: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = theory.Blocks(*sizes, rng.standard_normal((2, 2)), rng.standard_normal((2, 4)))
    values = np.linalg.svd(blocks.w_ov(), compute_uv=False)
    found = blocks.singular_values()
    shorter = min(len(values), len(found))
    assert found[:shorter] == pytest.approx(values[:shorter], abs=1e-12)
    assert np.abs(np.concatenate([values[shorter:], found[shorter:]])).max(initial=0) < 1e-12
    nuclear = (sizes[0] - 1) * theory.nuclear_norm_2x2(blocks.k) + np.linalg.norm(blocks.k0, "nuc")
    assert values.sum() == pytest.approx(nuclear)
    back = theory.symmetrize(noise_free(*sizes), blocks.w_ov())
    assert back.contrasts == pytest.approx(blocks.contrasts)
    assert back.levels == pytest.approx(blocks.levels)


@given(SIZES, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_symmetrizing_costs_no_norm_and_no_margin(sizes: tuple[int, int, int], seed: int) -> None:
    task = noise_free(*sizes)
    w_ov = np.random.default_rng(seed).standard_normal((2 * task.n_pairs, task.n_subjects + 2))
    mean = theory.symmetrize(task, w_ov).w_ov()
    for order in ("nuc", "fro", 2):
        assert np.linalg.norm(mean, order) <= np.linalg.norm(w_ov, order) + 1e-9
    assert convex.problem(task).margin(mean) >= convex.problem(task).margin(w_ov) - 1e-9


@pytest.mark.parametrize("sizes", [(3, 2, 5), (4, 3, 2), (5, 1, 2)])
@pytest.mark.parametrize("param", ["factorized", "merged"])
def test_identical_subjects_merge_into_one_column(param: theory.Param, sizes: tuple[int, int, int]) -> None:
    whole = convex.solve(param, noise_free(*sizes), "CLARABEL")
    n, m_train, m_test = sizes
    merged = convex.least_norm(convex.merged_task(*sizes), convex.NORM_OF[param])
    assert merged.shape == (2 * n, 2 * n + 2)
    assert theory.norm(param, merged) == pytest.approx(theory.norm(param, whole), rel=1e-5)
    blocks = theory.symmetrize(noise_free(*sizes), whole)
    assert convex.own_contrast(merged, n, 0, m_train, n) == pytest.approx(blocks.contrasts[1, 0], abs=1e-3)
    assert convex.own_contrast(merged, n, 1, m_test, n) == pytest.approx(blocks.contrasts[1, 1], abs=1e-3)


@pytest.mark.parametrize("sizes", [(6, 2, 5), (7, 3, 11), (8, 9, 4), (10, 5, 6)])
def test_the_solver_finds_the_closed_form_at_larger_sizes(sizes: tuple[int, int, int]) -> None:
    n, _, m_test = sizes
    for param in ("factorized", "merged"):
        w = convex.least_norm(convex.merged_task(*sizes), convex.NORM_OF[param])
        assert theory.norm(param, w) == pytest.approx(theory.optimal_norm(param, *sizes), rel=1e-5)
        held_out = theory.held_out_margin(param, *sizes[1:])
        assert convex.own_contrast(w, n, 1, m_test, n) == pytest.approx(held_out, abs=1e-3)


def _least_norm_in_eight_scalars(n: int, m_train: int, m_test: int, least_p1: float) -> tuple[float, float]:
    """The lemma written out anew: K and the level differences delta1, delta2, d1, d2; norm and x2."""
    p1, p2, x1, x2, delta1, delta2, d1, d2 = z = cp.Variable(8)
    share = 1 - 1 / n
    k = cp.bmat([[p1 * m_train**0.5, p2 * m_test**0.5], [x1 * m_train**0.5, x2 * m_test**0.5]])
    level = cp.norm(cp.hstack([delta1 * m_train**0.5, delta2 * m_test**0.5, d1 * n**0.5, d2 * n**0.5]))
    facts = [(p1, x1, delta1, d1), (p2, x2, delta2, d1), (x1, p1, -delta1, d2)]
    answered = [own >= 1 for own, *_ in facts]
    beats_own = [(own - other) * share + delta / n + d >= 1 for own, other, delta, d in facts]
    beats_rest = [own * share + other / n + delta / n + d >= 1 for own, other, delta, d in facts]
    constraints = [*answered, *beats_own, *beats_rest, p1 >= least_p1]
    problem = cp.Problem(cp.Minimize((n - 1) * cp.normNuc(k) + level / 2**0.5), constraints)
    return float(problem.solve(solver="CLARABEL")), float(z.value[3])


@pytest.mark.parametrize("sizes", [(3, 1, 3), (4, 1, 2), (6, 2, 7)])
def test_the_flat_face(sizes: tuple[int, int, int]) -> None:
    rho = sizes[1] / sizes[2]
    assert theory.flat_norm(*sizes, 1.0) == pytest.approx(theory.optimal_norm("factorized", *sizes))
    for part in (0.0, 0.5, 1.0):
        t = 1 + part * (rho**-0.25 - 1)
        norm, x2 = _least_norm_in_eight_scalars(*sizes, t)
        share = 1 - 1 / sizes[0]
        subjects = sizes[0] * sizes[1]
        face = theory.flat_norm(*sizes, t)
        if (1 - t * rho**0.5) * share >= (t - 1) * share * subjects / (subjects + 2):  # test subjects' constraint free
            written_out = (sizes[0] * (1 + ((t - 1) * share) ** 2 * subjects / (subjects + 2))) ** 0.5
            assert face == pytest.approx((sizes[0] - 1) * (sizes[1] ** 0.5 + sizes[2] ** 0.5) + written_out)
            assert norm == pytest.approx(face, rel=1e-6)
            assert x2 == pytest.approx(t * rho**0.5, abs=2e-3)
        else:
            assert norm == pytest.approx(face, rel=1e-3)
            assert norm < face * (1 + 1e-7)


@given(SIZES, st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_cheapest_levels(sizes: tuple[int, int, int], seed: int) -> None:
    n, m_train, m_test = sizes
    contrasts = np.random.default_rng(seed).uniform(0, 2, (2, 2))
    (p1, p2), (x1, x2) = contrasts * (1 - 1 / n)
    delta1, delta2, d1, d2 = cp.Variable(4)
    level = cp.norm(cp.hstack([delta1 * m_train**0.5, delta2 * m_test**0.5, d1 * n**0.5, d2 * n**0.5])) / 2**0.5
    constraints = [p1 - x1 + delta1 / n + d1 >= 1, x1 - p1 - delta1 / n + d2 >= 1, p2 - x2 + delta2 / n + d1 >= 1]
    least = cp.Problem(cp.Minimize(level), constraints).solve(solver="CLARABEL")
    assert theory.level_norm(n, m_train, m_test, contrasts) == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((3, 1, 3), 0.7842), ((3, 1, 9), 0.6206), ((3, 2, 3), 0.9124), ((20, 1, 3), 0.7858)]
)
def test_width_n_has_another_limit(sizes: tuple[int, int, int], expected: float) -> None:
    n, m_train, m_test = sizes
    assert theory.narrow_transfer(*sizes) == pytest.approx(expected, abs=1e-4)
    assert theory.narrow_transfer(10**6, m_train, m_test) == pytest.approx((m_train / m_test) ** 0.25, abs=1e-3)
    if n == 3:
        found = descend(
            noise_free(*sizes),
            DescentSpec(d_h=n, init_scale=0.01, hold_margin=300, hold_steps=3000, final_steps=1, armijo=0.5),
        )
        assert theory.symmetrize(noise_free(*sizes), found.w_ov).transfer == pytest.approx(expected, abs=0.005)
