"""The theory check: claims 1 to 8 of the study, each as checks of measured numbers against theoretical ones.

The theoretical number comes from `theory`, from the published run, or from the claim itself (a crossing happens, or
does not). Two kinds of rows compare with a solver's optimum instead: the norm of gradient descent at margin 1, and its
transfer and singular values when it is held at a fixed loss. At a finite loss the least norm transfers more than
min{1, sqrt(m_train / m_test)}, its limit as the loss vanishes; so descent is compared with the optimum at its own loss,
and the optimum at a vanishing loss with the square root. Claim 8 also compares the steps at which the test and the
train loss are learned.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ocr_toy import convex, theory
from ocr_toy.aside import training_aside
from ocr_toy.descent import Descent, DescentSpec, descend, usual_descent
from ocr_toy.errors import require
from ocr_toy.model import BOTH, ModelSpec, Param
from ocr_toy.report import Check, Say
from ocr_toy.runs import OFFICIAL_SCALE, THRESHOLD, RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import singular_values
from ocr_toy.task import TEST_ENTAILMENT, TRAINED_SETS, TaskSpec, noise_free
from ocr_toy.theory import Blocks
from ocr_toy.train import train_runs

Sizes = tuple[int, int, int]

DEFAULT_GRID: tuple[Sizes, ...] = ((3, 1, 1), (3, 1, 3), (4, 2, 3), (4, 3, 1), (5, 4, 16))
"""(n, m_train, m_test) with m_train equal to, below and above m_test."""

SOLVER_TOLERANCE = 2e-4
NORM_TOLERANCE = 0.01
TRANSFER_TOLERANCE = 0.01
"""For the transfer of descent against the optimum at its own loss, and of that optimum against the limit."""
SPECTRUM_TOLERANCE = 0.03
"""For singular values of matrices of nuclear norm 1, relative to the largest."""
NO_TRANSFER_TOLERANCE = 1e-6
"""For the held-out margin when no entailment is trained."""
LARGEST_GRID = 1000
"""Most rows and columns of W_OV together, which is the size of the solvers' problem."""
SCALES = (0.1, 1.0)
"""Scales of initialization: from the first the transfer falls towards its limit, from the second it rises."""
HELD_MARGIN, HELD_STEPS = 20.0, (4000, 16_000)
"""The margin at which descent is held until its direction converges, and the steps for small and large tasks."""
NARROW: tuple[Sizes, ...] = ((3, 1, 3), (3, 1, 9), (3, 2, 3))
"""Sizes that are run at width n."""
LARGE_TASK = 30
"""A task with more subjects than this is large: its directions converge more slowly."""
VANISHING_LOSS = -3000.0
"""log of a loss so small that the optimum is that of the limit."""
ROUNDING = 1e-9
LOSS_TOLERANCE = 0.1
RANK_THRESHOLD = 0.5
"""The test loss of claim 5; guessing gives log 20 = 3.0."""
RANK_SEEDS = 3
"""Seeds per width of claim 5, starting with the spec's own. The publication has one, 42."""
BLOCK_TOLERANCE = 0.05
"""Up to this, the weight of test subjects on their own c counts as zero (claim 7)."""


@dataclass(frozen=True)
class CheckSpec:
    """What is checked: the grid of sizes, the solver, the ranks and steps of claim 5, and the seed."""

    grid: tuple[Sizes, ...] = DEFAULT_GRID
    solver: str = "SCS"
    ranks: tuple[int, ...] = (3, 4)
    rank_steps: int = 20_000
    published_steps: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
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
        require(self.rank_steps >= 1, f"rank_steps = {self.rank_steps}: nothing to train; use rank_steps >= 1")
        require(narrow >= 3, f"ranks = {narrow}: too narrow to fit the train set; use widths of 3 or more")
        self.rank_runs()

    def rank_runs(self) -> list[RunSpec]:
        """The runs of claim 5 from the published initialization: every width with every seed."""
        train = TrainSpec(steps=self.rank_steps, init_scale=OFFICIAL_SCALE, record_every=self.rank_steps, draws=16)
        seeded = [replace(train, seed=self.seed + i) for i in range(RANK_SEEDS)]
        return [RunSpec(model=ModelSpec(d_h=rank), train=each) for rank in self.ranks for each in seeded]


class Study:
    """The runs that claims share, each run once when first needed; `ranks` waits for those of claim 5."""

    def __init__(self, spec: CheckSpec, say: Say, ranks: Callable[[], list[RunResult]]) -> None:
        self.spec, self.say, self.ranks = spec, say, ranks
        self._held: dict[tuple[Sizes, float], Descent] = {}

    def held(self, sizes: Sizes, scale: float = SCALES[0]) -> Descent:
        """Gradient descent of the factorized model, held at HELD_MARGIN until its direction has converged."""
        if (sizes, scale) not in self._held:
            self.say(f"gradient descent, factorized, init scale {scale:g}, n, m_train, m_test = {sizes}")
            task = noise_free(*sizes)
            usual, steps = usual_descent("factorized", task, self.spec.seed), HELD_STEPS[task.n_subjects > LARGE_TASK]
            held = replace(usual, hold_margin=HELD_MARGIN, hold_steps=steps, final_steps=1, armijo=0.5)
            self._held[sizes, scale] = descend(task, replace(held, init_scale=scale))
        return self._held[sizes, scale]

    @cached_property
    def published(self) -> dict[Param, RunResult]:
        """The published run of both models."""
        self.say(f"published run, both models, {self.spec.published_steps} steps")
        train = TrainSpec(steps=self.spec.published_steps, seed=self.spec.seed, record_every=20)
        runs = [RunSpec(model=ModelSpec(param=param), train=train) for param in BOTH]
        return dict(zip(BOTH, train_runs(runs), strict=True))


