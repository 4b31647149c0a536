"""What the theorems predict: closed forms, and the lemma behind them.

The setting of Theorems 1 and 2: attention fixed, no noise, so a question (s, r) has logits
W_OV (e_s + e_r) on the answers. The margin h_{(s,r),a'}(W_OV) is the right answer's logit minus that of a'.
Gradient flow converges in direction to the problem

    factorized: min ||W_OV||_*      merged: min ||W_OV||_F^2 / 2      subject to h >= 1 on the train set,

with a' over all other answers. Here W_OV has the answers as rows (b_1..b_n, c_1..c_n) and subjects, r1, r2 as
columns: [2n, n_subjects + 2]. Rows of non-answer tokens are zero at the optimum and are omitted.

The lemma. Renaming pairs, and renaming the subjects of a pair, changes neither a unitarily invariant norm nor the
constraints, and the norm is convex; so averaging an optimum over all renamings gives an invariant one. With
C = I - J / n, an invariant W_OV has subject blocks (alpha C + beta J / n) (x) 1_m^T and relation columns constant
on the b's and on the c's. It is n - 1 copies of a 2x2 block K and one small block K0 (`Blocks`):

    K  = [[sqrt(m_train) p1, sqrt(m_test) p2],      p, x: what a subject adds to its own b, c minus the other b's, c's
          [sqrt(m_train) x1, sqrt(m_test) x2]]      index 1, 2: train, test subjects
    ||W_OV||_p^p = (n - 1) ||K||_p^p + ||K0||_p^p   p = 1 nuclear, p = 2 Frobenius, any Schatten p
    ||K||_*^2    = ||K||_F^2 + 2 |det K|            true of every 2x2 matrix

The train set fixes p1, p2 and x1; the norm determines x2. K has square roots of m because identical subjects act as
one column: m columns of weights w / sqrt(m) each have the singular values of one column w (`convex.merged_problem`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ocr_toy.convex import features, right_answers
from ocr_toy.errors import require
from ocr_toy.model import Param
from ocr_toy.statistics import answer_margin
from ocr_toy.task import TEST_ENTAILMENT, Matrix, TaskSpec, question_sets, subject_pairs


def _require_entailments(m_train: int) -> None:
    require(m_train >= 1, f"m_train = {m_train}: the closed form needs trained entailments; use m_train >= 1")


def held_out_margin(param: Param, m_train: int, m_test: int) -> float:
    """Theorem 2: the optimum's margin of test entailments against the other c's."""
    return min(1.0, math.sqrt(m_train / m_test)) if param == "factorized" else 0.0


def optimal_norm(param: Param, n_pairs: int, m_train: int, m_test: int) -> float:
    """The optimum's norm: nuclear for factorized, squared Frobenius for merged (m_train >= 1)."""
    _require_entailments(m_train)
    if param == "merged":
        return float((n_pairs - 1) * (2 * m_train + m_test) + n_pairs)
    x = held_out_margin(param, m_train, m_test)
    return (n_pairs - 1) * block_norm(m_train, m_test, x) + math.sqrt(n_pairs)


def optimal_w_ov(param: Param, n_pairs: int, m_train: int, m_test: int) -> Matrix:
    """The optimum itself, [2n, n_subjects + 2] (m_train >= 1).

    Subjects add own - 1/n to their b's and c's, except that a test subject's c block is scaled by the
    held-out margin x. Relation r1 adds 1/2 to every b and -1/2 to every c, r2 the reverse.
    """
    _require_entailments(m_train)
    x = held_out_margin(param, m_train, m_test)
    levels = np.array([[0.0, 0.0, 0.5, -0.5], [0.0, 0.0, -0.5, 0.5]])
    return Blocks(n_pairs, m_train, m_test, np.array([[1.0, 1.0], [1.0, x]]), levels).w_ov()


def nuclear_norm_2x2(k: Matrix) -> float:
    """||K||_* = sqrt(||K||_F^2 + 2 |det K|) of a 2x2 matrix."""
    return math.sqrt(float((k**2).sum()) + 2 * abs(float(k[0, 0] * k[1, 1] - k[0, 1] * k[1, 0])))


