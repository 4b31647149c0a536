"""Mitigations that change the data: contradicting labels, abstaining, competing entailments, unequal pairs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ocr_toy import convex, mitigation, theory
from ocr_toy.convex import Group, Problem
from ocr_toy.descent import descend_on
from ocr_toy.remedy import HELD, NEAR, Remedy, transfer
from ocr_toy.report import Say
from ocr_toy.task import Matrix

UNEQUAL: tuple[tuple[tuple[int, ...], int, float, float], ...] = (
    ((0, *(2,) * 2), 2, -0.264, 0.407),
    ((0, *(2,) * 5), 2, -0.111, 0.764),
    ((0, *(2,) * 9), 2, -0.063, 0.869),
    ((*(1,) * 5, *(4,) * 5), 4, 0.5, 0.901),
)
"""m_train of every pair, m_test, and the reference held-out margins of the first and the last pair."""
SOLVED, MARGIN_NEAR, LARGEST_DESCENT = 2e-3, 0.05, 6
"""Tolerances of a solved margin against those, and of descent's against its optimum; the most pairs for descent."""


def entailments(n: int, shift: int = 0, first: int | None = None) -> tuple[int, ...]:
    """The c of pair i + shift for every pair i; from row `first` on, n by default."""
    return tuple((n if first is None else first) + (i + shift) % n for i in range(n))


@dataclass(frozen=True)
class _Changed:
    """Modified data, in which the first group entails c_i and the last is held out."""

    n_pairs: int
    groups: tuple[Group, ...]
    n_rows: int

    def row(self, method: str, setting: str, value: float, limit: float, seeds: Sequence[int]) -> Remedy:
        """Descent from every seed against the least norm at its loss."""
        problem = convex.merged_problem(self.n_pairs, self.groups, self.n_rows)
        ends = [descend_on(problem, replace(HELD, seed=seed), setting) for seed in seeds]
        optimum = convex.least_norm(problem, log_loss=ends[0].log_loss)
        measured = tuple(self.transfer(end.w_ov) for end in ends)
        found = Remedy(method, setting, value, limit, self.transfer(optimum), measured, "descent")
        if self.n_rows != 2 * self.n_pairs + 1:
            return found
        return replace(
            found,
            cost_unit="own c minus none, test subjects",
            cost_predicted=self.over_none(optimum),
            cost_measured=tuple(self.over_none(end.w_ov) for end in ends),
            cost_tolerance=NEAR,
        )

    def transfer(self, w: Matrix) -> float:
        """The own-minus-other c contrast of the test subjects divided by that of the entailing ones."""
        return transfer(w, self.n_pairs, 0, len(self.groups) - 1, self.groups[0].size, self.groups[-1].size)

    def over_none(self, w: Matrix) -> float:
        """Mean logit of own c minus "none" for test subjects asked r2, divided by entailing subjects' contrast."""
        n, last = self.n_pairs, len(self.groups) - 1
        logits = w[:, last * n : (last + 1) * n] / math.sqrt(self.groups[-1].size) + w[:, -1:]
        gap = float(np.mean(np.diag(logits[n : 2 * n]) - logits[2 * n]))
        return gap / convex.own_contrast(w, n, 0, self.groups[0].size, n)


def label_noise(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Some entailments of every pair name the other c's."""
    say("contradicting labels")
    n, m_train, m_test = 3, 8, 3
    for wrong in (0, 2, 4):
        others = tuple(Group(wrong / (n - 1), entailments(n, shift)) for shift in range(1, n) if wrong)
        groups = (Group(m_train - wrong, entailments(n)), *others, Group(m_test))
        limit = mitigation.noisy_transfer(n, m_train, m_test, wrong / m_train)
        setting = f"{wrong} of {m_train} entailments per pair contradict"
        yield _Changed(n, groups, 2 * n).row("label noise", setting, wrong / m_train, limit, seeds)


def abstaining(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Subjects that abstain are trained to answer an extra token, "none"; in the closed form they prefer no c."""
    say("examples that abstain")
    n, m_train, m_test = 3, 2, 3
    for abstaining in (1, 2, 4):
        groups = (Group(m_train, entailments(n)), Group(abstaining, (2 * n,) * n), Group(m_test))
        limit = mitigation.abstaining_transfer(m_train, m_test, abstaining)
        setting = f"{abstaining} abstain per {m_train} that entail"
        yield _Changed(n, groups, 2 * n + 1).row("abstaining", setting, abstaining / m_train, limit, seeds)


def competing(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Some subjects entail c, others a third answer."""
    say("competing entailments")
    n, m_second, m_test = 3, 1, 3
    for m_first in (1, 2, 4):
        groups = (Group(m_first, entailments(n)), Group(m_second, entailments(n, first=2 * n)), Group(m_test))
        limit = mitigation.competing_transfer(m_first, m_second, m_test)
        setting = f"{m_first} entail c, {m_second} a third answer"
        yield _Changed(n, groups, 3 * n).row("competing entailment", setting, m_first / m_second, limit, seeds)


def unequal(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Pairs with different m_train. To leading order each is alone, with sqrt(its own rho); with m_train = 0, below 0.

    Margins are over the other c's at train margin 1. K0 couples the pairs, by about 1 / n; there is no closed form.
    """
    say("pairs with different numbers of train subjects")
    for m_train, m_test, *published in UNEQUAL:
        n = len(m_train)
        problem = unequal_problem(m_train, m_test)
        solved = class_margins(convex.least_norm(problem, solver="SCS"), problem, m_train, m_test)
        ends = [descend_on(problem, replace(HELD, seed=s), "unequal pairs") for s in seeds if n <= LARGEST_DESCENT]
        runs = [class_margins(end.w_ov, problem, m_train, m_test) for end in ends]
        held = convex.least_norm(problem, log_loss=ends[0].log_loss) if ends else None
        for which, size in enumerate((m_train[0], m_train[-1])):
            limit = theory.held_out_margin("factorized", size, m_test)
            setting = f"n = {n}, m_train {m_train[0]} and {m_train[-1]}, m_test {m_test}: pairs with {size}"
            row = Remedy("unequal pairs", setting, size / m_test, limit, published[which], (solved[which],), "solver")
            row = replace(row, tolerance=SOLVED, reading="held-out margin")
            yield row
            if held is not None:
                predicted = class_margins(held, problem, m_train, m_test)[which]
                measured = tuple(run[which] for run in runs)
                held_row = replace(row, setting=f"{setting}, held", predicted=predicted, measured=measured)
                yield replace(held_row, how="descent", tolerance=MARGIN_NEAR)


def unequal_problem(m_train: Sequence[int], m_test: int) -> Problem:
    """Pairs with different m_train: one group per number of train subjects, and the test subjects last."""
    n = len(m_train)
    classes = {size: tuple(i for i in range(n) if m_train[i] == size) for size in sorted(set(m_train)) if size}
    trained = [Group(size, entailments(n), pairs) for size, pairs in classes.items()]
    return convex.merged_problem(n, (*trained, Group(m_test)))


def class_margins(w: Matrix, of: Problem, m_train: Sequence[int], m_test: int) -> tuple[float, float]:
    """Held-out margin over the other c's at train margin 1: mean over the pairs like the first, and like the last."""
    n, size = len(m_train), np.array(m_train)
    f = w[n:, -n - 2 : -2] / math.sqrt(m_test) / of.margin(w)
    margins = np.diag(f) - np.where(np.eye(n, dtype=bool), -np.inf, f).max(axis=0)
    return float(margins[size == size[0]].mean()), float(margins[size == size[-1]].mean())