def optimum_of_loss(sizes: Sizes, log_loss: float) -> Blocks:
    """The least nuclear norm at a summed loss of e^log_loss, divided by -log_loss, solved on merged columns."""
    n, m_train, m_test = sizes
    w = convex.least_norm(convex.merged_task(*sizes), log_loss=log_loss)
    roots = np.sqrt(np.repeat([m_train, m_test, 1.0], [n, n, 2]))
    return replace(theory.symmetrize(noise_free(n, 1, 1), w / roots), m_train=m_train, m_test=m_test)


def _furthest(theirs: NDArray[np.floating], ours: NDArray[np.floating]) -> tuple[float, float, float]:
    """The pair of singular values, as shares of the nuclear norm, that differ most; and the tolerance."""
    size = max(len(theirs), len(ours))
    theirs, ours = (np.pad(values / values.sum(), (0, size - len(values))) for values in (theirs, ours))
    at = int(np.abs(theirs - ours).argmax())
    return float(theirs[at]), float(ours[at]), SPECTRUM_TOLERANCE * float(theirs[0])


def _claim_1_and_2(study: Study) -> Iterator[Check]:
    for sizes in study.spec.grid:
        yield from _limits(study, sizes)
        yield from _held_descent(study, sizes)
    yield from _width_n(study)


def _limits(study: Study, sizes: Sizes) -> Iterator[Check]:
    """The solver against the closed form, and the norm of plain descent against both."""
    task, at = noise_free(*sizes), f"n, m_train, m_test = {sizes}"
    for param in BOTH:
        study.say(f"convex problem, {param}, {at}, {study.spec.solver}")
        optimum = convex.solve(param, task, study.spec.solver)
        found = descend(task, usual_descent(param, task, study.spec.seed)).w_ov
        kind = "nuclear norm" if param == "factorized" else "squared Frobenius norm"
        target, solved = theory.optimal_norm(param, *sizes), theory.norm(param, optimum)
        yield Check(1, f"{param}: {kind} of the convex optimum, {at}", target, solved, SOLVER_TOLERANCE * target)
        name = f"{param}: {kind} of gradient descent at margin 1, {at}"
        yield Check(1, name, solved, theory.norm(param, found), NORM_TOLERANCE * solved)
        margin, solved = theory.held_out_margin(param, *sizes[1:]), theory.test_margin(task, optimum)
        yield Check(2, f"{param}: held-out margin of the convex optimum, {at}", margin, solved, SOLVER_TOLERANCE)
        if param == "merged":
            name = f"merged: singular value of gradient descent furthest from the optimum's, {at}"
            yield Check(1, name, *_furthest(singular_values(optimum), singular_values(found)))
            name = f"merged: held-out margin of gradient descent, {at}"
            yield Check(2, name, 0.0, theory.test_margin(task, found), TRANSFER_TOLERANCE)


def _held_descent(study: Study, sizes: Sizes) -> Iterator[Check]:
    """Descent from both sides against the optimum at its own loss, and that optimum against the limit."""
    task, at = noise_free(*sizes), f"n, m_train, m_test = {sizes}"
    for scale in SCALES:
        found = study.held(sizes, scale)
        optimum = optimum_of_loss(sizes, found.log_loss)
        blocks = theory.symmetrize(task, found.w_ov)
        name = f"factorized: transfer of gradient descent held at margin {HELD_MARGIN:g}, init scale {scale:g}"
        yield Check(2, f"{name}, against the least norm of its loss, {at}", *_transfers(optimum, blocks))
        name = f"factorized: singular value of the same descent furthest from that optimum's, init scale {scale:g}"
        yield Check(1, f"{name}, {at}", *_furthest(optimum.singular_values(), singular_values(found.w_ov)))
    limit = theory.held_out_margin("factorized", *sizes[1:])
    small = optimum_of_loss(sizes, VANISHING_LOSS).transfer
    name = f"factorized: transfer of the least norm as the loss vanishes, at e^{VANISHING_LOSS:g}, {at}"
    yield Check(2, name, limit, small, TRANSFER_TOLERANCE)


def _transfers(theirs: Blocks, ours: Blocks) -> tuple[float, float, float]:
    return theirs.transfer, ours.transfer, TRANSFER_TOLERANCE


