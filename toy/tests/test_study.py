"""The theory check, the open questions and the figures, on sizes that take seconds."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ocr_toy import check as claims
from ocr_toy import experiments, figures
from ocr_toy.check import Check, CheckSpec, run_checks
from ocr_toy.descent import Descent, DescentSpec, descend
from ocr_toy.errors import ToyError
from ocr_toy.model import ModelSpec
from ocr_toy.runs import Record, RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import margins
from ocr_toy.sweep import RankSweep, SweepPoint
from ocr_toy.task import TaskSpec, noise_free
from ocr_toy.train import train_runs

SMALL = RunSpec(TaskSpec(4, 1, 2, 2, 6), ModelSpec(d_h=16), TrainSpec(steps=2000, record_every=20))


@pytest.mark.parametrize(
    ("relation", "measured", "passed"),
    [
        ("==", 1.1, True),
        ("==", 1.3, False),
        (">=", 0.9, True),
        (">=", 0.7, False),
        ("<=", 1.1, True),
        ("<=", 1.3, False),
    ]
    + [(relation, float("nan"), False) for relation in ("==", ">=", "<=")],
)
def test_a_check_passes_within_its_tolerance_and_never_on_nan(relation: str, measured: float, passed: bool) -> None:
    assert Check(1, "", 1.0, measured, 0.2, relation).passed is passed


def test_claims_1_and_2_hold_where_m_train_is_below_m_test() -> None:
    checks = []
    for check in run_checks(CheckSpec(grid=((3, 1, 2),)), lambda line: None):
        if check.claim == 3:
            break
        checks.append(check)
    assert {c.claim for c in checks} == {1, 2}
    assert len(checks) == 16
    assert [c.name for c in checks if not c.passed] == []


@pytest.mark.parametrize(
    ("hasty", "fails"),
    [
        ({"HELD_STEPS": (200, 200)}, "transfer of gradient descent held"),
        ({"VANISHING_LOSS": -30.0}, "as the loss vanishes"),
    ],
)
def test_a_descent_or_an_optimum_that_is_not_near_its_limit_fails(
    hasty: dict[str, Any], fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hasty.items():
        monkeypatch.setattr(claims, name, value)
    checks = claims._held_descent(claims.Study(CheckSpec(), lambda line: None, list), (3, 1, 3))
    failed = [c.name for c in checks if c.claim == 2 and not c.passed]
    assert failed
    assert all(fails in name for name in failed)


def test_a_width_that_learned_nothing_is_no_evidence_that_it_does_not_suffice() -> None:
    spec = CheckSpec(ranks=(3,), rank_steps=1)
    study = claims.Study(spec, lambda line: None, lambda: train_runs(spec.rank_runs()))
    assert [c.name for c in claims._claim_5(study) if not c.passed] == ["factorized, d_h = 3: train loss, learned"]


def test_the_checks_fail_where_the_two_models_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(task: TaskSpec, how: DescentSpec) -> Descent:
        other = "merged" if how.param == "factorized" else "factorized"
        return descend(task, replace(how, param=other))

    def factorized(runs: list[RunSpec]) -> list[RunResult]:
        gaussian = [replace(run.train, init="gaussian") for run in runs]
        return train_runs([replace(r, model=ModelSpec(d_h=16), train=t) for r, t in zip(runs, gaussian, strict=True)])

    study = claims.Study(CheckSpec(grid=((3, 1, 3),)), lambda line: None, list)
    study.__dict__["published"] = dict(zip(claims.BOTH, reversed(study.published.values()), strict=True))
    monkeypatch.setattr(claims, "descend", swapped)
    monkeypatch.setattr(claims, "train_runs", factorized)
    for make in (claims._claim_1_and_2, claims._claim_3, claims._claim_4, claims._claim_6, claims._claim_7):
        checks = list(make(study))
        for claim in {c.claim for c in checks}:
            assert [c.name for c in checks if c.claim == claim and not c.passed] != []
    assert not all(c.passed for c in claims._claim_8(study))


def _finished(losses: dict[str, list[float]], accuracy: float, transfer: float) -> RunResult:
    """A run by hand on pairs of one train and one test subject, a record every 10 steps."""
    task = noise_free(2, 1, 1)
    effect = np.zeros((task.vocab, task.n_inputs))
    effect[[9, 10], [0, 1]], effect[[9, 10], [2, 3]] = 2.0, 2.0 * transfer
    accuracies = dict.fromkeys(losses, 0.0) | {"test_entailment": accuracy}
    records = tuple(
        Record(10 * i, dict(zip(losses, values, strict=True)), accuracies, margins(1.0, 1.0), None)
        for i, values in enumerate(zip(*losses.values(), strict=True))
    )
    return RunResult(RunSpec(task, train=TrainSpec(batch=0)), records, effect, effect)


LOSSES = {
    "train_fact": [2.0, 0.05, 0.04, 0.03],
    "train_entailment": [2.0, 0.5, 0.09, 0.08],
    "test_fact": [2.0, 0.05, 0.01, 0.01],
    "test_entailment": [2.0, 2.0, 0.5, 0.06],
}


def test_a_set_is_learned_with_its_worst_part_and_an_outcome_is_of_the_last_step() -> None:
    late = _finished(LOSSES, 0.4, 0.5)
    assert late.learned_steps(0.1) == (20, 30)
    at_once = _finished({**LOSSES, "test_entailment": [2.0, 0.3, 0.06, 0.02]}, 0.6, 0.7)
    never = _finished({**LOSSES, "test_entailment": [2.0, 2.0, 2.0, 2.0]}, 0.2, 0.0)
    assert never.learned_steps(0.1) == (20, None)
    found = experiments.outcome("by hand", [late, at_once, never])
    assert (found.crossed, found.seeds) == (2, 3)
    assert found.delay is not None
    assert found.delay.mean == pytest.approx(5.0)
    means = (found.train_loss.mean, found.test_loss.mean, found.test_accuracy.mean, found.transfer.mean)
    assert means == pytest.approx((0.08, (0.06 + 0.02 + 2.0) / 3, 0.4, 0.4))


def test_transfer_and_delay_tell_the_two_models_apart() -> None:
    outcomes = {}
    for param in ("factorized", "merged"):
        specs = [
            replace(SMALL, model=replace(SMALL.model, param=param), train=replace(SMALL.train, seed=s)) for s in (0, 1)
        ]
        outcomes[param] = experiments.outcome(param, train_runs(specs))
    factorized, merged = outcomes["factorized"], outcomes["merged"]
    assert factorized.crossed == 2
    assert factorized.delay is not None
    assert factorized.delay.mean >= 0
    assert factorized.transfer.mean > 0.3
    assert (merged.crossed, merged.delay) == (0, None)
    assert abs(merged.transfer.mean) < 0.1


def test_transfer_without_train_subjects_is_an_error() -> None:
    run = train_runs([replace(SMALL, task=replace(SMALL.task, m_train=0))])[0]
    with pytest.raises(ToyError, match="m_train = 0"):
        _ = run.transfer


def test_every_figure_is_written_in_every_format_and_whole(tmp_path: Path) -> None:
    specs = [
        replace(SMALL, model=replace(SMALL.model, param=p), train=replace(SMALL.train, norms_every=50))
        for p in figures.BOTH
    ]
    points = [SweepPoint(value, (loss, 2 * loss), None) for value, loss in ((3, 1.0), (4, 0.1))]
    ranks = RankSweep(points, 300, 5)
    margins = {p: [(0, 0.0), (1, 0.5)] for p in figures.BOTH}
    spectra = {p: (r.w_ov[0, :3], r.w_ov[1, :3]) for p, r in zip(figures.BOTH, train_runs(specs), strict=True)}
    published = dict(zip(figures.BOTH, train_runs(specs), strict=True))
    measured = figures.Measured(published, margins, spectra, ranks)
    (axes,) = figures.rank_curve(measured).axes
    assert axes.lines[-1].get_ydata() == pytest.approx([math.log(5)] * 2)
    assert axes.get_title() == "factorized, 5 pairs, 300 training steps"
    written = figures.save_all(measured, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert len(written) == 3 * len(figures.FIGURES) == 18
    starts = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}
    for path in written:
        assert path.read_bytes().startswith(starts[path.suffix])
