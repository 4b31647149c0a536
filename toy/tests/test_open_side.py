"""The factorized model with a trained W_KQ: the closed form against reweighted nuclear norms, and descent."""

import cvxpy as cp
import numpy as np
import pytest
from ocr_toy import convex, open_side, theory
from ocr_toy.descent import DescentSpec, _Weights, descend, log_loss
from ocr_toy.task import noise_free

SIZES = [(3, 1, 3), (3, 2, 3), (4, 1, 2), (3, 2, 1)]


def _reweighted(n: int, m_train: int, m_test: int) -> tuple[float, float]:
    """min ||A||^2 / 2 + sum_j c_j ||u_j||, Z = A U^T, by turns: weights, then a nuclear norm of weighted columns.

    Identical subjects share a column of U scaled by sqrt(m), of which there are m of length 1 / sqrt(m) each.
    """
    of = convex.merged_task(n, m_train, m_test)
    cost = np.sqrt(np.repeat([m_train, m_test, 1.0], [n, n, 2]))
    own = of.targets.T.astype(float)
    z, scale = cp.Variable((2 * n, 2 * n + 2)), cp.Parameter(2 * n + 2, nonneg=True)
    f = z @ of.phi.T
    gap = np.ones((2 * n, 1)) @ cp.reshape(cp.sum(cp.multiply(own, f), axis=0), (1, own.shape[1]), order="C") - f
    problem = cp.Problem(cp.Minimize(cp.normNuc(z @ cp.diag(scale))), [gap >= 1 - own])
    length = np.ones(2 * n + 2)
    for _ in range(30):
        scale.value = np.sqrt(cost / length)
        problem.solve(solver="CLARABEL")
        _, s, vt = np.linalg.svd(z.value * scale.value, full_matrices=False)
        length = np.linalg.norm(np.sqrt(s)[:, None] * vt, axis=0) / scale.value
    value = s.sum() / 2 + (cost * length).sum()
    x = convex.own_contrast(z.value, n, 1, m_test, n) / convex.own_contrast(z.value, n, 0, m_train, n)
    return float(value), x


@pytest.mark.parametrize("sizes", SIZES)
def test_the_factorized_value(sizes: tuple[int, int, int]) -> None:
    value, x = _reweighted(*sizes)
    low, high = open_side.transfer_interval(*sizes[1:])
    assert value == pytest.approx(open_side.factorized_value(*sizes), rel=1e-4)
    assert low - 5e-3 <= x <= high + 5e-3


@pytest.mark.parametrize("sizes", SIZES)
def test_the_merged_value_is_a_group_lasso(sizes: tuple[int, int, int]) -> None:
    task = noise_free(*sizes)
    z = convex.least_norm(convex.problem(task), "columns")
    assert np.linalg.norm(z, axis=0).sum() == pytest.approx(open_side.merged_value(*sizes), rel=1e-5)
    assert theory.symmetrize(task, z).transfer == pytest.approx(0.0, abs=1e-4)


def test_descent_ends_in_the_interval_at_the_value_and_the_scale_chooses_where() -> None:
    rows = [open_side._row("factorized", (3, 1, 3), scale, [0]) for scale in (0.1, 1.0)]
    assert [c.name for row in rows for c in open_side._checks(row) if not c.passed] == []
    small, large = (row.measured_transfer[0] for row in rows)
    assert small > large + 0.03


@pytest.mark.parametrize(
    "spec",
    [
        DescentSpec(d_h=4),
        DescentSpec(param="merged"),
        DescentSpec(depth=3, d_h=4, trained_kq=True),
        DescentSpec(param="merged", trained_kq=True),
    ],
)
def test_gradients_by_every_part_against_finite_differences(spec: DescentSpec) -> None:
    of = convex.problem(noise_free(3, 1, 2))
    weights = _Weights(spec, 6, 11)
    parts = weights.start(np.random.default_rng(0), 0.7)

    def value(changed: list[np.ndarray]) -> float:
        return log_loss(of.phi @ weights.product(changed).T, of.right, of.sizes)[0]

    _, slope = log_loss(of.phi @ weights.product(parts).T, of.right, of.sizes)
    for k, grad in enumerate(weights.gradients(parts, slope.T @ of.phi)):
        for place in (0, parts[k].size - 1):
            moved = [p.copy() for p in parts]
            moved[k].flat[place] += 1e-6
            assert grad.flat[place] == pytest.approx((value(moved) - value(parts)) / 1e-6, abs=1e-5)


def test_squared_parts_are_those_of_balanced_factors() -> None:
    """Late in descent the two factors are balanced, so half their squared length is the nuclear norm."""
    found = descend(noise_free(3, 1, 1), DescentSpec(init_scale=0.01, hold_steps=500, final_steps=1))
    nuclear = theory.norm("factorized", found.w_ov) * found.train_margin
    assert found.squared_parts / 2 == pytest.approx(nuclear, rel=1e-3)
