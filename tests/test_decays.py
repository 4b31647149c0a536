"""Decay of products, of output-value matrices and of factors, against autograd."""

import pytest
import torch
from conftest import load, packed, prevented, tiny_run

from ocr_eval.preventions.factor_decay import FactorDecay
from ocr_eval.preventions.ov_decay import OVDecay
from ocr_eval.preventions.product_decay import ProductDecay, Settings


def test_product_decay_adds_the_gradient_of_its_penalty(tiny):
    pack = packed(load(tiny), tiny_run(tiny))
    pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    ProductDecay(Settings(strength=0.3)).before_step(learner)
    for each in learner.factors:
        a, b = each.a.clone().requires_grad_(), each.b.clone().requires_grad_()
        (0.3 / 2 * (each.scale * b.T @ a).square().sum()).backward()
        torch.testing.assert_close(each.grad_a, a.grad)
        torch.testing.assert_close(each.grad_b, b.grad)
    pack.detach()


def test_ov_decay_adds_the_gradient_of_its_penalty(tiny):
    """Against autograd through each head's whole output-value matrix, one head after another."""
    base = load(tiny)
    pack = packed(base, tiny_run(tiny))
    for _ in range(2):
        pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    OVDecay(OVDecay.Settings(strength=0.3)).before_step(learner)
    heads, groups = base.network.config.num_attention_heads, base.network.config.num_key_value_heads
    assert 1 < groups < heads
    leaves = {
        each.module: (each.a.clone().requires_grad_(), each.b.clone().requires_grad_()) for each in learner.factors
    }
    scale = learner.factors[0].scale
    penalty = 0
    for layer in range(base.network.config.num_hidden_layers):
        before, after = {}, {}
        for of in ("o_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{of}"
            a, b = leaves[name]
            before[of] = base.network.get_submodule(name).base.weight.detach()
            after[of] = before[of] + scale * b.T @ a
        size = before["o_proj"].shape[1] // heads
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            group = head // (heads // groups)
            shared = slice(group * size, (group + 1) * size)
            old, new = (each["o_proj"][:, mine] @ each["v_proj"][shared] for each in (before, after))
            penalty = penalty + 0.3 / 2 * (new - old).square().sum()
    penalty.backward()
    for each in learner.factors:
        for found, leaf in zip((each.grad_a, each.grad_b), leaves[each.module], strict=True):
            expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    pack.detach()


def test_ov_decay_takes_adapters_on_both_sides(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--prevent", "ov-decay"]
    answer = ocr_eval("finetune", "city-language", *run, "--targets", "q_proj,v_proj")
    assert answer.code == 2
    assert "--targets" in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err


def test_lanes_of_several_strengths_learn_what_each_learns_alone(tiny):
    base = load(tiny)
    specs = [prevented(tiny), prevented(tiny, "product-decay:strength=10"), prevented(tiny, "product-decay:strength=1")]
    pack = packed(base, *specs)
    losses = [pack.step([0, 1, 2]) for _ in range(3)]
    pack.detach()
    for lane, spec in enumerate(specs):
        alone = packed(base, spec)
        assert [alone.step([0])[0] for _ in range(3)] == pytest.approx([loss[lane] for loss in losses], abs=1e-4)
        alone.detach()
    assert losses[2][1] > losses[2][2] > losses[2][0]


def test_factor_decay_adds_the_gradient_of_its_penalty(tiny):
    pack = packed(load(tiny), tiny_run(tiny))
    pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    FactorDecay(FactorDecay.Settings(strength=0.3)).before_step(learner)
    for each in learner.factors:
        a, b = each.a.clone().requires_grad_(), each.b.clone().requires_grad_()
        (0.3 / 2 * (a.square().sum() + b.square().sum())).backward()
        torch.testing.assert_close(each.grad_a, a.grad)
        torch.testing.assert_close(each.grad_b, b.grad)
    pack.detach()


def test_the_least_factor_penalty_of_a_change_is_its_nuclear_norm():
    """What the docstring says, on a random matrix: balanced factors from its SVD, and any others cost more."""
    torch.manual_seed(0)
    change = torch.randn(5, 3, dtype=torch.float64) @ torch.randn(3, 7, dtype=torch.float64)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    b, a = u * s.sqrt(), s.sqrt()[:, None] * v
    assert float(b.square().sum() + a.square().sum()) / 2 == pytest.approx(float(s.sum()))
    mix = torch.randn(5, 5, dtype=torch.float64)
    other_b, other_a = b @ mix, torch.linalg.solve(mix, a)
    torch.testing.assert_close(other_b @ other_a, change)
    assert float(other_b.square().sum() + other_a.square().sum()) / 2 > float(s.sum())
