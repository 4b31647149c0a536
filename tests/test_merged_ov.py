"""Dense value-output matrices: against stock eager attention sentence by sentence, and from training to the table."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import as_a_pack, load, tiny_run
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.execution.run_pack import Execution
from ocr_eval.methods.ov_matrices import OVMatrices
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import batch_forest
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.specs.model import load_model_spec

BOTH = "merged-ov:layers=0-1"
SHORT = ["--n", 2, "--m-test", 2, "--epochs", 2]


def stock(path, matrices):
    """The model in stock eager attention, each layer's writing sum_h A_h x dW_h more. [H, D, D]"""
    network = AutoModelForCausalLM.from_pretrained(Path(path).with_suffix(""), attn_implementation="eager")
    for layer, dw_HDD in enumerate(matrices):

        def add(module, args, named, output, dw_HDD=dw_HDD):
            written, weights = output
            return written + torch.einsum("bhnm,bmd,hde->bne", weights, named["hidden_states"], dw_HDD), weights

        network.model.layers[layer].self_attn.register_forward_hook(add, with_kwargs=True)
    return network.requires_grad_(False)


def loss_by_sentence(network, examples):
    """Mean cross-entropy over answer tokens, one sentence at a time."""
    nats = []
    for each in examples:
        logits = network(torch.tensor([[*each.prompt, *each.answer]])).logits[0, len(each.prompt) - 1 : -1]
        nats.append(torch.nn.functional.cross_entropy(logits, torch.tensor(each.answer), reduction="none"))
    return torch.cat(nats).mean()


def zeros():
    return [torch.zeros(4, 64, 64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("attention", ["grouped", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_loss_and_gradients_are_those_of_eager_attention_by_sentence(model_files, architecture, attention):
    if (architecture, attention) == ("gemma2", "sdpa"):
        pytest.skip("sdpa cannot cap")
    path = model_files[architecture]
    spec = load_model_spec(str(path)).model_copy(update={"attention": attention})
    base, run = load_base(spec, locate(spec), "cpu"), tiny_run(path, method=BOTH)
    examples = training_tokens(base.tokenizer, build_task(run))
    pack = attach(base, [run, run], [examples, examples])
    dense = zeros()
    for lane in (0, 1):
        for matrix, dw in zip(pack.adapters.matrices(lane).values(), dense, strict=True):
            torch.nn.init.normal_(matrix, std=0.02, generator=torch.Generator().manual_seed(lane))
            dw.data = matrix.clone().unflatten(0, (4, 64))
    loss = -pack.view().token_logprobs({1: batch_forest(examples)})[1].mean()
    loss.backward()
    expected = loss_by_sentence(stock(path, dense), examples)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for parameter, dw in zip(pack.adapters.parameters(1).values(), dense, strict=True):
        torch.testing.assert_close(parameter.grad, dw.grad.flatten(0, 1), rtol=1e-3, atol=1e-5)
    for parameter in pack.adapters.parameters(0).values():
        assert not parameter.grad.any()
    pack.detach()
    ids = torch.tensor([examples[0].prompt])
    network = AutoModelForCausalLM.from_pretrained(Path(path).with_suffix(""), attn_implementation="eager")
    torch.testing.assert_close(base.network(ids).logits, network(ids).logits, rtol=1e-4, atol=1e-4)


def test_two_lanes_learn_what_a_plain_loop_learns(tiny):
    specs = [tiny_run(tiny, seed=k, method=BOTH, lr=1e-3, batch_size=64, epochs=4, weight_decay=0.5) for k in (0, 1)]
    base = load(tiny)
    examples = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]
    pack = attach(base, specs, examples)
    losses = [pack.step([0, 1]) for _ in range(4)]
    for lane in (0, 1):
        dense, expected = zeros(), []
        network, optimizer = stock(tiny, dense), torch.optim.AdamW(dense, lr=1e-3, weight_decay=0.5)
        for _ in range(4):
            loss = loss_by_sentence(network, examples[lane])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(dense, 1.0)
            optimizer.step()
            expected.append(loss.item())
        assert [each[lane] for each in losses] == pytest.approx(expected, rel=1e-3)
        assert expected[-1] < expected[0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_change_of_the_value_projection_is_one_of_these(model_files, architecture):
    base, run = load(model_files[architecture]), tiny_run(model_files[architecture], method=BOTH)
    examples = training_tokens(base.tokenizer, build_task(run))
    pack = attach(base, [run], [examples])
    network = AutoModelForCausalLM.from_pretrained(model_files[architecture].with_suffix(""))
    with torch.no_grad():
        for matrix, layer in zip(pack.adapters.matrices(0).values(), network.model.layers, strict=True):
            v, o = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
            dv = 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
            of_heads = zip(
                matrix.view(4, 64, 64), dv.view(2, 16, 64).repeat_interleave(2, 0), o.split(16, 1), strict=True
            )
            for dw_DD, dv_g, o_h in of_heads:
                dw_DD.copy_((o_h @ dv_g).T)
            v += dv
    ours = pack.view().token_logprobs({0: batch_forest(examples)})[0]
    assert -ours.mean().item() == pytest.approx(loss_by_sentence(network, examples).item(), rel=1e-4)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    data = {"n": 2, "m_test": 2, "m_train": 4}
    spec = tiny_run(tiny, method=BOTH, epochs=2, **data)
    (folder,) = as_a_pack([spec], tmp_path_factory.mktemp("merged"), Execution(device="cpu"))
    return folder.path


def test_it_is_scored_again_as_a_run_and_as_an_adapter(ocr_eval, tiny, finished):
    kept = json.loads((finished / "result.json").read_text())["final"]["first-token"]
    adapter = ["--adapter", finished / "adapter", "--assoc", "city-language", "--model", tiny, "--n", 2, "--m-test", 2]
    for asked in ([finished], adapter):
        again = json.loads(ocr_eval("score", *asked, "--json").out)["first-token"]
        for name, quantity in kept.items():
            assert again[name]["mean_rank"] == pytest.approx(quantity["mean_rank"], abs=0.2)
    assert "merged OV" in ocr_eval("table", finished.parents[4], "--no-published").out
    assert "merged OV" in ocr_eval("scorecard", finished.parents[4]).out


def test_its_matrices_are_measured_from_the_file(ocr_eval, tiny, finished):
    found = json.loads(ocr_eval("explain", finished, "--measure", "ov-change,weight-change", "--json").out)
    network = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""))
    saved = load_file(finished / "adapter/adapter_model.safetensors")
    squares = 0.0
    for number, layer in enumerate(network.model.layers):
        dw_HDD = saved[f"model.layers.{number}.self_attn.merged_ov.weight"]
        squares += float((dw_HDD * layer.input_layernorm.weight[:, None]).square().sum())
    assert found["ov-change"]["frobenius"] == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert found["ov-change"]["rank_bound"] == 64
    plain = math.sqrt(sum(float(each.square().sum()) for each in saved.values()))
    assert found["weight-change"]["frobenius"] == pytest.approx(plain, rel=1e-4)


def test_the_largest_entries_of_a_layer_can_be_dropped(tiny, tmp_path):
    spec = tiny_run(tiny, method="merged-ov:layers=1", epochs=1, prevent=["ignore-top-k:share=0.25"])
    (folder,) = as_a_pack([spec], tmp_path, Execution(device="cpu"))
    (matrices,) = load_file(folder.path / "adapter/adapter_model.safetensors").values()
    assert int((matrices == 0).sum()) == matrices.numel() // 4


def test_peft_refuses_it_and_its_card_does_not_promise_otherwise(finished):
    with pytest.raises((KeyError, ValueError)):
        PeftConfig.from_pretrained(str(finished / "adapter"))
    assert "PeftModel" not in (finished / "adapter/README.md").read_text()


def test_it_cannot_be_grafted(ocr_eval, finished):
    refused = ocr_eval("score", finished, "--plus", finished)
    assert refused.code == 2
    assert "plain LoRA" in refused.err


def test_matrices_of_another_model_or_damaged_are_one_line(ocr_eval, model_files, finished, tmp_path):
    score = ["score", "--assoc", "city-language", "--adapter"]
    refused = ocr_eval(*score, finished / "adapter", "--model", "smollm2-135m", "--offline")
    assert refused.code == 2
    assert "merged_ov" in refused.err
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((finished / "adapter" / name).read_bytes()[:200])
    refused = ocr_eval(*score, tmp_path, "--model", model_files["llama"])
    assert refused.code == 2
    assert str(tmp_path) in refused.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--method", "merged-ov:layers=7"], "no layer 7"),
        (["--method", "merged-ov:layers=7", "--dry-run"], "no layer 7"),
        (["--method", "merged-ov:layers=1-0"], "1-0"),
        (["--method", "merged-ov", "--rank", 4], "--rank"),
        (["--method", "merged-ov", "--prevent", "product-decay"], "product-decay"),
    ],
)
def test_bad_input_is_one_line(ocr_eval, tiny, tmp_path, arguments, named):
    refused = ocr_eval("finetune", "city-language", "--model", tiny, "-o", tmp_path, *arguments)
    assert refused.code == 2
    assert named in refused.err
    assert len(refused.err.splitlines()) == 1


