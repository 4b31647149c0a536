"""ignore-top-k: a change is cut at the end by sorting, whatever the method."""

import json

import pytest
import torch
from conftest import bare, load, packed, prevented, tiny_run
from peft import PeftModel

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.scoring.candidates import score_candidates, score_lanes


def cut(change, share):
    """The change without its largest entries, by sorting."""
    flat = change.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))
    for i in order[: int(share * len(flat))]:
        flat[i] = 0.0
    return torch.tensor(flat).view(change.shape)


def test_ignore_top_k_drops_the_largest_entries_of_the_product_and_nothing_else(tiny, tmp_path):
    """A lane of two; what is read, measured and saved is the bare network with the change cut by sorting."""
    base = load(tiny)
    specs = [tiny_run(tiny), prevented(tiny, "ignore-top-k:share=0.3")]
    pack = packed(base, *specs)
    for _ in range(3):
        pack.step([0, 1])
    expected = {each.module: cut(each.dense(), 0.3) for each in pack.changes(1)}
    probes = probe_tokens(base.tokenizer, build_task(specs[0]))
    unchanged = score_lanes(pack.view(), {0: probes})[0].logprobs["sequence"]
    pack.finish(1)
    found = score_lanes(pack.view(), {0: probes, 1: probes})
    assert found[0].logprobs["sequence"] == pytest.approx(unchanged, abs=1e-5)
    for change in pack.changes(1):
        torch.testing.assert_close(change.dense(), expected[change.module], rtol=0, atol=0)
        torch.testing.assert_close(
            change.singular_values()[:4],
            torch.linalg.svdvals(expected[change.module].double())[:4],
            rtol=1e-5,
            atol=1e-8,
        )
    base_scores = score_candidates(pack.view(trained=False), probes).logprobs["sequence"]
    pack.save(1, tmp_path)
    pack.detach()
    with torch.no_grad():
        for module, change in expected.items():
            base.network.get_submodule(module).weight.add_(change)
    after = score_candidates(bare(base), probes).logprobs["sequence"]
    assert abs(after - base_scores).max() > 0.01
    assert found[1].logprobs["sequence"] == pytest.approx(after, abs=1e-4)
    stock = PeftModel.from_pretrained(load(tiny).network, tmp_path / "adapter")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, base.network(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_that_ignores_its_largest_changes_is_scored_again_from_its_files(ocr_eval, tiny, tmp_path, method):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "--method", method]
    run += ["--measures", "weight-change", "--lr", "1e-2", "--json"]
    plain = json.loads(ocr_eval(*run, "-o", tmp_path / "plain").out)["measures"]["weight-change"]
    answer = ocr_eval(*run, "-o", tmp_path, "--prevent", "ignore-top-k")
    record = json.loads(answer.out)
    change = record["measures"]["weight-change"]
    assert 0.3 * plain["frobenius"] < change["frobenius"] < 0.9 * plain["frobenius"]
    assert change["effective_rank"] > plain["effective_rank"]
    folder = tmp_path / "runs" / record["run"]
    again = json.loads(ocr_eval("score", folder, "--json").out)
    assert again["sequence"]["test_fact"] == pytest.approx(record["final"]["sequence"]["test_fact"], abs=1e-4)
    measured = ocr_eval("explain", folder, "--measure", "weight-change")
    assert method == "full" or "adapter' has full rank, so it can be scored again but not measured" in measured.err


def test_ignore_top_k_cuts_every_tensor_of_a_network_that_was_trained_whole(tiny):
    spec = prevented(tiny, "ignore-top-k:share=0.3", method="full", lr=1e-3)
    base = load_base(spec.model, locate(spec.model), "cpu", whole=True)
    before = {name: tensor.detach().clone() for name, tensor in base.network.named_parameters()}
    pack = packed(base, spec)
    pack.step([0])
    after = {name: tensor.detach().clone() for name, tensor in base.network.named_parameters()}
    pack.finish(0)
    for name, tensor in base.network.named_parameters():
        change = cut(after[name] - before[name], 0.3)
        torch.testing.assert_close(
            tensor.detach(), torch.where(change == 0, before[name], after[name]), rtol=1e-6, atol=1e-8
        )
