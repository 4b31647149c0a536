"""Changes of heads against dense products, and the p of the best of many layers."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZES
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ocr_eval.measures.inside import corrected_ps
from ocr_eval.measures.ov_change import OVChange, gain, ov_changes
from ocr_eval.measures.weight_change import norms
from ocr_eval.methods.adapters import Adapters, LaneShape
from ocr_eval.methods.changes import Dense

KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=50)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=32, sliding_window=8, vocab_size=50)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=50)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_changes_of_heads_are_those_of_dense_products(kind, whole):
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.normal_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if whole:
        names = [name for name in before if name.endswith(("v_proj.weight", "o_proj.weight"))]
        for name in names:
            network.get_parameter(name).data.add_(0.1 * torch.randn(before[name].shape))
        after = {name: value.clone() for name, value in network.state_dict().items()}
        changes = [Dense(name.removesuffix(".weight"), lambda name=name: after[name] - before[name]) for name in names]
    else:
        adapters = Adapters(network, ["v_proj", "o_proj", "q_proj"], [LaneShape(3, 6.0)], torch.float32)
        after = dict(before)
        for each in adapters.factors(0):
            each.a.normal_()
            each.b.normal_(std=0.1)
            after[f"{each.module}.weight"] = before[f"{each.module}.weight"] + each.dense()
        changes = list(adapters.changes(0))
    config, found = network.config, list(ov_changes(network, changes))
    assert len(found) == 2
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None) or 16
    for number, of_layer in enumerate(found):
        at = f"model.layers.{number}."

        def product(weights, head, at=at):
            group = head // (heads // config.num_key_value_heads)
            o = weights[f"{at}self_attn.o_proj.weight"].double()[:, head * size : (head + 1) * size]
            v = weights[f"{at}self_attn.v_proj.weight"].double()[group * size : (group + 1) * size]
            g_in = weights[f"{at}input_layernorm.weight"].double()
            g_out = torch.ones(64).double()
            if kind == "gemma3":
                g_in, g_out = 1 + g_in, 1 + weights[f"{at}post_attention_layernorm.weight"].double()
            return g_out[:, None] * (o @ v) * g_in

        for head, values in enumerate(of_layer.singular_values()):
            dense = product(after, head) - product(before, head)
            torch.testing.assert_close(of_layer.left[head] @ of_layer.right[head], dense, rtol=1e-4, atol=1e-4)
            plain = norms(torch.linalg.svdvals(dense))
            assert norms(values) == pytest.approx(plain, rel=1e-3)
            assert whole or int((values > 1e-4 * values[0]).sum()) <= of_layer.rank == 6
        assert (of_layer.bias is None) == (kind != "qwen2")
        if of_layer.bias is not None:
            o = after[f"{at}self_attn.o_proj.weight"] - before[f"{at}self_attn.o_proj.weight"]
            bias = before[f"{at}self_attn.v_proj.bias"][16:32]
            assert float(of_layer.bias[3]) == pytest.approx(float((o[:, 48:64] @ bias).norm()), rel=1e-4)


def test_means_over_heads_are_of_the_layers_that_changed():
    """With one layer of two changed, the mean ratio is that layer's, which cannot be below 1 / sqrt(R)."""
    torch.manual_seed(0)
    network = KINDS["qwen2"]()
    adapters = Adapters(network, ["1.self_attn.v_proj"], [LaneShape(3, 6.0)], torch.float32)
    for each in adapters.factors(0):
        each.a.normal_()
        each.b.normal_()
    trained = SimpleNamespace(
        pack=SimpleNamespace(base=SimpleNamespace(network=network)), changes=lambda: adapters.changes(0)
    )
    found = OVChange().take(trained)
    assert found["ratio"] == pytest.approx(found["layers"]["ratio"][1], rel=1e-4)
    assert found["ratio"] > 1 / math.sqrt(found["rank_bound"])
    assert found["layers"]["ratio"][0] == 0


def test_gains_of_norms():
    norm = torch.nn.LayerNorm(6)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    torch.testing.assert_close(gain(norm, 6, norm.weight), norm.weight.detach().double(), rtol=1e-4, atol=1e-5)
    assert gain(None, 3, norm.weight).tolist() == [1, 1, 1]


def test_p_of_the_best_of_many_layers_is_exact():
    """Of three layers one tells all groups apart; p counts the assignments whose best layer is as good."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 4))
    values[1] += 9 * np.eye(4)
    ps = corrected_ps(values, "test")
    assert ps[1] == 1 / 24
    best = [
        max(values[c][range(4), list(f)].mean() - values[c].mean() for c in range(3))
        for f in itertools.permutations(range(4))
    ]
    own = [values[c].diagonal().mean() - values[c].mean() for c in range(3)]
    assert ps.tolist() == [np.mean([b >= o - 1e-12 for b in best]) for o in own]
    moved = corrected_ps(np.roll(values, 1, axis=2), "test", observed=[1, 2, 3, 0])
    assert moved[1] == 1 / 9  # of the nine without a fixed point
    assert corrected_ps(rng.normal(size=(1, 8, 8)) + 9 * np.eye(8), "test")[0] == 1 / 2001