def test_the_plan_knows_what_it_holds(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "-o", tmp_path, "--dry-run", "--json", "--method"]
    names = ("merged-ov", "merged-ov:layers=0-1")  # by default the middle third, here of two
    one, both = (json.loads(ocr_eval("finetune", *run, name).out) for name in names)
    assert (one["trainable_parameters"], both["trainable_parameters"]) == (4 * 64 * 64, 2 * 4 * 64 * 64)
    for plan in (one, both):
        trained = 4 * plan["trainable_parameters"]
        memory = plan["memory"]
        assert (memory["adapters"], memory["gradients"], memory["optimizer"]) == (trained, trained, 2 * trained)


def test_lora_of_single_layers_is_planned_trained_and_read_by_peft(ocr_eval, tiny, tmp_path):
    targets = ["--targets", "1.self_attn.v_proj+1.self_attn.o_proj"]
    run = ["city-language", "--model", tiny, "-o", tmp_path, *SHORT, *targets]
    plan = json.loads(ocr_eval("finetune", *run, "--dry-run", "--json").out)
    assert plan["trainable_parameters"] == 4 * (64 + 32 + 64 + 64)
    assert ocr_eval("finetune", *run).code == 0
    (path,) = tmp_path.rglob("adapter_config.json")
    wanted = {f"model.layers.1.self_attn.{name}" for name in ("v_proj", "o_proj")}
    assert set(json.loads(path.read_text())["target_modules"]) == wanted
    assert ocr_eval("score", path.parents[1]).code == 0


def test_attention_that_is_not_a_layer_of_its_own_is_refused():
    network = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(UserError, match="self_attn"):
        OVMatrices(network, [0], lanes=1)
