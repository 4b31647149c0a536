"""What is measured inside tiny models against TransformerLens; 'make test-interop' runs this in its own environment.

TransformerLens folds the gains of norms into the weights behind them and runs its own attention; ocr-eval reads all
prompts in one packed pass of the model as it is.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZES
from peft import PeftModel
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, Qwen2Config

from ocr_eval import finetune, make_run
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.measures.inside import up_to_subject
from ocr_eval.records.folder import read_config

KINDS = {
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "gemma3": (Gemma3TextConfig, {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 64}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
}
#: Teaches enough for patching to move answers by whole nats.
SETTINGS = {"n": 3, "m_train": 2, "m_test": 3, "epochs": 12, "targets": "all-linear"}
SUBJECTS = np.arange(9).reshape(3, 3)  # of a group, in a row


@pytest.fixture(scope="module", params=KINDS)
def run(request, model_files, tmp_path_factory):
    """A run's record and probes, and its model in TransformerLens before and after."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(model_files["llama"].with_suffix(""))
    kind, extra = KINDS[request.param]
    torch.manual_seed(0)
    config = kind(**SIZES, **extra, vocab_size=len(tokenizer), initializer_range=0.2)
    network = AutoModelForCausalLM.from_config(config)
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    for each in (network, tokenizer):
        each.save_pretrained(root / "before")
    (root / "tiny.yaml").write_text(
        "name: tiny\ndescription: random\nlicense: none\ndtype: float32\nweights: {kind: folder, path: ./before}\n"
        "train: {lr: 1e-2, epochs: 3, batch_size: 8, rank: 4, alpha: 8.0}\n"
    )
    spec = make_run(str(root / "tiny.yaml"), "city-language", **SETTINGS)
    record = finetune(spec, root / "results", measures=["logit-lens", "ov-change", "patching"])
    folder = root / "results" / "runs" / record.run
    base = AutoModelForCausalLM.from_pretrained(root / "before")
    PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(root / "after")
    tokenizer.save_pretrained(root / "after")
    bridges = {name: TransformerBridge.boot_transformers(str(root / name)) for name in ("before", "after")}
    for bridge in bridges.values():
        bridge.process_weights(center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    probes = probe_tokens(tokenizer, build_task(read_config(folder)))
    return SimpleNamespace(measures=record.measures, probes=probes, tokenizer=tokenizer, **bridges)


@torch.no_grad()
def test_the_logit_lens_is_that_of_transformer_lens(run):
    found = run.measures["logit-lens"]["layers"]
    quantities = {each.probe.quantity for each in run.probes}
    assert len(quantities) == 4
    for quantity in quantities:
        ranks = []
        for each in run.probes:
            if each.probe.quantity == quantity:
                _, cache = run.after.run_with_cache(torch.tensor([each.prompt]))
                ids = [ids[0] for ids in each.candidates]
                residual = cache.accumulated_resid(layer=-1, pos_slice=-1)[1:, 0]  # [L, D]
                logits = run.after.unembed(run.after.ln_final(residual[None]))[0][:, ids]
                ranks.append((logits > logits[:, [each.probe.target]]).sum(dim=1).tolist())
        assert found[f"{quantity}_rank"] == pytest.approx(np.mean(ranks, axis=0), rel=1e-3)


@torch.no_grad()
def test_changes_of_heads_are_those_of_transformer_lens(run):
    heads = run.measures["ov-change"]["heads"]
    found = {(layer, head): i for i, (layer, head) in enumerate(zip(heads["layer"], heads["head"], strict=True))}
    after, before = (bridge.OV for bridge in (run.after, run.before))
    assert len(found) == after.A.shape[0] * after.A.shape[1] == 8
    for (layer, head), i in found.items():
        block = run.after.blocks[layer]
        gain = 1 + block.ln1_post.weight.double() if hasattr(block, "ln1_post") else 1  # Gemma's, after attention
        dense = (after.AB - before.AB)[layer, head].double() * gain
        values = FactoredMatrix(dense, torch.eye(64).double()).S
        assert heads["frobenius"][i] == pytest.approx(float(values.norm()), rel=1e-3)
        assert heads["nuclear"][i] == pytest.approx(float(values.sum()), rel=1e-3)
        if "bias" in heads:
            change = (run.after.W_O - run.before.W_O)[layer, head]
            bias = run.after.b_V[layer].view(-1, change.shape[0])[head // 2]
            assert heads["bias"][i] == pytest.approx(float((bias @ change).norm()), rel=1e-3)


@torch.no_grad()
def test_patching_is_that_of_transformer_lens(run):
    asked = [each for each in run.probes if each.probe.quantity == "test_entailment"]
    ids = torch.tensor([[answer[0] for answer in each.candidates[:3]] for each in asked])
    targets = np.array([each.probe.target for each in asked])
    assert targets[SUBJECTS].tolist() == [[g] * 3 for g in range(3)]
    found = run.measures["patching"]["layers"]
    shown = {key: [] for key in ("name_effect", "name_excess", "prompt_effect", "prompt_excess")}
    for donors in ([1, 2, 0], [2, 0, 1]):
        made = {key: [] for key in shown}
        for place, spots in (("name", up_to_subject(run.tokenizer, asked)), ("prompt", asked)):
            caches = [run.after.run_with_cache(torch.tensor([each.prompt]))[1] for each in spots]
            plain = torch.stack([run.after(torch.tensor([each.prompt]))[0, -1] for each in asked]).gather(1, ids)
            for layer in range(2):
                name, rows = f"blocks.{layer}.hook_resid_post", []
                for p, each in enumerate(asked):
                    donor = caches[SUBJECTS[donors[targets[p]], p % 3]][name][0, -1]

                    def patch(stream, hook, at=len(spots[p].prompt) - 1, donor=donor):
                        stream[:, at] = donor
                        return stream

                    logits = run.after.run_with_hooks(torch.tensor([each.prompt]), fwd_hooks=[(name, patch)])
                    rows.append(logits[0, -1, ids[p]])
                moved = (torch.stack(rows) - plain).numpy()
                moved -= moved[np.arange(9), targets][:, None]
                effect = np.mean([moved[p, donors[targets[p]]] for p in range(9)])
                made[f"{place}_effect"].append(effect)
                made[f"{place}_excess"].append(effect - moved.sum() / 18)  # the mean of the two other answers
        for key, values in made.items():
            shown[key].append(values == pytest.approx(found[key], rel=2e-3, abs=2e-3))
    assert any(all(shown[key][i] for key in shown) for i in range(2)), shown
    assert abs(found["name_effect"][0]) > 0.1
