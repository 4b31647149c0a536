"""The mitigations of `mitigation`, predictions against runs: what `toy mitigate` prints and draws.

A run is compared with the optimum it should reach: decay with the minimum of the decayed loss; changed data with the
least norm at the loss that descent is held at, whose limit is the closed form.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
from scipy import optimize

from ocr_toy import changed_data, convex, mitigation, theory
from ocr_toy.convex import Problem
from ocr_toy.descent import DescentSpec, descend, log_loss
from ocr_toy.errors import require
from ocr_toy.model import ModelSpec
from ocr_toy.remedy import HELD, NEAR, Remedy, checks, transfer
from ocr_toy.report import Report, Say, listed, table
from ocr_toy.runs import RunSpec, TrainSpec
from ocr_toy.statistics import require_seeds
from ocr_toy.task import TRAINED_SETS, Matrix, TaskSpec, noise_free, stream, trained_questions
from ocr_toy.train import train_runs

DECAY_TASK, PUBLISHED_SIZE = noise_free(5, 1, 3), noise_free(20, 1, 3)
SPECTRAL_RATE, SPECTRAL_STEPS = 0.2, 4000


def trained_minimum(task: TaskSpec, factor_decay: float, product_decay: float, seed: int) -> tuple[float, float]:
    """Transfer and objective of L-BFGS on W_O and W_V themselves, over the whole vocabulary, at width 2 n + 4.

    Loss and decays are those of `mitigation.decayed`, but not its convex problem.
    """
    questions = trained_questions(task)
    phi, right = convex.features(task, questions), convex.right_answers(task, questions)
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
    problem = convex.merged_task(*sizes)
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
    predicted = transfer(convex.least_norm(problem, log_loss=end_loss), 3, 0, 1, 1, 3)
    yield row(1, "two matrices", limit, predicted, found)
    _, found = descents(DescentSpec(param="merged", hold_steps=0))
    yield row(2, "one matrix", 0.0, 0.0, found)
    limit = mitigation.schatten_transfer(1, 3, 4)
    solved = transfer(convex.least_norm(problem, "schatten4"), 3, 0, 1, 1, 3)
    yield Remedy("Schatten norm", "p = 4: solver", 1 / 4, limit, limit, (solved,), "solver")
    ends = [spectral_descent(convex.problem(task), seed) for seed in seeds]
    least = float(np.linalg.norm(convex.least_norm(problem, "spectral"), 2))
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


def _price(seeds: Sequence[int], say: Say) -> Iterator[Remedy]:
    """The price of removing all transfer: the extra nuclear norm of the Frobenius optimum, by the solver."""
    say("price of removing all transfer")
    for sizes in ((3, 1, 3), (4, 2, 3), (10, 1, 3)):
        problem = convex.merged_task(*sizes)
        norms = [theory.norm("factorized", convex.least_norm(problem, kind)) for kind in ("frobenius", "nuclear")]
        share = mitigation.price(*sizes, 0.0) / theory.optimal_norm("factorized", *sizes)
        measured = (norms[0] - norms[1]) / norms[1]
        setting = f"n, m_train, m_test = {sizes}"
        row = Remedy("price of none", setting, sizes[1] / sizes[2], None, share, (measured,), "solver")
        yield replace(row, reading="extra nuclear norm, as a share")


METHODS: dict[str, Callable[[Sequence[int], Say], Iterator[Remedy]]] = {
    "decay": _decay,
    "product-decay": _product_decay,
    "schatten": _schatten,
    "label-noise": changed_data.label_noise,
    "abstaining": changed_data.abstaining,
    "competing": changed_data.competing,
    "unequal": changed_data.unequal,
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
