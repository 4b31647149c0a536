"""Margin problems, and their solutions of least norm by a convex solver, without the lemma."""

import importlib
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ocr_toy.errors import ToyError, require
from ocr_toy.model import Param
from ocr_toy.statistics import answer_margin, contrast
from ocr_toy.task import Matrix, Questions, TaskSpec, trained_questions

Norm = Literal["nuclear", "frobenius", "schatten4", "spectral", "columns"]
SOLVERS = ("CLARABEL", "SCS")
NORM_OF: dict[Param, Norm] = {"factorized": "nuclear", "merged": "frobenius"}
_EXTRA = "install the extra: pip install 'ocr-eval[theory]'"


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


@dataclass(frozen=True)
class Problem:
    """A margin problem: every question's targets must beat every other answer by 1, with logits W phi.

    phi: [Q, columns]. targets: [Q, rows], boolean; several targets of one question must have equal logits.
    sizes: [Q], how many identical questions each stands for; it weights losses, not margins.
    """

    phi: Matrix
    targets: NDArray[np.bool_]
    sizes: Matrix

    @property
    def right(self) -> NDArray[np.int64]:
        """Row of the right answer, [Q]; the first if there are several."""
        return self.targets.argmax(axis=1)

    def margin(self, w: Matrix) -> float:
        """Smallest margin of W [rows, columns]."""
        f = self.phi @ w.T
        return answer_margin(f, self.right, range(self.targets.shape[1]))


def _targets(right: NDArray[np.int64], n_rows: int) -> NDArray[np.bool_]:
    return np.equal.outer(right, np.arange(n_rows))


def problem(task: TaskSpec) -> Problem:
    """The train set of the task."""
    questions = trained_questions(task)
    targets = _targets(right_answers(task, questions), 2 * task.n_pairs)
    return Problem(features(task, questions), targets, np.ones(len(questions)))


@dataclass(frozen=True)
class Group:
    """`size` identical subjects per pair, or only in `pairs`: they know their b and entail row entails[i]."""

    size: float
    entails: tuple[int, ...] | None = None
    pairs: tuple[int, ...] | None = None


def merged_problem(n_pairs: int, groups: tuple[Group, ...], n_rows: int | None = None) -> Problem:
    """One column per pair and group, then r1 and r2; rows b, c and, up to n_rows, others.

    A column whose pair has no such subject is not asked. Columns stand for `size` subjects (phi has 1 / sqrt(size)), so
    the optimal norm, and the logits of a subject, are those of the task with every subject.
    """
    subjects = n_pairs * len(groups)
    phi, right, sizes = [], [], []
    for g, group in enumerate(groups):
        for relation, answers in enumerate((tuple(range(n_pairs)), group.entails)):
            for i in (group.pairs or range(n_pairs)) if answers else ():
                row = np.zeros(subjects + 2)
                row[g * n_pairs + i] = 1 / math.sqrt(group.size)
                row[subjects + relation] = 1.0
                phi.append(row)
                right.append((answers or ())[i])
                sizes.append(group.size)
    targets = _targets(np.array(right), 2 * n_pairs if n_rows is None else n_rows)
    return Problem(np.array(phi), targets, np.array(sizes, dtype=float))


def merged_task(n_pairs: int, m_train: int, m_test: int) -> Problem:
    """The train set of the task with one column per pair for its train subjects and one for its test subjects."""
    return merged_problem(n_pairs, (Group(m_train, tuple(range(n_pairs, 2 * n_pairs))), Group(m_test)))


def own_contrast(w: Matrix, n_pairs: int, group: int, size: float, first_row: int) -> float:
    """Mean logit on the own row minus mean logit on the others, over the subjects of one group of `merged_problem`.

    The rows are first_row to first_row + n - 1.
    """
    block = w[first_row : first_row + n_pairs, group * n_pairs : (group + 1) * n_pairs] / math.sqrt(size)
    return contrast(block)


def require_solver(solver: str) -> Any:
    """The module cvxpy. Raises ToyError unless the solver is one of SOLVERS and can be imported, with cvxpy."""
    require(solver in SOLVERS, f"solver = {solver}: unknown; use {' or '.join(SOLVERS)}")
    for module in ("cvxpy", solver.lower()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ToyError(f"solver = {solver}: the package {module} is not installed; {_EXTRA}") from error
    return importlib.import_module("cvxpy")


def least_norm(
    of: Problem,
    norm_kind: Norm = "nuclear",
    solver: str = "CLARABEL",
    log_loss: float | None = None,
    rivals: NDArray[np.bool_] | None = None,
) -> Matrix:
    """Solve min norm(W) subject to margins of at least 1 numerically, without the lemma, [rows, columns].

    columns: the sum of the lengths of W's columns (group lasso). rivals [Q, rows]: which answers each question's
    targets must beat, all others by default. With log_loss = -g, a smooth version replaces the margin: the norm is
    minimized subject to log sum exp(-g (h - 1)) <= 0 over all questions, weighted by their sizes, and wrong answers, so
    that g W has summed loss e^-g. Descent held at that loss ends there.
    An optimum that the solver calls inaccurate is also returned; the caller must measure its accuracy.
    Raises ToyError for an unknown or uninstalled solver and for one that reports no optimum.
    """
    cp = require_solver(solver)
    w = cp.Variable((of.targets.shape[1], of.phi.shape[1]))
    own = of.targets.T.astype(float)
    f = w @ of.phi.T
    picked = cp.sum(cp.multiply(own / own.sum(axis=0), f), axis=0)
    gap = np.ones((len(own), 1)) @ cp.reshape(picked, (1, own.shape[1]), order="C") - f
    wrong = (own == 0) & (True if rivals is None else rivals.T)
    if log_loss is None:
        constraints = [gap >= 1.0 - own] if rivals is None else [gap[wrong] >= 1.0]
    else:
        weights = np.log(np.broadcast_to(of.sizes, own.shape)[wrong])
        constraints = [cp.log_sum_exp(log_loss * (gap[wrong] - 1) + weights) <= 0]
    objectives = {
        "nuclear": lambda: cp.normNuc(w),
        "frobenius": lambda: cp.sum_squares(w),
        "spectral": lambda: cp.sigma_max(w),
        "columns": lambda: cp.sum(cp.norm(w, axis=0)),
    }
    if norm_kind == "schatten4":
        gram = cp.Variable((w.shape[1], w.shape[1]), symmetric=True)  # W^T W <= gram, ||W||_4^2 = ||W^T W||_F
        constraints.append(cp.bmat([[np.eye(w.shape[0]), w], [w.T, gram]]) >> 0)
        objectives["schatten4"] = lambda: cp.norm(gram, "fro")
    solve_in_place(cp, cp.Problem(cp.Minimize(objectives[norm_kind]()), constraints), solver)
    return np.asarray(w.value)


def solve_in_place(cp: Any, convex: Any, solver: str) -> None:
    """Solve a cvxpy problem in place. Raises ToyError unless the solver reports an optimum."""
    accuracy = {"eps_abs": 1e-6, "eps_rel": 1e-6} if solver == "SCS" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            convex.solve(solver=solver, **accuracy)
        except cp.SolverError as error:
            raise ToyError(f"solver = {solver}: failed at this size; use the other solver") from error
    if convex.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
        raise ToyError(f"solver = {solver}: ended with status {convex.status}; use the other solver")


def solve(param: Param, task: TaskSpec, solver: str = "SCS") -> Matrix:
    """The convex optimum of the task with every subject, [2n, n_subjects + 2]; see `least_norm`."""
    return least_norm(problem(task), NORM_OF[param], solver)