def block_norm(m_train: float, m_test: float, x: float) -> float:
    """N(x) = ||K||_* with p1 = p2 = x1 = 1 and x2 = x; least at x = min{1, sqrt(m_train / m_test)}.

    N(x) = sqrt(2 m_train + m_test (1 + x^2) + 2 sqrt(m_train m_test) |1 - x|)
    """
    return nuclear_norm_2x2(np.sqrt([[m_train, m_test]] * 2) * [[1.0, 1.0], [1.0, x]])


def level_norm(n_pairs: int, m_train: float, m_test: float, contrasts: Matrix) -> float:
    """The least ||K0|| with which W_OV, given the contrasts [[p1, p2], [x1, x2]], keeps questions in their answer set.

    Only differences of K0's rows matter: delta1 and delta2 of the columns of train and test subjects, d1 of r1, d2 of
    r2. The best K0 has rank one, with all Schatten norms sqrt((m_train delta1^2 + m_test delta2^2 + n (d1^2 + d2^2)) /
    2), subject to, with s = 1 - 1/n,

        (p1 - x1) s + delta1 / n + d1 >= 1,   (x1 - p1) s - delta1 / n + d2 >= 1,   (p2 - x2) s + delta2 / n + d1 >= 1

    The optimum is the shortest vector on its active constraints, so all sets of active constraints are tried.
    """
    (p1, p2), (x1, x2) = contrasts * (1 - 1 / n_pairs)
    at = np.array([[1 / n_pairs, 0, 1, 0], [-1 / n_pairs, 0, 0, 1], [0, 1 / n_pairs, 1, 0]])
    at /= np.sqrt([m_train / 2, m_test / 2, n_pairs / 2, n_pairs / 2])
    least = np.array([1 - p1 + x1, 1 + p1 - x1, 1 - p2 + x2])
    norms = [0.0] if (least <= 0).all() else []
    for active in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        levels = np.linalg.pinv(at[active]) @ least[active]
        if (at @ levels >= least - 1e-9).all():
            norms.append(float(np.linalg.norm(levels)))
    return min(norms)


def flat_norm(n_pairs: int, m_train: int, m_test: int, t: float) -> float:
    """The nuclear norm with p1 = t, x2 = t sqrt(rho), p2 = x1 = 1, for rho = m_train / m_test <= 1, t <= rho^(-1/4).

    ||K||_* = sqrt(m_train) + sqrt(m_test) all along. Only the relations' level separates the ends, to second order
    in eps = (t - 1) (1 - 1/n): while the test subjects' constraint does not bind,

        ||W(t)||_* = (n - 1) (sqrt(m_train) + sqrt(m_test)) + sqrt(n (1 + eps^2 M / (M + 2))),   M = n m_train

    So the theorem's x2 / x1 = sqrt(rho), at t = 1, costs hardly less than rho^(1/4) at the far end, where W_OV has rank
    n; and gradient descent moves slowly between the two.
    """
    x2 = t * math.sqrt(m_train / m_test)
    spread = (n_pairs - 1) * (math.sqrt(m_train) + math.sqrt(m_test))
    return spread + level_norm(n_pairs, m_train, m_test, np.array([[t, 1.0], [1.0, x2]]))


def narrow_transfer(n_pairs: int, m_train: int, m_test: int, exponent: float = 1.0) -> float:
    """x2 / x1 at the smallest Schatten norm among W_OV of rank n: what remains of Theorem 2 at width d_h = n.

    It is the r that minimizes, with K = (1/r, 1; 1, r) of rank one,

        (n - 1) ((1 + r^2) (m_train / r^2 + m_test))^(p/2) + ||K0||^p

    and tends to rho^(1/4), the far end of the flat face, as n grows; 1 for rho >= 1. exponent p = 1 is for two matrices
    at width n; p = 2 / L < 1 for a product of L matrices at any width, whose optimum has rank n anyway.
    """

    def size(r: float) -> float:
        contrasts = np.array([[1 / r, 1.0], [1.0, r]])
        k = nuclear_norm_2x2(contrasts * np.sqrt([m_train, m_test]))
        return (n_pairs - 1) * k**exponent + level_norm(n_pairs, m_train, m_test, contrasts) ** exponent

    return least_point(size, 1e-3, 1.0)


