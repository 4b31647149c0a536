"""Grouped attention: the library's eager attention in other words, on every architecture that it is chosen for."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import ARCHITECTURES, SIZES
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, Qwen3Config
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from ocr_eval.common.errors import UserError
from ocr_eval.methods.view import View
from ocr_eval.models.architecture import build
from ocr_eval.models.base import attention_for
from ocr_eval.models.grouped_attention import grouped_attention
from ocr_eval.packing.batch import lay_out
from ocr_eval.packing.forest import Forest, Reads, read_answers
from ocr_eval.specs.model import load_model_spec

NORMED_HEADS = {"num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    **{name: (config_class, extra) for name, (config_class, extra, _) in ARCHITECTURES.items()},
    "gemma3": (Gemma3TextConfig, {**NORMED_HEADS, "sliding_window": 64, "query_pre_attn_scalar": 16}),
    "qwen3": (Qwen3Config, NORMED_HEADS),
}


def pair(architecture, tiny):
    """A random network as the library has it, and as it is here; norms are far from one."""
    config_class, extra = CONFIGS[architecture]
    config = config_class(**SIZES, **extra, vocab_size=100, initializer_range=0.2)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for parameter in plain.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    own = build(load_model_spec(tiny), config, "cpu")
    assert own.config._attn_implementation == "grouped"
    own.load_state_dict(plain.state_dict())
    return plain, own


def forests(trees):
    """Two token forests of different sizes, side by side as in training and scoring."""
    rows = []
    for sequences in ([[1, 5, 6, 7], [1, 5, 8], [1, 9, 9]], [[1, 2, 3], [1, 4]]):
        forest = Forest()
        ends = [forest.add([i, *sequence])[-1] for sequence in sequences for i in range(trees)]
        rows.append((forest, Reads(ends, [*range(len(ends))], [3] * len(ends))))
    return rows


@pytest.mark.parametrize(("trees", "clumps"), [(1, 1), (20, 2)])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_logits_and_gradients_of_token_trees_are_those_of_the_librarys_eager_attention(
    architecture, tiny, trees, clumps
):
    batch = lay_out(forests(trees))
    K, C, B, _ = batch.sees.shape
    assert clumps == C
    found = []
    for network in pair(architecture, tiny):
        inputs = batch.inputs(torch.device("cpu"), torch.float32)
        if network.config._attn_implementation == "eager":  # the same in one mask a row, blocks along its diagonal
            apart = inputs["attention_mask"].new_full((K, C, B, C, B), torch.finfo(torch.float32).min)
            apart.diagonal(dim1=1, dim2=3).copy_(inputs["attention_mask"].view(K, C, B, B).permute(0, 2, 3, 1))
            inputs["attention_mask"] = apart.view(K, 1, C * B, C * B)
        ids = inputs.pop("input_ids")
        x = torch.nn.functional.embedding(ids, network.get_input_embeddings().weight).requires_grad_()
        logits = network(inputs_embeds=x, **inputs, use_cache=False).logits
        logits.log_softmax(-1)[..., 3].sum().backward()
        found.append((logits.detach(), x.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("attention", ["grouped", "eager"])
def test_a_packed_row_may_be_longer_than_a_window_but_no_statement(tiny, attention):
    config = Gemma3TextConfig(**SIZES, **NORMED_HEADS, sliding_window=8, query_pre_attn_scalar=16, vocab_size=100)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    network = plain if attention == "eager" else build(load_model_spec(tiny), config, "cpu")
    network.load_state_dict(plain.state_dict())
    view = View(SimpleNamespace(attention=attention, device=torch.device("cpu"), dtype=torch.float32), network)

    def logprobs(sequences):
        forest = Forest()
        reads, _ = read_answers(forest, [(tuple(sequence), [(3,)]) for sequence in sequences])
        return view.token_logprobs({0: (forest, reads)})[0]

    sequences = [[1, i, *range(20, 26)] for i in range(40, 70)]
    expected = plain(torch.tensor(sequences)).logits[:, -1].log_softmax(-1)[:, 3]
    torch.testing.assert_close(logprobs(sequences), expected)
    with pytest.raises(UserError, match="has 9 tokens, but some layers of this model attend over 8 at most"):
        logprobs([[*sequences[0], 26]])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
def test_scores_are_scaled_capped_and_masked_as_in_the_library(heads, softcap):
    torch.manual_seed(0)
    layer = torch.nn.Module().eval()
    layer.num_key_value_groups = heads[0] // heads[1]
    query, key, value = (
        torch.randn(2, 7, h, d).transpose(1, 2) for h, d in ((heads[0], 8), (heads[1], 8), (heads[1], 5))
    )
    sees = torch.rand(2, 1, 7, 7).lt(0.5) | torch.eye(7, dtype=torch.bool)
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    longer = torch.cat([mask, torch.zeros(2, 1, 7, 3)], dim=-1)
    for given, meant in ((None, None), (mask, mask), (longer, mask)):
        got, _ = grouped_attention(layer, query, key, value, given, softcap=softcap)
        expected, _ = eager_attention_forward(layer, query, key, value, meant, scaling=8**-0.5, softcap=softcap)
        torch.testing.assert_close(got, expected)
        assert got.is_contiguous()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_in_bf16_it_is_as_near_to_the_truth_as_the_library(softcap):
    torch.manual_seed(0)
    layer = torch.nn.Module().eval()
    layer.num_key_value_groups = 3
    exact = [torch.randn(4, heads, 40, 128).bfloat16().float() for heads in (6, 2, 2)]
    mask = torch.zeros(4, 1, 40, 40).masked_fill_(torch.rand(4, 1, 40, 40).lt(0.5), torch.finfo(torch.float32).min)

    def error(attention, dtype, reference=None):
        """Outputs and gradients, and how far they are from a reference, root mean square."""
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in exact]
        read, _ = attention(layer, *inputs, mask.to(dtype), scaling=128**-0.5, softcap=softcap)
        read.float().square().sum().backward()
        found = [read.detach().float(), *(tensor.grad.float() for tensor in inputs)]
        if reference is None:
            return found
        return [(got - meant).square().mean().sqrt().item() for got, meant in zip(found, reference, strict=True)]

    truth = error(eager_attention_forward, torch.float32)
    theirs = error(eager_attention_forward, torch.bfloat16, truth)
    ours = error(grouped_attention, torch.bfloat16, truth)
    assert all(own <= 1.25 * library for own, library in zip(ours, theirs, strict=True)), (ours, theirs)


def test_what_is_saved_is_what_the_library_saves(tiny, tmp_path):
    for name, network in zip(("plain", "own"), pair("gemma3", tiny), strict=True):
        network.save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "own" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_auto_is_chosen_by_device_and_architecture(tiny):
    auto = load_model_spec(tiny)
    llama, gemma2 = (CONFIGS[name][0](**SIZES, **CONFIGS[name][1]) for name in ("llama", "gemma2"))
    assert [attention_for(auto, llama, device) for device in ("cpu", "cuda", "mps")] == ["grouped", "sdpa", "sdpa"]
    assert [attention_for(auto, gemma2, device) for device in ("cpu", "cuda")] == ["grouped", "grouped"]
    for name in ("eager", "sdpa", "grouped"):
        assert attention_for(auto.model_copy(update={"attention": name}), llama, "cuda") == name


def test_attention_with_parts_of_its_own_is_never_grouped(tiny):
    sinks = GptOssConfig(num_hidden_layers=2)
    spec = load_model_spec(tiny)
    assert attention_for(spec, sinks, "cpu") == "sdpa"
    with pytest.raises(UserError, match="gpt_oss has no plain attention; write 'attention: eager'"):
        attention_for(spec.model_copy(update={"attention": "grouped"}), sinks, "cpu")


def test_an_unknown_name_is_refused_in_one_line_and_the_old_ones_are_read(ocr_eval, model_files, tmp_path):
    text = model_files["llama"].read_text().replace("./llama", str(model_files["llama"].with_suffix("")))
    path = tmp_path / "model.yaml"
    for name in ("eager", "sdpa", "grouped"):
        path.write_text(f"{text}attention: {name}\n")
        answer = ocr_eval("models", "check", path, "--assoc", "city-language", "--json")
        assert json.loads(answer.out)["architecture"]["attention"] == name
    path.write_text(f"{text}attention: flash\n")
    answer = ocr_eval("models", "check", path)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "attention" in answer.err
    assert "'grouped'" in answer.err
