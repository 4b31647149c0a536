"""Training: batched equals single, golden losses, the optimizer, determinism."""

import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from ocr_toy import model as m
from ocr_toy.aside import training_aside
from ocr_toy.errors import ToyError
from ocr_toy.model import ModelSpec
from ocr_toy.runs import RunSpec, TrainSpec
from ocr_toy.sweep import run_sweep
from ocr_toy.task import TEST_ENTAILMENT, TaskSpec, full_batch, noise_free
from ocr_toy.train import train_runs

SMALL = RunSpec(
    TaskSpec(n_pairs=4, m_train=1, m_test=2, n_noise=2, seq_len=6),
    ModelSpec(d_h=6),
    TrainSpec(steps=120, batch=24, record_every=40, init_scale=0.01),
)


@pytest.mark.parametrize(
    ("over", "values"),
    [("d_h", (2, 5)), ("m_train", (0, 2)), ("seed", (0, 7)), ("decay", (0.0, 0.5)), ("init", (1e-3, 1e-1))],
)
def test_a_sweep_equals_its_runs_done_singly(over: str, values: tuple[float, ...]) -> None:
    """Up to the rounding of matrix products, which for odd sizes depends on where a matrix lies in memory."""
    together = run_sweep(SMALL, over, values, [0, 1])
    assert len({r.w_ov.tobytes() for r in together}) == len(together)
    for result in together:
        alone = train_runs([result.spec])[0]
        assert alone.w_ov == pytest.approx(result.w_ov, abs=1e-5)
        for ours, theirs in zip(alone.records, result.records, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
            assert ours.margins.train == pytest.approx(theirs.margins.train, abs=1e-4)


def test_the_published_rank_sweep_equals_its_runs_to_the_bit() -> None:
    base = RunSpec(train=TrainSpec(steps=30, record_every=15))
    for result in run_sweep(base, "d_h", (3, 4, 16, 128), [0, 1]):
        alone = train_runs([result.spec])[0]
        assert np.array_equal(alone.w_ov, result.w_ov)
        assert alone.records == result.records


def test_models_of_every_kind_train_together_as_alone() -> None:
    kinds = [
        ModelSpec("merged"),
        ModelSpec("factorized", d_h=3, attention="softmax"),
        ModelSpec("factorized", d_h=3, mlp_width=5),
        ModelSpec("merged", trainable_kq=False),
    ]
    specs = [replace(SMALL, model=kind) for kind in kinds]
    for spec, result in zip(specs, train_runs(specs), strict=True):
        assert train_runs([spec])[0].last.loss == pytest.approx(result.last.loss, abs=1e-5)


def test_golden_losses_of_the_published_run() -> None:
    train = TrainSpec(steps=200, record_every=200)
    factorized, merged = train_runs([RunSpec(model=ModelSpec(p), train=train) for p in ("factorized", "merged")])
    assert factorized.last.loss[TEST_ENTAILMENT] == pytest.approx(GOLDEN["factorized"], rel=1e-2)
    assert merged.last.loss[TEST_ENTAILMENT] == pytest.approx(GOLDEN["merged"], rel=1e-2)


GOLDEN = {"factorized": 0.3066, "merged": 3.1636}


def test_adamw_is_torchs() -> None:
    task = noise_free(3, 1, 1)
    spec = RunSpec(
        task,
        ModelSpec("merged", trainable_kq=False),
        TrainSpec(steps=50, batch=0, record_every=50, precision="float64", init_scale=0.1, decay=0.1),
    )
    start = m.initial_parameters(spec.model, task, "gaussian", 0.1, 0)
    params = {name: torch.from_numpy(value)[None].requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=spec.train.lr, weight_decay=0.1)
    batch = m.to_device(task, [full_batch(task)], torch.float64)
    for _ in range(50):
        optimizer.zero_grad()
        m.losses(spec.model, task, params, batch).sum().backward()
        optimizer.step()
    expected = params["W_OV^T"].detach()[0].T.numpy()
    assert train_runs([spec])[0].w_ov == pytest.approx(expected, abs=1e-10)


def test_gradient_descent_takes_the_steps_of_the_gradient() -> None:
    task = noise_free(3, 1, 1)
    train = TrainSpec(optimizer="gd", lr=0.5, decay=0.2, steps=2, batch=0, init_scale=0.1, precision="float64")
    spec = RunSpec(task, ModelSpec("merged", trainable_kq=False), train)
    batch = m.to_device(task, [full_batch(task)], torch.float64)
    start = m.initial_parameters(spec.model, task, "gaussian", 0.1, 0)["W_OV^T"]
    w = {"W_OV^T": torch.from_numpy(start)[None]}
    for _ in range(2):
        gradient = m.autograd_gradients(spec.model, task, w, batch, torch.zeros(1, dtype=torch.float64))
        w = {"W_OV^T": 0.9 * w["W_OV^T"] - 0.5 * gradient["W_OV^T"]}
    assert train_runs([spec])[0].w_ov == pytest.approx(w["W_OV^T"][0].T.numpy(), abs=1e-12)


def test_product_decay_shrinks_the_product() -> None:
    plain, decayed = (replace(SMALL, train=replace(SMALL.train, product_decay=d)) for d in (0.0, 0.05))
    sizes = [r.last.norms.frobenius for r in train_runs([plain, decayed]) if r.last.norms]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_record_measures_each_question_set_against_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers b_1, b_2, c_1, c_2 have ids 7 to 10; questions come as train facts and entailments, then test."""
    f = torch.zeros(1, 8, 11)
    f[0, range(8), [7, 8, 9, 10] * 2] = 5.0
    f[0, 0, 10] = 6.0  # a train fact answered with c_2, past its own answer
    f[0, 6, 7], f[0, 6, 10] = 8.0, 4.0  # a test entailment answered with b_1, the other c 1 below its own
    monkeypatch.setattr(m, "logits", lambda *_: f)
    train = TrainSpec(steps=1, batch=0)
    last = train_runs([RunSpec(noise_free(2, 1, 1), ModelSpec("merged"), train)])[0].last
    assert last.accuracy == {"train_fact": 0.5, "train_entailment": 1.0, "test_fact": 1.0, TEST_ENTAILMENT: 0.5}
    assert (last.margins.train, last.margins.held_out) == (-1.0, 1.0)
    log_p = torch.log_softmax(f[0].double(), dim=1)
    assert last.loss[TEST_ENTAILMENT] == pytest.approx(float(-(log_p[6, 9] + log_p[7, 10]) / 2), abs=1e-6)


def test_without_train_subjects_there_is_no_such_set() -> None:
    result = train_runs([replace(SMALL, task=replace(SMALL.task, m_train=0))])[0]
    assert set(result.last.loss) == {"test_fact", TEST_ENTAILMENT}
    with pytest.raises(ToyError, match="train_fact"):
        result.losses("train_fact")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"lr": 0.0}, "lr = 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"decay": -1.0}, "decay = -1"),
        ({"lr": 50.0}, "lr = 50.0 with decay = 0.03: "),
        ({"optimizer": "sgd"}, "optimizer = sgd"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_bad_training_is_refused_by_name(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ToyError, match="^" + names):
        TrainSpec(**fields)


def test_a_zero_init_is_refused_where_no_step_leaves_it() -> None:
    train = TrainSpec(init_scale=0.0, steps=1)
    for model in (ModelSpec(), ModelSpec(attention="softmax"), ModelSpec("merged")):
        with pytest.raises(ToyError, match=r"^init_scale = 0"):
            RunSpec(SMALL.task, model, train)
    for model in (ModelSpec("merged", trainable_kq=False), ModelSpec("merged", attention="softmax")):
        result = train_runs([RunSpec(SMALL.task, model, train)])[0]
        assert np.abs(result.w_ov).max() > 0


def test_runs_that_cannot_share_steps_are_refused() -> None:
    other = replace(SMALL, train=replace(SMALL.train, steps=50))
    with pytest.raises(ToyError, match="steps = "):
        train_runs([SMALL, other])


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"lr": 1e6}, "lr = 1000000.0: the loss is no longer finite at step 40"),
        ({"init_scale": 1e30}, r"init_scale = 1e\+30: the loss is not finite at the start"),
    ],
)
def test_a_diverging_run_is_reported_with_its_cause(fields: dict[str, float], names: str) -> None:
    train = replace(SMALL.train, optimizer="gd", decay=0.0, init_scale=1.0, norms_every=40)
    with pytest.raises(ToyError, match="^" + names):
        train_runs([replace(SMALL, train=replace(train, **fields))])


def test_runs_trained_in_a_second_process_equal_those_trained_here() -> None:
    specs = [RunSpec(train=TrainSpec(steps=30, record_every=10, seed=seed)) for seed in (0, 1)]
    with training_aside(specs) as results:
        theirs = results()
    for here, there in zip(train_runs(specs), theirs, strict=True):
        assert here.records == there.records
        assert np.array_equal(here.w_ov, there.w_ov)


def test_what_is_wrong_in_a_second_process_is_raised_here() -> None:
    specs = [RunSpec(train=TrainSpec(steps=1)), RunSpec(train=TrainSpec(steps=2))]
    with pytest.raises(ToyError, match="steps"), training_aside(specs) as results:
        results()


def test_a_second_process_ends_when_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: begun.append(popen(*a, **k)) or begun[-1])
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), training_aside([RunSpec(train=TrainSpec(steps=10_000_000))]):
        raise KeyboardInterrupt
    assert begun[0].poll() is not None
    assert time.monotonic() - start < 60
