"""Mitigations: each closed form against a solver that does not use it, and runs against the predictions."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
from ocr_toy import changed_data, convex, mitigation, remedies, theory
from ocr_toy.changed_data import entailments
from ocr_toy.convex import Group
from ocr_toy.errors import ToyError
from ocr_toy.remedy import Remedy, checks
from ocr_toy.task import noise_free


def _held_out(n: int, groups: tuple[Group, ...], rows: int | None = None) -> float:
    """x by the solver: own-minus-other c of the last group, at train margin 1."""
    w = convex.least_norm(convex.merged_problem(n, groups, rows))
    return convex.own_contrast(w, n, len(groups) - 1, groups[-1].size, n)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (3, 1, 3), (4, 2, 3)])
def test_schatten_norms_against_the_solver_and_the_stationary_equation(sizes: tuple[int, int, int]) -> None:
    n, m_train, m_test = sizes
    for kind, p in (("nuclear", 1.0), ("frobenius", 2.0), ("schatten4", 4.0)):
        w = convex.least_norm(convex.merged_task(*sizes), kind)
        x = convex.own_contrast(w, n, 1, m_test, n)
        assert x == pytest.approx(mitigation.schatten_transfer(m_train, m_test, p), abs=1e-3)
    for p in (1.25, 1.5, 3.0, 8.0):
        x = mitigation.schatten_transfer(m_train, m_test, p)
        total, product = 2 * m_train + m_test * (1 + x * x), m_train * m_test * (1 - x) ** 2
        s, t = (total + np.array([1, -1]) * math.sqrt(total**2 - 4 * product)) / 2
        shrinks = m_train * (t ** (p / 2 - 1) - s ** (p / 2 - 1)) / (s ** (p / 2) - t ** (p / 2))
        assert x / (1 - x) == pytest.approx(shrinks, abs=1e-5)
        assert (x > 0) == (p < 2)
    assert mitigation.schatten_transfer(m_train, m_test, math.inf) == pytest.approx(
        mitigation.schatten_transfer(m_train, m_test, 500.0), abs=0.01
    )


@pytest.mark.parametrize(("n", "right", "wrong", "m_test"), [(3, 4, 2, 3), (4, 3, 3, 3), (5, 4, 4, 2), (3, 1, 2, 3)])
def test_label_noise_against_the_solver(n: int, right: int, wrong: int, m_test: int) -> None:
    others = tuple(Group(wrong / (n - 1), entailments(n, shift)) for shift in range(1, n))
    x = _held_out(n, (Group(right, entailments(n)), *others, Group(m_test)))
    expected = mitigation.noisy_transfer(n, right + wrong, m_test, wrong / (right + wrong))
    assert x == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("sizes", [(1, 3, 1), (2, 3, 2), (3, 2, 1)])
def test_abstaining_against_the_solver(sizes: tuple[int, int, int]) -> None:
    m_train, m_test, m_abstain = sizes
    n = 3
    groups = (Group(m_train, entailments(n)), Group(m_abstain, entailments(n)), Group(m_test))
    of = convex.merged_problem(n, groups)
    targets = of.targets.copy()
    asked = [q for q in range(len(targets)) if of.phi[q, n : 2 * n].any() and of.phi[q, -1]]
    targets[asked, n:] = True  # every c, so that none is preferred
    w = convex.least_norm(convex.Problem(of.phi, targets, of.sizes))
    x = convex.own_contrast(w, n, 2, m_test, n)
    assert x == pytest.approx(mitigation.abstaining_transfer(m_train, m_test, m_abstain), abs=1e-3)
    assert x < m_train / (m_train + m_abstain)


@pytest.mark.parametrize("sizes", [(1, 1, 3), (3, 1, 2), (2, 3, 4)])
def test_competing_entailments_against_the_solver(sizes: tuple[int, int, int]) -> None:
    first, second, m_test = sizes
    n = 3
    groups = (Group(first, entailments(n)), Group(second, entailments(n, first=2 * n)), Group(m_test))
    w = convex.least_norm(convex.merged_problem(n, groups, 3 * n))
    x, other = (convex.own_contrast(w, n, 2, m_test, row) for row in (n, 2 * n))
    assert x == pytest.approx(mitigation.competing_transfer(*sizes), abs=1e-3)
    assert x + other == pytest.approx(1.0, abs=1e-3)


def _unequal_in_blocks(counts: tuple[int, int], m_train: tuple[int, int], m_test: int) -> tuple[float, list[float]]:
    """The lemma for two classes of pairs, written out anew: one K for each class and a shared K0 of [4, 6].

    own, rest, away [set, (class, group)]: what a subject adds to its own answer, to its class's, to the other
    class's. level [(class, set), relation]. Returns the norm and each class's held-out margin over the other c's.
    """
    own, rest, away, level = cp.Variable((2, 4)), cp.Variable((2, 4)), cp.Variable((2, 4)), cp.Variable((4, 2))
    sizes = [(k, g, (m_train[k], m_test)[g]) for k in (0, 1) for g in (0, 1)]  # a column of own is 2 k + g
    norm, constraints = 0.0, []
    columns: list[list[object]] = []
    for k, g, m in sizes:
        at, n, other = 2 * k + g, counts[k], counts[1 - k]
        within = [m**0.5 * (own[a, at] + (n - 1) * rest[a, at]) for a in (0, 1)]
        across = [m**0.5 * (n * other) ** 0.5 * away[a, at] for a in (0, 1)]
        columns.append([within[0], within[1], across[0], across[1]] if k == 0 else [across[0], across[1], *within])
        for relation in (0, 1) if m and g == 0 else (0,) if m else ():
            right = own[relation, at] + level[2 * k + relation, relation]
            for a in (0, 1):
                here, there = level[2 * k + a, relation], level[2 * (1 - k) + a, relation]
                rivals = [away[a, at] + there] + ([rest[a, at] + here] if n > 1 else [])
                rivals += [own[a, at] + here] if a != relation else []
                constraints += [right - rival >= 1 for rival in rivals]
    for relation in (0, 1):
        columns.append([counts[row // 2] ** 0.5 * level[row, relation] for row in range(4)])
    for k, n in enumerate(counts):
        block = [
            [(m_train[k], m_test)[g] ** 0.5 * (own[a, 2 * k + g] - rest[a, 2 * k + g]) for g in (0, 1)] for a in (0, 1)
        ]
        norm += (n - 1) * cp.normNuc(cp.bmat(block)) if n > 1 else 0.0
    norm += cp.normNuc(cp.bmat(columns))
    least = cp.Problem(cp.Minimize(norm), constraints).solve(solver="CLARABEL")
    margins = []
    for k, n in enumerate(counts):
        other_cs = [away.value[1, 2 * k + 1], *([rest.value[1, 2 * k + 1]] if n > 1 else [])]
        margins.append(float(own.value[1, 2 * k + 1] - max(other_cs)))
    return float(least), margins


@pytest.mark.parametrize(
    ("counts", "m_train", "m_test"),
    [((1, 2), (0, 2), 2), ((2, 2), (1, 4), 4), ((5, 5), (1, 4), 4), ((1, 9), (0, 2), 2)],
)
def test_unequal_pairs_against_the_lemma_for_two_classes(
    counts: tuple[int, int], m_train: tuple[int, int], m_test: int
) -> None:
    sizes = [m for m, count in zip(m_train, counts, strict=True) for _ in range(count)]
    problem = changed_data.unequal_problem(sizes, m_test)
    w = convex.least_norm(problem, solver="SCS" if sum(counts) > 6 else "CLARABEL")
    norm, margins = _unequal_in_blocks(counts, m_train, m_test)
    assert theory.norm("factorized", w) == pytest.approx(norm, rel=1e-4)
    assert changed_data.class_margins(w, problem, sizes, m_test) == pytest.approx(margins, abs=3e-3)


def test_the_unequal_pairs_worked_out_before() -> None:
    for m_train, m_test, *published in changed_data.UNEQUAL:
        counts = (m_train.count(m_train[0]), m_train.count(m_train[-1]))
        _, margins = _unequal_in_blocks(counts, (m_train[0], m_train[-1]), m_test)
        assert margins == pytest.approx(published, abs=2e-3)


def test_the_price_of_a_margin_is_a_difference_of_norms() -> None:
    sizes = (5, 2, 3)
    frobenius = convex.least_norm(convex.merged_task(*sizes), "frobenius")
    paid = theory.norm("factorized", frobenius) - theory.optimal_norm("factorized", *sizes)
    assert mitigation.price(*sizes, 0.0) == pytest.approx(paid, abs=1e-4)
    assert mitigation.price(*sizes, theory.held_out_margin("factorized", 2, 3)) == 0.0


def test_limits_of_the_closed_forms() -> None:
    for m_train, m_test in itertools.product((1, 2, 4), (1, 3)):
        square_root = min(1.0, math.sqrt(m_train / m_test))
        assert mitigation.noisy_transfer(4, m_train, m_test, 0.0) == pytest.approx(square_root)
        assert mitigation.abstaining_transfer(m_train, m_test, 0.0) == pytest.approx(square_root)
        assert mitigation.noisy_transfer(4, m_train, m_test, 0.75) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("factors", "product"), [(1e-3, 0.0), (2e-3, 1e-4), (0.0, 1e-3)])
def test_the_decayed_minimum_against_descent_on_the_factors(factors: float, product: float) -> None:
    task = noise_free(4, 1, 2)
    predicted = mitigation.decayed(task, factors, product)
    transfer, objective = remedies.trained_minimum(task, factors, product, seed=3)
    assert objective == pytest.approx(predicted.objective, rel=1e-5)
    assert transfer == pytest.approx(predicted.transfer, abs=5e-3)


@pytest.mark.parametrize(
    ("methods", "rows"), [(("label-noise",), 3), (("abstaining", "competing"), 6), (("decay",), 6)]
)
def test_runs_meet_their_predictions(methods: tuple[str, ...], rows: int) -> None:
    report = remedies.report([1], lambda line: None, methods)
    assert len(report.data["rows"]) == rows
    assert [c.name for c in report.checks if not c.passed] == []


def test_a_prediction_that_a_run_misses_fails() -> None:
    def row(tolerance: float | None) -> Remedy:
        return Remedy("a", "b", 1, None, 0.5, (0.5, 0.53), "", "nats", 1.0, (1.0, 1.02), tolerance=tolerance)

    assert [c.passed for c in checks(row(0.02))] == [False, True]
    assert [c.passed for c in checks(row(0.04))] == [True, True]
    assert list(checks(row(None))) == []


def test_an_unknown_mitigation_is_an_error() -> None:
    with pytest.raises(ToyError, match="method = prayer: unknown"):
        remedies.report([0], lambda line: None, ["prayer"])
