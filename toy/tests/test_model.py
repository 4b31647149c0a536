"""The models: the reduced forward pass is the paper's, and the written-out gradients are autograd's."""

import numpy as np
import pytest
import torch
from ocr_toy import model as m
from ocr_toy.errors import ToyError
from ocr_toy.task import TaskSpec, sample_batches, stream, to_tokens

TASK = TaskSpec(n_pairs=3, m_train=1, m_test=2, n_noise=2, seq_len=7)


def _setup(model: m.ModelSpec, runs: int = 2) -> tuple[m.Parameters, m.DeviceBatch, list[np.ndarray]]:
    values = [m.initial_parameters(model, TASK, "gaussian", 0.5, seed) for seed in range(runs)]
    params = {name: torch.from_numpy(np.stack([v[name] for v in values])) for name in values[0]}
    drawn = [sample_batches(TASK, 10, 1, stream(seed, "data")) for seed in range(runs)]
    flat = [type(d)(d.subject[0], d.context[0], d.answer[0]) for d in drawn]
    tokens = [to_tokens(TASK, b, stream(9, "layout")) for b in flat]
    return params, m.to_device(TASK, flat, torch.float64), tokens


@pytest.mark.parametrize("param", ["factorized", "merged"])
@pytest.mark.parametrize("attention", ["linear", "softmax"])
@pytest.mark.parametrize("trainable_kq", [True, False])
def test_logits_equal_the_formula_on_one_hot_sequences(
    param: m.Param, attention: m.Attention, trainable_kq: bool
) -> None:
    model = m.ModelSpec(param, d_h=5, trainable_kq=trainable_kq, attention=attention)
    params, batch, tokens = _setup(model)
    f = m.logits(model, TASK, params, batch)
    for run in range(2):
        w_ov = m.table(model, params)[run].T.numpy()
        w_kq = m.key_query(model, TASK, params)[run].numpy()
        for row, sequence in enumerate(tokens[run]):
            x = np.eye(TASK.n_inputs)[sequence]
            attended = w_kq[sequence]
            if attention == "softmax":
                attended = np.exp(attended - attended.max())
                attended /= attended.sum()
            assert f[run, row].numpy() == pytest.approx(w_ov @ x.T @ attended, abs=1e-12)


@pytest.mark.parametrize("param", ["factorized", "merged"])
@pytest.mark.parametrize("trainable_kq", [True, False])
@pytest.mark.parametrize("product_decay", [0.0, 0.3])
@pytest.mark.parametrize("loss_floor", [0.0, 0.1])
def test_written_out_gradients_equal_autograd(
    param: m.Param, trainable_kq: bool, product_decay: float, loss_floor: float
) -> None:
    model = m.ModelSpec(param, d_h=5, trainable_kq=trainable_kq, loss_floor=loss_floor)
    params, batch, _ = _setup(model)
    decay = torch.tensor([product_decay, 0.0], dtype=torch.float64)
    ours = m.analytic_gradients(model, TASK, params, batch, decay)
    theirs = m.autograd_gradients(model, TASK, params, batch, decay)
    assert ours.keys() == theirs.keys() == params.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-12)


def test_a_gradient_is_the_slope_of_the_loss() -> None:
    model = m.ModelSpec("factorized", d_h=4, attention="softmax", mlp_width=6)
    params, batch, _ = _setup(model, runs=1)
    gradient = m.gradients(model, TASK, params, batch, torch.zeros(1, dtype=torch.float64))
    for name, value in params.items():
        nudged = {**params, name: value + 1e-6 * gradient[name]}
        rise = m.losses(model, TASK, nudged, batch) - m.losses(model, TASK, params, batch)
        assert float(rise) == pytest.approx(1e-6 * float(gradient[name].square().sum()), rel=1e-3)


def test_a_loss_floor_caps_the_loss() -> None:
    f = torch.tensor([[[0.0, 50.0], [0.0, 0.0]]], dtype=torch.float64)
    answer = torch.zeros(1, 2, 1, dtype=torch.long)
    plain, floored = (m.question_losses(m.ModelSpec(loss_floor=floor), f, answer)[0] for floor in (0.0, 1e-8))
    assert plain.tolist() == pytest.approx([50.0, np.log(2)])
    assert floored.tolist() == pytest.approx([-np.log(1e-8), -np.log(0.5 + 1e-8)])


def test_an_mlp_adds_to_the_attention_output() -> None:
    plain, deep = m.ModelSpec("merged"), m.ModelSpec("merged", mlp_width=4)
    params, batch, _ = _setup(deep)
    z = m.logits(plain, TASK, params, batch)
    hidden = torch.relu(torch.einsum("rbd,rwd->rbw", z, params["W_up"]))
    expected = z + torch.einsum("rbw,rdw->rbd", hidden, params["W_down"])
    torch.testing.assert_close(m.logits(deep, TASK, params, batch), expected)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"d_h": 0}, "d_h = 0"),
        ({"param": "split"}, "param = split"),
        ({"attention": "hard"}, "attention = hard"),
        ({"mlp_width": -1}, "mlp_width = -1"),
        ({"loss_floor": -0.1}, "loss_floor = -0.1"),
    ],
)
def test_models_that_do_not_exist_are_refused_by_name(fields: dict[str, object], names: str) -> None:
    with pytest.raises(ToyError, match="^" + names):
        m.ModelSpec(**fields)


def test_a_symmetric_init_prefers_no_answer_and_a_gaussian_one_has_its_scale() -> None:
    symmetric = m.initial_parameters(m.ModelSpec("merged"), TASK, "symmetric", 0.1, 0)
    assert {float(v) for value in symmetric.values() for v in value.ravel()} == {0.1}
    wide = m.initial_parameters(m.ModelSpec(d_h=400, mlp_width=400), TASK, "gaussian", 0.1, 0)
    expected = {"W_O": 0.1, "W_V": 0.1, "W_up": TASK.vocab**-0.5, "W_down": 400**-0.5}
    assert {name: wide[name].std() for name in expected} == pytest.approx(expected, rel=0.05)
    assert all(abs(wide[name].mean()) < 0.1 * std for name, std in expected.items())


def test_a_symmetric_factorized_model_is_refused() -> None:
    with pytest.raises(ToyError, match="init = symmetric"):
        m.initial_parameters(m.ModelSpec("factorized"), TASK, "symmetric", 0.1, 0)
