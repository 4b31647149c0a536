"""The theory check: claims 1 to 8 of the study, each as checks of a measured number against the theory's.

The theory's number comes from `theory`, from the published run, or from the shape of the claim (a crossing happens,
or does not). Three kinds of rows compare two measured numbers instead: gradient descent's norm and singular values
with those of the optimum that a solver found, the gap between two initializations with and without the held steps
(claim 2), and the step of the test loss with that of the train loss (claim 8).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from ocr_toy import theory
from ocr_toy.descent import Descent, DescentSpec, descend, usual_descent
from ocr_toy.errors import require
from ocr_toy.model import BOTH, ModelSpec, Param
from ocr_toy.runs import THRESHOLD, RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import singular_values
from ocr_toy.task import TEST_ENTAILMENT, TRAINED_SETS, TaskSpec, noise_free
from ocr_toy.train import train_runs

Relation = Literal["==", ">=", "<="]
Say = Callable[[str], None]
Sizes = tuple[int, int, int]

DEFAULT_GRID: tuple[Sizes, ...] = ((3, 1, 1), (3, 1, 3), (4, 2, 3), (4, 3, 1))
"""(n, m_train, m_test) with m_train equal to, below and above m_test."""

SOLVER_TOLERANCE = 2e-4
NORM_TOLERANCE = 0.01
MARGIN_TOLERANCE: dict[Param, float] = {"factorized": 0.08, "merged": 0.02}
"""Wide, because gradient descent nears the optimum's margin only as fast as log of the train margin grows."""
NO_TRANSFER_TOLERANCE = 1e-6
"""For the held-out margin where no entailment is trained at all."""
LARGEST_GRID = 1000
"""Rows and columns of W_OV together, the size of the solvers' problem."""
START = f"gradient descent from init scale {DescentSpec.init_scale:g}"
SMALL_SCALE, LARGE_SCALE = 0.01, 1.0
"""Initializations from which the held-out margin falls and rises towards the theorem's, where that is below 1."""
ROUNDING = 1e-9
LOSS_TOLERANCE = 0.1
RANK_THRESHOLD = 0.5
"""The test loss of claim 5, whose runs by default take half the published steps; guessing gives log 20 = 3.0."""
BLOCK_TOLERANCE = 0.05
"""What counts as zero for the weight of test subjects on their own c (claim 7)."""


@dataclass(frozen=True)
class Check:
    """One comparison: measured `relation` theory, up to tolerance."""

    claim: int
    name: str
    theory: float
    measured: float
    tolerance: float
    relation: Relation = "=="

    @property
    def passed(self) -> bool:
        """Whether the measured number is what the theory says. NaN never is."""
        difference = self.measured - self.theory
        if self.relation == "==":
            return abs(difference) <= self.tolerance
        return difference >= -self.tolerance if self.relation == ">=" else difference <= self.tolerance


