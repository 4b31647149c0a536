"""What removes the transfer, and what it costs: closed forms for the block K of the lemma.

Everything here changes the norm or the data of Theorem 2 but keeps its structure: n - 1 copies of

    K = [[sqrt(m_train), sqrt(m_test)], [sqrt(m_train) x1, sqrt(m_test) x]]

whose entry x, the held-out margin at train margin 1, is determined by the norm. With x1 = 1 the nuclear norm gives
sqrt(rho), rho = m_train / m_test, and the Frobenius norm 0. Norms in between, contradicting labels, abstaining examples
and competing entailments each give an equation in x.
"""

import math
from dataclasses import dataclass

import numpy as np

from ocr_toy import convex, theory
from ocr_toy.errors import require
from ocr_toy.task import TaskSpec
from ocr_toy.theory import block_norm


def schatten_transfer(m_train: float, m_test: float, p: float) -> float:
    """x at min ||K||_p for p >= 1, that is min s^(p/2) + t^(p/2) over the squared singular values s > t of K.

    s + t = 2 m_train + m_test (1 + x^2) and s t = m_train m_test (1 - x)^2. x is positive for p < 2, zero at 2 and
    negative above: the largest singular value shrinks if the test subjects' c points away from their b. For
    p = infinity it is the limit of finite p, -rho: only K matters there, and W_OV has more than one optimum.
    """
    require(p >= 1, f"p = {p}: not a norm, and the closed form differs; use p >= 1")
    if math.isinf(p):
        return -m_train / m_test if m_train <= m_test else -1.0

    def size(x: float) -> float:
        values = np.linalg.svd(np.sqrt([[m_train, m_test]] * 2) * [[1.0, 1.0], [1.0, x]], compute_uv=False)
        return float(np.linalg.norm(values, p))

    return theory.least_point(size, -1.0, 1.0)


def noisy_transfer(n_pairs: int, m_train: float, m_test: float, noise: float) -> float:
    """x if a share `noise` of the m_train entailments per pair names other c's, evenly distributed.

    u = 1 - noise n / (n - 1) is what remains of the association, and x is the root of

        x sqrt(m_train (m_train + m_test) (1 - u^2) + m_train m_test (x - u)^2) = m_train (u - x)
    """
    u = 1 - noise * n_pairs / (n_pairs - 1)
    if noise == 0:
        return theory.held_out_margin("factorized", int(m_train), int(m_test))
    spread = m_train * (m_train + m_test) * (1 - u * u)
    return theory.root(
        lambda x: x * math.sqrt(spread + m_train * m_test * (x - u) ** 2) - m_train * (u - x), 0.0, max(u, 0.0)
    )


def abstaining_transfer(m_train: float, m_test: float, m_abstain: float) -> float:
    """x with m_abstain further subjects per pair that know their b and are trained to prefer no c.

    It is below m_train / (m_train + m_abstain), and is the root of

    x sqrt(m_train m_test (1 - x)^2 + m_abstain (m_train + x^2 m_test)) = m_train (1 - x) - m_abstain x
    """
    if m_abstain == 0:
        return min(1.0, math.sqrt(m_train / m_test))
    third = m_train * m_test
    return theory.root(
        lambda x: (
            x * math.sqrt(third * (1 - x) ** 2 + m_abstain * (m_train + x * x * m_test))
            - m_train * (1 - x)
            + m_abstain * x
        ),
        0.0,
        m_train / (m_train + m_abstain),
    )


def competing_transfer(m_first: float, m_second: float, m_test: float) -> float:
    """x for the first of two entailments: c_i for m_first and c'_i for m_second train subjects per pair.

    The second gets 1 - x, and x minimizes m_first + m_second + m_test (1 - x + x^2) + sqrt(3 B), with
    B = m_first m_second + m_test (m_first (1 - x)^2 + m_second x^2).
    """

    def slope(x: float) -> float:
        b = m_first * m_second + m_test * (m_first * (1 - x) ** 2 + m_second * x * x)
        b_slope = 2 * m_test * (m_second * x - m_first * (1 - x))
        return m_test * (2 * x - 1) + math.sqrt(3) * b_slope / (2 * math.sqrt(b))

    return theory.root(slope, 0.0, 1.0)


def price(n_pairs: int, m_train: int, m_test: int, x: float) -> float:
    """How much more nuclear norm at margin 1 a held-out margin of x costs: (n - 1) (N(x) - N(x*))."""
    best = theory.held_out_margin("factorized", m_train, m_test)
    return (n_pairs - 1) * (block_norm(m_train, m_test, x) - block_norm(m_train, m_test, best))


@dataclass(frozen=True)
class Decayed:
    """A minimum of the training loss with decay: x2 / x1, losses per trained set and objective, in nats."""

    transfer: float
    losses: tuple[float, ...]
    objective: float


def decayed(task: TaskSpec, factor_decay: float, product_decay: float) -> Decayed:
    """The minimum over all widths of training with decay on W_O and W_V, on their product, or both (fixed attention).

    The smallest (||W_O||^2 + ||W_V||^2) / 2 of a given product is its nuclear norm, so the non-convex

        L(W_O W_V^T) + mu / 2 (||W_O||_F^2 + ||W_V||_F^2) + lambda / 2 ||W_O W_V^T||_F^2

    has the minimum of the convex L(W) + mu ||W||_* + lambda / 2 ||W||_F^2. By the lemma that is a problem in K [2, 2]
    and K0 [3, 4], whose third row stands for all other tokens of the vocabulary. mu = 0 gives the merged model.
    """
    cp = convex.require_solver("CLARABEL")
    n, m, others = task.n_pairs, np.array([task.m_train, task.m_test]), task.n_inputs
    k, k0 = cp.Variable((2, 2)), cp.Variable((3, 4))
    alpha = cp.multiply(k, np.tile(1 / np.sqrt(m), (2, 1)))
    lengths = np.outer(np.sqrt([n, n, others]), [*np.sqrt(n * m), 1.0, 1.0])
    level = cp.multiply(k0, 1 / lengths)
    questions, losses = [(0, 0), (0, 1), (1, 0)], []  # (train or test subjects, r1 or r2)
    counts = np.log([n - 1, 1, n - 1, others])
    for subjects, relation in questions:
        mine, yours = alpha[relation, subjects], alpha[1 - relation, subjects]
        height = level[:, subjects] + level[:, 2 + relation]
        apart = height[1 - relation] - height[relation]
        gaps = [
            -mine,
            apart + (yours - mine) * (1 - 1 / n),
            apart - yours / n - mine * (1 - 1 / n),
            height[2] - height[relation] - mine * (1 - 1 / n),
        ]
        losses.append(cp.log_sum_exp(cp.hstack([0.0, *(g + c for g, c in zip(gaps, counts, strict=True))])))
    shares = np.array([m[0], m[0], m[1]]) / (2 * m[0] + m[1])
    objective = sum(share * loss for share, loss in zip(shares, losses, strict=True))
    if factor_decay:
        objective += factor_decay * ((n - 1) * cp.normNuc(k) + cp.normNuc(k0))
    objective += product_decay / 2 * ((n - 1) * cp.sum_squares(k) + cp.sum_squares(k0))
    convex.solve_in_place(cp, cp.Problem(cp.Minimize(objective)), "CLARABEL")
    (_, _), (x1, x2) = alpha.value
    return Decayed(float(x2 / x1), tuple(float(loss.value) for loss in losses), float(objective.value))
