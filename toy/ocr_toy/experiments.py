"""The questions the paper leaves open, as experiments: conditions, seeds, and intervals over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ocr_toy.errors import require
from ocr_toy.model import BOTH, Attention, ModelSpec
from ocr_toy.runs import THRESHOLD, RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import Interval, interval, require_seeds
from ocr_toy.task import TEST_ENTAILMENT, TRAINED_SETS, noise_free
from ocr_toy.train import train_runs


@dataclass(frozen=True)
class Outcome:
    """The results of one setting over seeds.

    train_loss: worst trained question set; test_loss, test_accuracy: test entailments; all at the last step.
    transfer: as in `RunResult`, ignoring softmax denominators and an MLP.
    delay: steps between the train loss and the test loss crossing THRESHOLD, over the `crossed` of `seeds` runs in
    which both did; None with fewer than two such runs.
    """

    name: str
    seeds: int
    train_loss: Interval
    test_loss: Interval
    test_accuracy: Interval
    transfer: Interval
    crossed: int
    delay: Interval | None


_FULL_BATCH = TrainSpec(batch=0, init_scale=0.01, steps=5000, record_every=50)
_OPTIMIZERS = {
    "GD": replace(_FULL_BATCH, optimizer="gd", lr=1.0, decay=0.0),
    "GD, decay 1e-4": replace(_FULL_BATCH, optimizer="gd", lr=1.0, decay=1e-4),
    "AdamW": replace(_FULL_BATCH, decay=0.0),
    "AdamW, decay 0.03": _FULL_BATCH,
    "AdamW, decay 0.3": replace(_FULL_BATCH, decay=0.3),
}

QUESTIONS: dict[str, dict[str, RunSpec]] = {
    "kq": {
        f"{param}, W_KQ {'trained' if trained else 'fixed'}": RunSpec(model=ModelSpec(param, trainable_kq=trained))
        for param in BOTH
        for trained in (False, True)
    },
    "softmax": {
        f"{param}, {kind} attention": RunSpec(model=ModelSpec(param, attention=kind))
        for param in BOTH
        for kind in get_args(Attention)
    },
    "mlp": {
        f"{param}, MLP width {width}": RunSpec(model=ModelSpec(param, mlp_width=width))
        for param in BOTH
        for width in (0, 32, 128)
    },
    "optimizer": {
        f"{param}, {name}": RunSpec(noise_free(20, 1, 3), ModelSpec(param, d_h=64, trainable_kq=False), train)
        for param in BOTH
        for name, train in _OPTIMIZERS.items()
    },
    "delay": {
        f"init scale {scale:g}": RunSpec(train=TrainSpec(init_scale=scale, steps=3000, record_every=10))
        for scale in (1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0)
    },
}
"""The runs of each open question, by question and condition."""


def outcome(name: str, runs: Sequence[RunResult]) -> Outcome:
    """Summarize one condition's runs."""
    trained = [max(r.last.loss[k] for k in TRAINED_SETS if k in r.last.loss) for r in runs]
    steps = [r.learned_steps(THRESHOLD) for r in runs]
    delays = [float(test - train) for train, test in steps if train is not None and test is not None]
    return Outcome(
        name=name,
        seeds=len(runs),
        train_loss=interval(trained),
        test_loss=interval([r.last.loss[TEST_ENTAILMENT] for r in runs]),
        test_accuracy=interval([r.last.accuracy[TEST_ENTAILMENT] for r in runs]),
        transfer=interval([r.transfer for r in runs]),
        crossed=len(delays),
        delay=interval(delays) if len(delays) > 1 else None,
    )


def run_question(name: str, seeds: Sequence[int], say: Callable[[str], None]) -> list[Outcome]:
    """Train every condition of a question, with its seeds as one batch; `say` is called with each condition's name.

    Raises ToyError for an unknown name and for seeds that give no interval.
    """
    require(name in QUESTIONS, f"question = {name}: unknown; use one of {', '.join(QUESTIONS)}")
    require_seeds(seeds, least=2)
    outcomes = []
    for condition, run in QUESTIONS[name].items():
        say(f"{name}: {condition}")
        runs = [replace(run, train=replace(run.train, seed=seed)) for seed in seeds]
        outcomes.append(outcome(condition, train_runs(runs)))
    return outcomes