def _width_n(study: Study) -> Iterator[Check]:
    """Width d_h = n leaves W_OV no room for the theorem's optimum, whose rank is 2 (n - 1) + 1."""
    for sizes in NARROW:
        study.say(f"gradient descent, factorized, d_h = n, n, m_train, m_test = {sizes}")
        task = noise_free(*sizes)
        spec = DescentSpec(d_h=sizes[0], init_scale=0.01, hold_margin=300, hold_steps=6000, final_steps=1, armijo=0.5)
        found = descend(task, replace(spec, seed=study.spec.seed)).w_ov
        name = f"factorized, d_h = n: transfer of gradient descent, n, m_train, m_test = {sizes}"
        expected = theory.narrow_transfer(*sizes)
        yield Check(2, name, expected, theory.symmetrize(task, found).transfer, TRANSFER_TOLERANCE)


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
        name = f"merged: least test loss over all steps, {at}"
        yield Check(3, name, math.log(task.n_pairs), min(test), ROUNDING, ">=")
        worst = max(run.last.loss[name] for name in TRAINED_SETS)
        yield Check(3, f"merged: train loss at the end, {at}", THRESHOLD, worst, 0.0, "<=")


def _claim_4(study: Study) -> Iterator[Check]:
    n = TaskSpec().n_pairs
    for param in BOTH:
        expected = 0.0 if param == "factorized" else math.log(n)
        loss = study.published[param].last.loss[TEST_ENTAILMENT]
        yield Check(4, f"{param}: test loss of the published run", expected, loss, LOSS_TOLERANCE)


def _claim_5(study: Study) -> Iterator[Check]:
    spec, runs = study.spec, study.ranks()
    for i, rank in enumerate(spec.ranks):
        ends = [run.last.loss for run in runs[RANK_SEEDS * i : RANK_SEEDS * (i + 1)]]
        losses, name = [loss[TEST_ENTAILMENT] for loss in ends], f"factorized, d_h = {rank}"
        if rank >= 4:
            name = f"{name}: largest test loss of {RANK_SEEDS} seeds, published as learned"
            yield Check(5, name, RANK_THRESHOLD, max(losses), 0.0, "<=")
        else:
            least = f"{name}: least test loss of {RANK_SEEDS} seeds, published as not learned"
            yield Check(5, least, RANK_THRESHOLD, min(losses), 0.0, ">=")
            worst = max(loss[name] for loss in ends for name in TRAINED_SETS)
            yield Check(5, f"{name}: train loss, learned", THRESHOLD, worst, 0.0, "<=")


def _claim_6(study: Study) -> Iterator[Check]:
    for m_train in range(5):
        sizes = (3, m_train, 3)
        found = study.held(sizes)
        blocks = theory.symmetrize(noise_free(*sizes), found.w_ov)
        at = f"gradient descent held at margin {HELD_MARGIN:g}, n, m_train, m_test = {sizes}"
        if m_train:
            optimum = optimum_of_loss(sizes, found.log_loss)
            yield Check(6, f"factorized: transfer of {at}", *_transfers(optimum, blocks))
        else:
            contrast = float(blocks.contrasts[1, 1])
            yield Check(6, f"factorized: held-out margin of {at}", 0.0, contrast, NO_TRANSFER_TOLERANCE)


def _claim_7(study: Study) -> Iterator[Check]:
    for param in BOTH:
        ratio = study.published[param].transfer
        name = f"{param}: own minus other c in the attended W_OV, test over train subjects, published run"
        if param == "factorized":
            yield Check(7, f"{name}: not zero", BLOCK_TOLERANCE, ratio, 0.0, ">=")
        else:
            yield Check(7, f"{name}: zero", 0.0, ratio, BLOCK_TOLERANCE)


def _claim_8(study: Study) -> Iterator[Check]:
    steps, at = study.spec.published_steps, f"published run, below {THRESHOLD} nats"
    never = steps + 1
    for param in BOTH:
        found = study.published[param].learned_steps(THRESHOLD)
        trained, tested = (never if step is None else step for step in found)
        yield Check(8, f"{param}: step of the train loss, {at}", steps, trained, 0.0, "<=")
        if param == "factorized":
            yield Check(8, f"{param}: step of the test loss, {at}", steps, tested, 0.0, "<=")
            if trained < never:
                name = f"{param}: step of the test loss, not before the train loss, {at}"
                yield Check(8, name, trained, tested, 0.0, ">=")
        else:
            yield Check(8, f"{param}: test loss never crosses ({never} = never), {at}", never, tested, 0.0)


def run_checks(spec: CheckSpec, say: Say) -> Iterator[Check]:
    """Yield every check of claims 1 to 8 once it is decided; `say` is called with one line before each longer run.

    Raises ToyError if the solver, or CLARABEL for the optima at a given loss, is missing.
    """
    for solver in (spec.solver, "CLARABEL"):
        convex.require_solver(solver)
    say(f"ranks {', '.join(map(str, spec.ranks))}, {RANK_SEEDS} seeds, {spec.rank_steps} steps, in a second process")
    with training_aside(spec.rank_runs()) as ranks:
        study = Study(spec, say, ranks)
        for claim in (_claim_1_and_2, _claim_3, _claim_4, _claim_5, _claim_6, _claim_7, _claim_8):
            yield from claim(study)
