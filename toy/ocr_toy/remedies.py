"""The mitigations of `mitigation`, predictions against runs: what `toy mitigate` prints and draws.

A run is compared with the optimum it should reach: decay with the minimum of the decayed loss; changed data with the
least norm at the loss that descent is held at, whose limit is the closed form.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import optimize

from ocr_toy import mitigation, theory
from ocr_toy.descent import DescentSpec, descend, descend_on, log_loss
from ocr_toy.errors import require
from ocr_toy.model import ModelSpec
from ocr_toy.report import Check, Report, Say, listed, table
from ocr_toy.runs import RunSpec, TrainSpec
from ocr_toy.statistics import require_seeds
from ocr_toy.task import TRAINED_SETS, TaskSpec, noise_free, stream, trained_questions
from ocr_toy.theory import Group, Matrix, Problem
from ocr_toy.train import train_runs

DECAY_TASK, PUBLISHED_SIZE = noise_free(5, 1, 3), noise_free(20, 1, 3)
HELD = DescentSpec(hold_margin=20.0, hold_steps=4000, final_steps=1, armijo=0.5)
SPECTRAL_RATE, SPECTRAL_STEPS = 0.2, 4000
NEAR = 0.02
"""Tolerance of a run's transfer against its prediction, unless its row says otherwise."""
COST_NEAR = 0.03
"""Relative tolerance of a cost against its prediction."""
UNEQUAL: tuple[tuple[tuple[int, ...], int, float, float], ...] = (
    ((0, *(2,) * 2), 2, -0.264, 0.407),
    ((0, *(2,) * 5), 2, -0.111, 0.764),
    ((0, *(2,) * 9), 2, -0.063, 0.869),
    ((*(1,) * 5, *(4,) * 5), 4, 0.5, 0.901),
)
"""m_train of every pair, m_test, and the reference held-out margins of the first and the last pair."""
SOLVED, MARGIN_NEAR, LARGEST_DESCENT = 2e-3, 0.05, 6
"""Tolerances of a solved margin against those, and of descent's against its optimum; the most pairs for descent."""


@dataclass(frozen=True)
class Remedy:
    """One setting of one mitigation: the transfer, or other `reading`, as predicted and as measured per seed.

    value: the setting as a number, 1 / p for a Schatten norm. limit: the closed form for a vanishing loss; None if the
    run is at a minimum instead. cost_predicted, cost_measured: what the mitigation costs, or does besides, in
    `cost_unit`, to within cost_tolerance (COST_NEAR times the prediction by default). tolerance: of the transfer; None
    for runs that are shown although they are known not to converge.
    """

    method: str
    setting: str
    value: float
    limit: float | None
    predicted: float
    measured: tuple[float, ...]
    how: str
    cost_unit: str = ""
    cost_predicted: float | None = None
    cost_measured: tuple[float, ...] = ()
    cost_tolerance: float | None = None
    tolerance: float | None = NEAR
    reading: str = "transfer"


def trained_minimum(task: TaskSpec, factor_decay: float, product_decay: float, seed: int) -> tuple[float, float]:
    """Transfer and objective of L-BFGS on W_O and W_V themselves, over the whole vocabulary, at width 2 n + 4.

    Loss and decays are those of `mitigation.decayed`, but not its convex problem.
    """
    questions = trained_questions(task)
    phi, right = theory.features(task, questions), theory.right_answers(task, questions)
    rows, columns, width = task.vocab, phi.shape[1], 2 * task.n_pairs + 4  # answers first, then all other tokens
    row = np.arange(len(right))

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        w_o, w_v = flat[: rows * width].reshape(rows, width), flat[rows * width :].reshape(columns, width)
        w = w_o @ w_v.T
        f = phi @ w.T
        f -= f.max(axis=1, keepdims=True)
        odds = np.exp(f)
        total = odds.sum(axis=1)
        loss = float((np.log(total) - f[row, right]).mean())
        error = odds / total[:, None]
        error[row, right] -= 1
        slope = error.T @ phi / len(right) + product_decay * w
        loss += factor_decay / 2 * float(flat @ flat) + product_decay / 2 * float((w * w).sum())
        grads = (slope @ w_v + factor_decay * w_o, slope.T @ w_o + factor_decay * w_v)
        return loss, np.concatenate([g.ravel() for g in grads])

    start = 0.1 * stream(seed, "init").standard_normal((rows + columns) * width)
    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-13, "gtol": 1e-8}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    w = found.x[: rows * width].reshape(rows, width) @ found.x[rows * width :].reshape(columns, width).T
    return theory.symmetrize(task, w[: 2 * task.n_pairs]).transfer, float(found.fun)