@dataclass(frozen=True)
class CheckSpec:
    """What is checked: the grid of sizes, the solver, the ranks and steps of claim 5, and the seed."""

    grid: tuple[Sizes, ...] = DEFAULT_GRID
    solver: str = "SCS"
    ranks: tuple[int, ...] = (3, 4)
    rank_steps: int = 10_000
    published_steps: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field once, here."""
        require(bool(self.grid), "grid = (): nothing to check; give at least one n,m_train,m_test")
        for n_pairs, m_train, m_test in self.grid:
            noise_free(n_pairs, m_train, m_test)
            require(m_train >= 1, f"m_train = {m_train}: Theorems 1 and 2 need m_train >= 1 in the grid")
            require(
                n_pairs * (2 + m_train + m_test) <= LARGEST_GRID,
                f"grid = {n_pairs},{m_train},{m_test}: W_OV is too large for the solvers; "
                f"use n * (2 + m_train + m_test) <= {LARGEST_GRID}",
            )
        require(self.published_steps >= 1, f"published_steps = {self.published_steps}: use at least 1")
        require(bool(self.ranks), "ranks = (): nothing to check; give at least one d_h")
        narrow = min(self.ranks)
        require(narrow >= 3, f"ranks = {narrow}: too narrow to fit the train set; use widths of 3 or more")
        self.rank_runs()

    def rank_runs(self) -> list[RunSpec]:
        """The runs of claim 5."""
        train = TrainSpec(steps=self.rank_steps, seed=self.seed, record_every=self.rank_steps, draws=16)
        return [RunSpec(model=ModelSpec(d_h=rank), train=train) for rank in self.ranks]


class Study:
    """The runs the claims share, each made once, when first needed."""

    def __init__(self, spec: CheckSpec, say: Say) -> None:
        self.spec, self.say = spec, say
        self._descents: dict[tuple[Param, Sizes], Descent] = {}

    def descent(self, param: Param, sizes: Sizes) -> Descent:
        """Gradient descent, run the usual way."""
        if (param, sizes) not in self._descents:
            self.say(f"gradient descent, {param}, n, m_train, m_test = {sizes}")
            task = noise_free(*sizes)
            self._descents[param, sizes] = descend(task, usual_descent(param, task, self.spec.seed))
        return self._descents[param, sizes]

    @cached_property
    def published(self) -> dict[Param, RunResult]:
        """The published run of both models."""
        self.say(f"published run, both models, {self.spec.published_steps} steps")
        train = TrainSpec(steps=self.spec.published_steps, seed=self.spec.seed, record_every=20)
        runs = [RunSpec(model=ModelSpec(param=param), train=train) for param in BOTH]
        return dict(zip(BOTH, train_runs(runs), strict=True))


def _claim_1_and_2(study: Study) -> Iterator[Check]:
    for sizes in study.spec.grid:
        task = noise_free(*sizes)
        at = f"n, m_train, m_test = {sizes}"
        for param in BOTH:
            study.say(f"convex problem, {param}, {at}, {study.spec.solver}")
            optimum = theory.solve(param, task, study.spec.solver)
            found = study.descent(param, sizes).w_ov
            kind = "nuclear norm" if param == "factorized" else "squared Frobenius norm"
            target = theory.optimal_norm(param, *sizes)
            near = MARGIN_TOLERANCE[param]
            solved = theory.norm(param, optimum)
            yield Check(1, f"{param}: {kind} of the convex optimum, {at}", target, solved, SOLVER_TOLERANCE * target)
            yield Check(
                1,
                f"{param}: {kind} of {START} at margin 1, {at}",
                solved,
                theory.norm(param, found),
                NORM_TOLERANCE * solved,
            )
            theirs, ours = singular_values(optimum), singular_values(found)
            worst = int(np.abs(theirs - ours).argmax())
            yield Check(
                1,
                f"{param}: singular value of {START} furthest from the optimum's, {at}",
                float(theirs[worst]),
                float(ours[worst]),
                near * float(theirs[0]),
            )
            margin = theory.held_out_margin(param, *sizes[1:])
            solved = theory.test_margin(task, optimum)
            yield Check(2, f"{param}: held-out margin of the convex optimum, {at}", margin, solved, SOLVER_TOLERANCE)
            yield Check(
                2,
                f"{param}: held-out margin of {START}, {at}",
                margin,
                theory.test_margin(task, found),
                near,
            )
        if sizes[1] < sizes[2]:
            yield from _approach(study, sizes)


def _approach(study: Study, sizes: Sizes) -> Iterator[Check]:
    """That initializations on both sides of the limit end near it or approach it: margins below 1 only."""
    task, at = noise_free(*sizes), f"n, m_train, m_test = {sizes}"
    usual = usual_descent("factorized", task, study.spec.seed)
    study.say(f"gradient descent, factorized, from init scales {SMALL_SCALE:g} and {LARGE_SCALE:g}, {at}")

    def margin(scale: float, hold_steps: int) -> float:
        found = descend(task, replace(usual, init_scale=scale, hold_steps=hold_steps))
        return theory.test_margin(task, found.w_ov)

    name = f"factorized: held-out margin of gradient descent from init scale {LARGE_SCALE:g}, {at}"
    large = margin(LARGE_SCALE, usual.hold_steps)
    yield Check(2, name, theory.held_out_margin("factorized", *sizes[1:]), large, MARGIN_TOLERANCE["factorized"])
    unheld = margin(SMALL_SCALE, 0) - margin(LARGE_SCALE, 0)
    gap = abs(margin(SMALL_SCALE, usual.hold_steps) - large)
    name = f"factorized: gap of the held-out margins from init scales {SMALL_SCALE:g} and {LARGE_SCALE:g}"
    yield Check(2, f"{name}: at most half of that without the held steps, {at}", unheld / 2, gap, 0.0, "<=")


def _claim_3(study: Study) -> Iterator[Check]:
    tasks = [noise_free(5, 1, 3), noise_free(5, 3, 1)]
    train = TrainSpec(
        optimizer="gd",
        lr=0.3,
        decay=0.0,
        init="symmetric",
        init_scale=0.1,
        steps=1000,
        batch=0,
        record_every=1,
        precision="float64",
        seed=study.spec.seed,
    )
    study.say(f"merged model with trainable W_KQ, symmetric init, {train.steps} steps, every step measured")
    runs = [RunSpec(task, ModelSpec(param="merged"), train) for task in tasks]
    for task, run in zip(tasks, train_runs(runs), strict=True):
        at = f"n, m_train, m_test = {task.n_pairs, task.m_train, task.m_test}"
        _, test = run.losses(TEST_ENTAILMENT)
        yield Check(
            3,
            f"merged: least test loss over all steps, {at}",
            math.log(task.n_pairs),
            min(test),
            ROUNDING,
            ">=",
        )
        worst = max(run.last.loss[name] for name in TRAINED_SETS)
        yield Check(3, f"merged: train loss at the end, {at}", THRESHOLD, worst, 0.0, "<=")


def _claim_4(study: Study) -> Iterator[Check]:
    n = TaskSpec().n_pairs
    for param in BOTH:
        expected = 0.0 if param == "factorized" else math.log(n)
        loss = study.published[param].last.loss[TEST_ENTAILMENT]
        yield Check(4, f"{param}: test loss of the published run", expected, loss, LOSS_TOLERANCE)


def _claim_5(study: Study) -> Iterator[Check]:
    spec = study.spec
    study.say(f"ranks {', '.join(map(str, spec.ranks))}, {spec.rank_steps} steps")
    for rank, run in zip(spec.ranks, train_runs(spec.rank_runs()), strict=True):
        enough = rank >= 4
        yield Check(
            5,
            f"factorized, d_h = {rank}: test loss, published as {'learned' if enough else 'not learned'}",
            RANK_THRESHOLD,
            run.last.loss[TEST_ENTAILMENT],
            0.0,
            "<=" if enough else ">=",
        )
        if not enough:
            worst = max(run.last.loss[name] for name in TRAINED_SETS)
            yield Check(5, f"factorized, d_h = {rank}: train loss, learned", THRESHOLD, worst, 0.0, "<=")


def _claim_6(study: Study) -> Iterator[Check]:
    for m_train in range(5):
        sizes = (3, m_train, 3)
        found = theory.test_margin(noise_free(*sizes), study.descent("factorized", sizes).w_ov)
        expected = theory.held_out_margin("factorized", m_train, 3)
        near = MARGIN_TOLERANCE["factorized"] if m_train else NO_TRANSFER_TOLERANCE
        yield Check(6, f"factorized: held-out margin of {START}, n, m_train, m_test = {sizes}", expected, found, near)


def _claim_7(study: Study) -> Iterator[Check]:
    sizes = (3, 1, 3)
    for param in BOTH:
        found = theory.test_contrast(noise_free(*sizes), study.descent(param, sizes).w_ov)
        expected = theory.held_out_margin(param, *sizes[1:])
        yield Check(
            7,
            f"{param}: own minus other c of test subjects in W_OV of {START}, {sizes}",
            expected,
            found,
            MARGIN_TOLERANCE[param],
        )
    for param in BOTH:
        ratio = study.published[param].transfer
        name = f"{param}: own minus other c in the attended W_OV, test over train subjects, published run"
        if param == "factorized":
            yield Check(7, f"{name}: not zero", BLOCK_TOLERANCE, ratio, 0.0, ">=")
        else:
            yield Check(7, f"{name}: zero", 0.0, ratio, BLOCK_TOLERANCE)


def _claim_8(study: Study) -> Iterator[Check]:
    never = study.spec.published_steps + 1
    for param in BOTH:
        train_step, test_step = study.published[param].learned_steps(THRESHOLD)
        at = f"published run, below {THRESHOLD} nats"
        yield Check(
            8,
            f"{param}: step of the train loss, {at}",
            study.spec.published_steps,
            never if train_step is None else train_step,
            0.0,
            "<=",
        )
        tested = never if test_step is None else test_step
        if param == "factorized":
            name = f"{param}: step of the test loss, {at}"
            yield Check(8, name, study.spec.published_steps, tested, 0.0, "<=")
            if train_step is not None:
                name = f"{param}: step of the test loss, not before the train loss, {at}"
                yield Check(8, name, train_step, tested, 0.0, ">=")
        else:
            yield Check(8, f"{param}: test loss never crosses ({never} = never), {at}", never, tested, 0.0)


def run_checks(spec: CheckSpec, say: Say) -> Iterator[Check]:
    """Every check of claims 1 to 8, as each is decided; `say` receives one line before each longer run.

    Raises ToyError if the solver is missing.
    """
    theory.require_solver(spec.solver)
    study = Study(spec, say)
    for claim in (_claim_1_and_2, _claim_3, _claim_4, _claim_5, _claim_6, _claim_7, _claim_8):
        yield from claim(study)
