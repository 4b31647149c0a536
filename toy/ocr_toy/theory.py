"""What the theorems predict: closed forms, and the convex problems solved independently.

The setting of Theorems 1 and 2: attention fixed, no noise, so a question (s, r) has logits
W_OV (e_s + e_r) on the answers. The margin h_{(s,r),a'}(W_OV) is the right answer's logit minus that of a'.
Gradient flow converges in direction to the problem

    factorized: min ||W_OV||_*      merged: min ||W_OV||_F^2 / 2      subject to h >= 1 on the train set,

with a' over all other answers. Here W_OV has the answers as rows (b_1..b_n, c_1..c_n) and subjects, r1, r2 as
columns: [2n, n_subjects + 2]. Rows of non-answer tokens are zero at the optimum and are left out.
"""

import importlib
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocr_toy.errors import ToyError, require
from ocr_toy.model import Param
from ocr_toy.statistics import answer_margin
from ocr_toy.task import TEST_ENTAILMENT, Questions, TaskSpec, question_sets, subject_pairs, trained_questions

Matrix = NDArray[np.float64]

SOLVERS = ("CLARABEL", "SCS")
_EXTRA = "install the extra: pip install 'ocr-eval[theory]'"


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
    covered = m_train <= m_test
    spread = math.sqrt(m_train) + math.sqrt(m_test) if covered else math.sqrt(2 * (m_train + m_test))
    return (n_pairs - 1) * spread + math.sqrt(n_pairs)


def optimal_w_ov(param: Param, n_pairs: int, m_train: int, m_test: int) -> Matrix:
    """The optimum itself, [2n, n_subjects + 2] (m_train >= 1).

    Subjects add own - 1/n to their b's and c's, except that a test subject's c block is scaled by the
    held-out margin x. Relation r1 adds 1/2 to every b and -1/2 to every c, r2 the reverse.
    """
    _require_entailments(m_train)
    centred = np.eye(n_pairs) - 1.0 / n_pairs
    train = np.repeat(centred, m_train, axis=1)
    test = np.repeat(centred, m_test, axis=1)
    x = held_out_margin(param, m_train, m_test)
    half = np.full((n_pairs, 1), 0.5)
    return np.block([[train, test, half, -half], [train, x * test, -half, half]])


def features(task: TaskSpec, questions: Questions) -> Matrix:
    """The inputs e_s + e_r of questions, [Q, n_subjects + 2]."""
    phi = np.zeros((len(questions), task.n_subjects + 2))
    rows = np.arange(len(questions))
    phi[rows, questions.subject] = 1.0
    phi[rows, task.n_subjects + questions.relation] = 1.0
    return phi


def right_answers(task: TaskSpec, questions: Questions) -> NDArray[np.int64]:
    """Row of W_OV of each question's right answer, [Q]."""
    return questions.answer - task.first_answer


def train_margin(task: TaskSpec, w_ov: Matrix) -> float:
    """Smallest margin over the train set, against all other answers."""
    questions = trained_questions(task)
    f = features(task, questions) @ w_ov.T
    return answer_margin(f, right_answers(task, questions), range(2 * task.n_pairs))


def test_margin(task: TaskSpec, w_ov: Matrix) -> float:
    """Smallest margin over the test entailments, against the other c's."""
    questions = question_sets(task)[TEST_ENTAILMENT]
    f = features(task, questions) @ w_ov.T
    return answer_margin(f, right_answers(task, questions), range(task.n_pairs, 2 * task.n_pairs))


def test_contrast(task: TaskSpec, w_ov: Matrix) -> float:
    """Mean over test subjects of the logit on their own c minus the mean logit on the other c's."""
    block = w_ov[task.n_pairs :, task.n_train_subjects : task.n_subjects]
    own = np.equal.outer(np.arange(task.n_pairs), subject_pairs(task)[task.n_train_subjects :])
    return float(block[own].mean() - block[~own].mean())


def norm(param: Param, w_ov: Matrix) -> float:
    """The norm the parametrization minimizes: nuclear, or squared Frobenius."""
    values = np.linalg.svd(w_ov, compute_uv=False)
    return float(values.sum() if param == "factorized" else (values**2).sum())


def require_solver(solver: str) -> None:
    """Raise ToyError unless the solver is one of SOLVERS and can be imported, with cvxpy."""
    require(solver in SOLVERS, f"solver = {solver}: unknown; use {' or '.join(SOLVERS)}")
    for module in ("cvxpy", solver.lower()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ToyError(f"solver = {solver}: the package {module} is not installed; {_EXTRA}") from error


def solve(param: Param, task: TaskSpec, solver: str = "SCS") -> Matrix:
    """Solve the convex problem numerically with no use of the closed form, [2n, n_subjects + 2].

    An optimum that the solver calls inaccurate is returned too: its accuracy is for the caller to measure.
    Raises ToyError for an unknown or uninstalled solver and for one that reports no optimum.
    """
    require_solver(solver)
    cp: Any = importlib.import_module("cvxpy")
    questions = trained_questions(task)
    phi, right = features(task, questions), right_answers(task, questions)
    own = np.zeros((2 * task.n_pairs, len(questions)))
    own[right, np.arange(len(questions))] = 1.0
    w_ov = cp.Variable((2 * task.n_pairs, task.n_subjects + 2))
    f = w_ov @ phi.T
    picked = cp.reshape(cp.sum(cp.multiply(own, f), axis=0), (1, len(questions)), order="C")
    gap = np.ones((2 * task.n_pairs, 1)) @ picked - f
    objective = cp.normNuc(w_ov) if param == "factorized" else cp.sum_squares(w_ov)
    problem = cp.Problem(cp.Minimize(objective), [gap >= 1.0 - own])
    accuracy = {"eps_abs": 1e-6, "eps_rel": 1e-6} if solver == "SCS" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver=solver, **accuracy)
        except cp.SolverError as error:
            raise ToyError(f"solver = {solver}: failed at this size; use the other solver") from error
    if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE) or w_ov.value is None:
        raise ToyError(f"solver = {solver}: ended with status {problem.status}; use the other solver")
    return np.asarray(w_ov.value)