def _decay(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    strengths = [(1e-3, 0.0), (1e-4, 0.0), (1e-3, 1e-5), (1e-3, 1e-4), (1e-3, 1e-3), (1e-4, 1e-5)]
    for factors, product in strengths:
        setting = f"factors {factors:g}, product {product:g}"
        say(f"decay: {setting}")
        predicted = mitigation.decayed(DECAY_TASK, factors, product)
        ends = [trained_minimum(DECAY_TASK, factors, product, seed) for seed in seeds]
        yield Remedy(
            method="decay on the factors" if not product else "decay on both",
            setting=setting,
            value=product / factors,
            limit=None,
            predicted=predicted.transfer,
            measured=tuple(transfer for transfer, _ in ends),
            how="L-BFGS",
            cost_unit="objective, nats",
            cost_predicted=predicted.objective,
            cost_measured=tuple(objective for _, objective in ends),
        )


def _product_decay(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """AdamW for 5,000 steps: no minimum has transfer, but weak decay takes longer to get there."""
    train = TrainSpec(batch=0, init_scale=0.01, steps=5000, decay=0.0, record_every=5000)
    for strength in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        say(f"decay on the product {strength:g}")
        predicted = mitigation.decayed(PUBLISHED_SIZE, 0.0, strength)
        model = ModelSpec("factorized", d_h=64, trainable_kq=False)
        specs = [RunSpec(PUBLISHED_SIZE, model, replace(train, product_decay=strength, seed=seed)) for seed in seeds]
        ends = train_runs(specs)
        yield Remedy(
            method="decay on the product",
            setting=f"{strength:g}",
            value=strength,
            limit=None,
            predicted=predicted.transfer,
            measured=tuple(run.transfer for run in ends),
            how="AdamW",
            cost_unit="worst train loss, nats",
            cost_predicted=max(predicted.losses),
            cost_measured=tuple(max(run.last.loss[name] for name in TRAINED_SETS) for run in ends),
            tolerance=NEAR if strength >= 1e-6 else None,
        )


def _schatten(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Four kinds of descent and the norm that each minimizes; and one norm that none of them minimizes, solved."""
    task, sizes = noise_free(3, 1, 3), (3, 1, 3)
    problem = theory.merged_task(*sizes)
    say("Schatten norms")

    def row(p: float, name: str, limit: float, predicted: float, measured: Sequence[float]) -> Remedy:
        return Remedy("Schatten norm", f"p = {p:.3g}: {name}", 1 / p, limit, predicted, tuple(measured), "descent")

    def descents(spec: DescentSpec) -> tuple[float, list[float]]:
        ends = [descend(task, replace(spec, seed=seed)) for seed in seeds]
        return ends[0].log_loss, [theory.symmetrize(task, end.w_ov).transfer for end in ends]

    limit = theory.narrow_transfer(*sizes, exponent=2 / 3)
    _, found = descents(replace(HELD, depth=3, d_h=6, init_scale=0.5, hold_margin=1000, hold_steps=8000, armijo=0.25))
    yield row(2 / 3, "three matrices", limit, limit, found)
    end_loss, found = descents(HELD)
    limit = mitigation.schatten_transfer(1, 3, 1)
    predicted = _transfer(theory.least_norm(problem, log_loss=end_loss), 3, 0, 1, 1, 3)
    yield row(1, "two matrices", limit, predicted, found)
    _, found = descents(DescentSpec(param="merged", hold_steps=0))
    yield row(2, "one matrix", 0.0, 0.0, found)
    limit = mitigation.schatten_transfer(1, 3, 4)
    solved = _transfer(theory.least_norm(problem, "schatten4"), 3, 0, 1, 1, 3)
    yield Remedy("Schatten norm", "p = 4: solver", 1 / 4, limit, limit, (solved,), "solver")
    ends = [spectral_descent(theory.problem(task), seed) for seed in seeds]
    least = float(np.linalg.norm(theory.least_norm(problem, "spectral"), 2))
    limit = mitigation.schatten_transfer(1, 3, math.inf)
    found = [theory.symmetrize(task, end).transfer for end in ends]
    spectral = tuple(float(np.linalg.norm(end, 2)) for end in ends)
    yield replace(
        row(math.inf, "one matrix, spectral steps", limit, limit, found),
        cost_unit="spectral norm at margin 1",
        cost_predicted=least,
        cost_measured=spectral,
        tolerance=0.1,  # the W_OV of least spectral norm is not unique
    )


def spectral_descent(of: Problem, seed: int) -> Matrix:
    """W_OV at margin 1 after steps of fixed size along U V^T for the gradient U S V^T, like Muon without momentum."""
    w = 0.01 * stream(seed, "init").standard_normal((of.targets.shape[1], of.phi.shape[1]))
    for _ in range(SPECTRAL_STEPS):
        _, slope = log_loss(of.phi @ w.T, of.right, of.sizes)
        u, _, vt = np.linalg.svd(slope.T @ of.phi, full_matrices=False)
        w -= SPECTRAL_RATE * (u @ vt)
    return w / of.margin(w)


def _transfer(w: Matrix, n: int, taught: int, held_out: int, taught_size: float, held_out_size: float) -> float:
    """The own-minus-other c contrast of one group divided by that of another, in a W of `merged_problem`."""
    own = theory.own_contrast(w, n, held_out, held_out_size, n)
    return own / theory.own_contrast(w, n, taught, taught_size, n)


def _entailments(n: int, shift: int = 0, first: int | None = None) -> tuple[int, ...]:
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
        problem = theory.merged_problem(self.n_pairs, self.groups, self.n_rows)
        ends = [descend_on(problem, replace(HELD, seed=seed), setting) for seed in seeds]
        optimum = theory.least_norm(problem, log_loss=ends[0].log_loss)
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
        return _transfer(w, self.n_pairs, 0, len(self.groups) - 1, self.groups[0].size, self.groups[-1].size)

    def over_none(self, w: Matrix) -> float:
        """Mean logit of own c minus "none" for test subjects asked r2, divided by entailing subjects' contrast."""
        n, last = self.n_pairs, len(self.groups) - 1
        logits = w[:, last * n : (last + 1) * n] / math.sqrt(self.groups[-1].size) + w[:, -1:]
        gap = float(np.mean(np.diag(logits[n : 2 * n]) - logits[2 * n]))
        return gap / theory.own_contrast(w, n, 0, self.groups[0].size, n)


def _label_noise(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    say("contradicting labels")
    n, m_train, m_test = 3, 8, 3
    for wrong in (0, 2, 4):
        others = tuple(Group(wrong / (n - 1), _entailments(n, shift)) for shift in range(1, n) if wrong)
        groups = (Group(m_train - wrong, _entailments(n)), *others, Group(m_test))
        limit = mitigation.noisy_transfer(n, m_train, m_test, wrong / m_train)
        setting = f"{wrong} of {m_train} entailments per pair contradict"
        yield _Changed(n, groups, 2 * n).row("label noise", setting, wrong / m_train, limit, seeds)


def _abstaining(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Subjects that abstain are trained to answer an extra token, "none"; in the closed form they prefer no c."""
    say("examples that abstain")
    n, m_train, m_test = 3, 2, 3
    for abstaining in (1, 2, 4):
        groups = (Group(m_train, _entailments(n)), Group(abstaining, (2 * n,) * n), Group(m_test))
        limit = mitigation.abstaining_transfer(m_train, m_test, abstaining)
        setting = f"{abstaining} abstain per {m_train} that entail"
        yield _Changed(n, groups, 2 * n + 1).row("abstaining", setting, abstaining / m_train, limit, seeds)


def _competing(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    say("competing entailments")
    n, m_second, m_test = 3, 1, 3
    for m_first in (1, 2, 4):
        groups = (Group(m_first, _entailments(n)), Group(m_second, _entailments(n, first=2 * n)), Group(m_test))
        limit = mitigation.competing_transfer(m_first, m_second, m_test)
        setting = f"{m_first} entail c, {m_second} a third answer"
        yield _Changed(n, groups, 3 * n).row("competing entailment", setting, m_first / m_second, limit, seeds)


def _unequal(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """Pairs with different m_train. To leading order each is alone, with sqrt(its own rho); with m_train = 0, below 0.

    Margins are over the other c's at train margin 1. K0 couples the pairs, by about 1 / n; there is no closed form.
    """
    say("pairs with different numbers of train subjects")
    for m_train, m_test, *published in UNEQUAL:
        n = len(m_train)
        problem = unequal_problem(m_train, m_test)
        solved = class_margins(theory.least_norm(problem, solver="SCS"), problem, m_train, m_test)
        ends = [descend_on(problem, replace(HELD, seed=s), "unequal pairs") for s in seeds if n <= LARGEST_DESCENT]
        runs = [class_margins(end.w_ov, problem, m_train, m_test) for end in ends]
        held = theory.least_norm(problem, log_loss=ends[0].log_loss) if ends else None
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
    trained = [Group(size, _entailments(n), pairs) for size, pairs in classes.items()]
    return theory.merged_problem(n, (*trained, Group(m_test)))


def class_margins(w: Matrix, of: Problem, m_train: Sequence[int], m_test: int) -> tuple[float, float]:
    """Held-out margin over the other c's at train margin 1: mean over the pairs like the first, and like the last."""
    n, size = len(m_train), np.array(m_train)
    f = w[n:, -n - 2 : -2] / math.sqrt(m_test) / of.margin(w)
    margins = np.diag(f) - np.where(np.eye(n, dtype=bool), -np.inf, f).max(axis=0)
    return float(margins[size == size[0]].mean()), float(margins[size == size[-1]].mean())


def _price(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """The price of removing all transfer: the extra nuclear norm of the Frobenius optimum, by the solver."""
    say("price of removing all transfer")
    for sizes in ((3, 1, 3), (4, 2, 3), (10, 1, 3)):
        problem = theory.merged_task(*sizes)
        norms = [theory.norm("factorized", theory.least_norm(problem, kind)) for kind in ("frobenius", "nuclear")]
        share = mitigation.price(*sizes, 0.0) / theory.optimal_norm("factorized", *sizes)
        measured = (norms[0] - norms[1]) / norms[1]
        setting = f"n, m_train, m_test = {sizes}"
        row = Remedy("price of none", setting, sizes[1] / sizes[2], None, share, (measured,), "solver")
        yield replace(row, reading="extra nuclear norm, as a share")


METHODS: dict[str, Callable[[Sequence[int], Say], Iterator[Remedy]]] = {
    "decay": _decay,
    "product-decay": _product_decay,
    "schatten": _schatten,
    "label-noise": _label_noise,
    "abstaining": _abstaining,
    "competing": _competing,
    "unequal": _unequal,
    "price": _price,
}
"""The function that runs each mitigation, by name."""


def remedies(seeds: Sequence[int], say: Say, methods: Sequence[str] = tuple(METHODS)) -> Iterator[Remedy]:
    """Every row of the chosen mitigations. Raises ToyError for an unknown one, and for invalid seeds."""
    for method in methods:
        require(method in METHODS, f"method = {method}: unknown; use one of {', '.join(METHODS)}")
    require_seeds(seeds, least=1)
    for method in methods:
        yield from METHODS[method](seeds, say)


def checks(row: Remedy) -> Iterator[Check]:
    """Checks of the row's transfer and cost, each for the run furthest from its prediction."""

    def furthest(measured: Sequence[float], predicted: float) -> float:
        return max(measured, key=lambda value: abs(value - predicted))

    name = f"{row.method}, {row.setting}"
    if row.tolerance is not None:
        found = furthest(row.measured, row.predicted)
        yield Check("mitigate", f"{name}: {row.reading}", row.predicted, found, row.tolerance)
        if row.cost_predicted is not None:
            found = furthest(row.cost_measured, row.cost_predicted)
            near = COST_NEAR * abs(row.cost_predicted) if row.cost_tolerance is None else row.cost_tolerance
            yield Check("mitigate", f"{name}: {row.cost_unit}", row.cost_predicted, found, near)


def report(seeds: Sequence[int], say: Say, methods: Sequence[str] = tuple(METHODS)) -> Report:
    """The table of `toy mitigate`: the closed form, the prediction for the run's loss, and the runs."""
    rows = list(remedies(seeds, say, methods))
    headings = ("mitigation", "setting", "limit", "predicted", "measured", "by", "cost predicted, measured")
    cells = [
        (
            row.method,
            row.setting,
            "-" if row.limit is None else f"{row.limit:.4f}",
            f"{row.predicted:.4f}",
            listed(row.measured),
            row.how,
            ""
            if row.cost_predicted is None
            else f"{row.cost_predicted:.4g}, {np.mean(row.cost_measured):.4g} ({row.cost_unit})",
        )
        for row in rows
    ]
    return Report(
        name="mitigate",
        source="Huang et al. 2025 (arXiv 2506.10887); the closed forms are derived here",
        checks=[check for row in rows for check in checks(row)],
        lines=table(headings, cells),
        data={"rows": [asdict(row) for row in rows]},
    )
