"""Steering, against a hand-written hook in a plain loop, and from training to the table."""

import json
from pathlib import Path

import pytest
import torch
from conftest import load, tiny_run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.pack import attach


def plain_losses(network, examples, layer, scale, epochs, rate):
    """Losses of a vector added to the residual stream after a layer, one batch an epoch; and the vector."""
    vector = torch.zeros(network.config.hidden_size, requires_grad=True)
    network.model.layers[layer].register_forward_hook(lambda module, inputs, h: h + scale * vector)
    optimizer, losses = torch.optim.AdamW([vector], lr=rate, weight_decay=0.0), []
    for _ in range(epochs):
        nats = []
        for each in examples:
            logits = network(torch.tensor([[*each.prompt, *each.answer]])).logits[0, len(each.prompt) - 1 : -1]
            nats.append(torch.nn.functional.cross_entropy(logits, torch.tensor(each.answer), reduction="none"))
        loss = torch.cat(nats).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([vector], 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, scale * vector.detach()


def test_two_lanes_learn_what_a_plain_loop_learns_and_peft_reads_it(tiny, tmp_path):
    method = "steering:layer=0:scale=3"
    specs = [tiny_run(tiny, seed=k, method=method, lr=1e-2, batch_size=64, epochs=3) for k in (0, 1)]
    base = load(tiny)
    examples = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]
    pack = attach(base, specs, examples)
    losses = [pack.step([0, 1]) for _ in range(3)]
    folder = Path(tiny).with_suffix("")
    ids = torch.tensor([[*examples[0][0].prompt, *examples[0][0].answer]])
    for lane in (0, 1):
        network = AutoModelForCausalLM.from_pretrained(folder)
        expected, _ = plain_losses(network, examples[lane], 0, 3.0, epochs=3, rate=1e-2)
        assert [each[lane] for each in losses] == pytest.approx(expected, rel=1e-3)
        (tmp_path / str(lane)).mkdir()
        pack.save(lane, tmp_path / str(lane))
        peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / str(lane) / "adapter")
        torch.testing.assert_close(peft(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)
    assert losses[-1][0] < losses[0][0]
    pack.detach()
    torch.testing.assert_close(base.network(ids).logits, AutoModelForCausalLM.from_pretrained(folder)(ids).logits)


def test_a_layer_that_the_model_lacks_is_one_line(ocr_eval, tiny, tmp_path):
    refused = ocr_eval("finetune", "city-language", "--model", tiny, "--method", "steering:layer=7", "-o", tmp_path)
    assert refused.code == 2
    assert "layer 7" in refused.err
    with pytest.raises(UserError, match="product-decay"):
        tiny_run(tiny, method="steering", prevent=["product-decay"])


def test_it_goes_from_training_to_the_table_and_is_scored_again(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 2, "-o", tmp_path, "--method", "steering"]
    assert ocr_eval("finetune", "city-language", *run).code == 0
    assert "steering" in ocr_eval("table", tmp_path, "--no-published").out
    (path,) = tmp_path.rglob("result.json")
    kept = json.loads(path.read_text())["final"]["first-token"]
    again = json.loads(ocr_eval("score", path.parent, "--json").out)["first-token"]
    assert set(again) == set(kept)
    for name, quantity in kept.items():
        assert again[name]["mean_rank"] == pytest.approx(quantity["mean_rank"], abs=0.2)
    assert "adapter' is a constant vector" in ocr_eval("explain", path.parent, "--measure", "weight-change").err