def least_point(function: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a unimodal function on [low, high], by golden section, to about 1e-8."""
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-8:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero of an increasing function on [low, high], by bisection; an end if there is none inside."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Blocks:
    """An invariant W_OV in the coordinates of the lemma.

    contrasts [[p1, p2], [x1, x2]]: own minus other answer in the b (first row) and c blocks of train and test subjects.
    levels [2, 4]: over the b's (first row) and c's, the sum of a column for train and test subjects, and the constant
    of a relation column for r1 and r2.
    """

    n_pairs: int
    m_train: int
    m_test: int
    contrasts: Matrix
    levels: Matrix

    def w_ov(self) -> Matrix:
        """The matrix, [2n, n_subjects + 2]."""
        n, m = self.n_pairs, (self.m_train, self.m_test)
        centred, mean = np.eye(n) - 1 / n, np.full((n, n), 1 / n)
        rows = []
        for alpha, beta in zip(self.contrasts, self.levels, strict=True):
            subjects = [np.repeat(alpha[j] * centred + beta[j] * mean, m[j], axis=1) for j in (0, 1)]
            rows.append([*subjects, np.full((n, 1), beta[2]), np.full((n, 1), beta[3])])
        return np.block(rows)

    @property
    def k(self) -> Matrix:
        """K, [2, 2]."""
        return self.contrasts * np.sqrt([self.m_train, self.m_test])

    @property
    def k0(self) -> Matrix:
        """K0, [2, 4]."""
        return self.levels * np.sqrt([self.m_train, self.m_test, self.n_pairs, self.n_pairs])

    @property
    def transfer(self) -> float:
        """x2 / x1: what test subjects add to their own c, relative to train subjects. 0 is none."""
        return float(self.contrasts[1, 1] / self.contrasts[1, 0])

    def singular_values(self) -> Matrix:
        """Singular values of the whole matrix, descending: n - 1 copies of K's two, and K0's two."""
        of_k, of_k0 = (np.linalg.svd(block, compute_uv=False) for block in (self.k, self.k0))
        return np.sort(np.concatenate([*[of_k] * (self.n_pairs - 1), of_k0]))[::-1]


def symmetrize(task: TaskSpec, w_ov: Matrix) -> Blocks:
    """The mean of W_OV over all renamings of pairs and of the subjects of a pair.

    This increases no unitarily invariant norm and decreases no smallest margin.
    """
    n, split = task.n_pairs, task.n_train_subjects
    own = np.equal.outer(np.arange(n), subject_pairs(task))
    contrasts, levels = np.zeros((2, 2)), np.zeros((2, 4))
    for a, rows in enumerate((w_ov[:n], w_ov[n:])):
        for j, members in enumerate((slice(0, split), slice(split, task.n_subjects))):
            block, mine = rows[:, members], own[:, members]
            if block.size:
                contrasts[a, j] = block[mine].mean() - block[~mine].mean()
                levels[a, j] = n * block.mean()
        levels[a, 2:] = rows[:, task.n_subjects :].mean(axis=0)
    return Blocks(n, task.m_train, task.m_test, contrasts, levels)


def test_margin(task: TaskSpec, w_ov: Matrix) -> float:
    """Smallest margin over the test entailments, against the other c's."""
    questions = question_sets(task)[TEST_ENTAILMENT]
    f = features(task, questions) @ w_ov.T
    return answer_margin(f, right_answers(task, questions), range(task.n_pairs, 2 * task.n_pairs))


def norm(param: Param, w_ov: Matrix) -> float:
    """The norm the parametrization minimizes: nuclear, or squared Frobenius."""
    values = np.linalg.svd(w_ov, compute_uv=False)
    return float(values.sum() if param == "factorized" else (values**2).sum())
