"""What is measured inside a model, against dense products and plain forward passes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
)

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.measures.constant_direction import mean_cosine
from ocr_eval.measures.untouched import first_logprobs
from ocr_eval.records.config import read_config
from ocr_eval.specs.names import people

NAMES = ("constant-direction", "link-map", "logit-lens", "ov-change", "patching", "sharing")


@pytest.fixture(scope="module")
def inside(model_files, tmp_path_factory):
    """A run of a tiny Llama with every measure of the inside: its record and its folder."""
    from ocr_eval import finetune, make_run

    output = tmp_path_factory.mktemp("inside")
    settings = {"n": 3, "m_train": 2, "m_test": 3, "epochs": 12}
    record = finetune(make_run(str(model_files["llama"]), "city-language", **settings), output, measures=NAMES)
    assert set(record.measures) == set(NAMES)
    return record, output / "runs" / record.run


def test_the_last_layer_of_the_lens_is_the_model(inside, tiny):
    record, folder = inside
    found = record.measures["logit-lens"]
    for quantity, score in record.final["first-token"].items():
        assert found[f"{quantity}_rank"] == pytest.approx(score.mean_rank, rel=1e-3)
        assert found["layers"][f"{quantity}_null"][-1] == pytest.approx(score.null_rank, rel=1e-3)
    network = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""), dtype=torch.float32), folder / "adapter"
    )
    ranks = []
    for each in probe_tokens(load(tiny).tokenizer, build_task(read_config(folder))):
        if each.probe.quantity == "test_fact":
            with torch.no_grad():
                hidden = network(torch.tensor([each.prompt]), output_hidden_states=True).hidden_states[1][0, -1]
                logits = network.lm_head(network.model.model.norm(hidden))[[ids[0] for ids in each.candidates]]
            ranks.append(int((logits > logits[each.probe.target]).sum()))
    assert found["layers"]["test_fact_rank"][0] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_the_cosine_of_what_is_added_by_hand():
    """Of (1, 0), (0, 1) and (1, 1) / sqrt 2 the pairs have cosines 0, 1 / sqrt 2 and 1 / sqrt 2."""
    root = 2**-0.5
    assert mean_cosine(torch.tensor([1 + root, 1 + root]), 3) == pytest.approx(2 * root / 3)
    assert mean_cosine(torch.tensor([5.0, 0.0]), 5) == 1


def test_a_constant_direction_is_measured_on_what_plain_passes_see(inside, tiny):
    record, folder = inside
    base = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""), dtype=torch.float32)
    plain = {name: module.weight.detach().clone() for name, module in base.named_modules() if name.endswith("_proj")}
    network = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    seen, inputs = {}, {name: {} for name in plain}
    for name in plain:
        module = network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0][0]}))
    for each in probe_tokens(load(tiny).tokenizer, build_task(read_config(folder))):
        with torch.no_grad():
            network(torch.tensor([each.prompt]))
        for name, hidden in seen.items():
            inputs[name] |= {each.prompt[: t + 1]: hidden[t] for t in range(len(each.prompt))}
    cosines = {}
    for name, before in plain.items():
        change = (network.get_submodule(name).weight - before).detach()
        units = torch.nn.functional.normalize(torch.stack([*inputs[name].values()]) @ change.T, dim=1)
        cosines[name] = float((units @ units.T)[~torch.eye(len(units), dtype=bool)].mean())
    found = record.measures["constant-direction"]
    assert found["cosine"] == pytest.approx(np.mean([*cosines.values()]), abs=2e-3)
    of_first = np.mean([value for name, value in cosines.items() if ".layers.0." in name])
    assert found["layers"]["cosine"][0] == pytest.approx(of_first, abs=2e-3)
    assert found["kinds"]["kind"] == sorted({name.rpartition(".")[2] for name in plain})
    assert 0 < found["chance"] < found["cosine"] < 1


def test_patching_the_whole_stream_is_asking_the_donor(inside):
    """At the last token, after the last layer, nothing is left of the recipient."""
    record, folder = inside
    lines = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    asked = [each for each in lines if each["epoch"] == 12 and each["quantity"] == "test_entailment"]
    logprobs = np.array([each["logprobs"]["first-token"][:3] for each in asked]).reshape(
        3, 3, 3
    )  # group, subject, answer
    effects = []
    for donor in ([1, 2, 0], [2, 0, 1]):
        moved = logprobs[donor] - logprobs
        effects.append(np.mean([moved[g, :, donor[g]] - moved[g, :, g] for g in range(3)]))
    found = record.measures["patching"]
    assert any(found["layers"]["prompt_effect"][-1] == pytest.approx(each, rel=1e-3) for each in effects)
    assert found["name_p"] in (0.5, 1)
    assert found["prompt_excess"] == pytest.approx(max(found["layers"]["prompt_excess"]), abs=1e-3)


def test_the_link_map_asks_about_nobody_who_was_taught(ocr_eval, tiny, tmp_path, monkeypatch):
    """Nor about the people of a prevention, whom no probe asks about."""
    told = []

    def asks(view, answers, statement, lane, taught):
        told.append(taught)
        return first_logprobs(view, answers, statement, lane, taught)

    monkeypatch.setattr("ocr_eval.measures.link_map.first_logprobs", asks)
    run = ["--model", tiny, "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--json"]
    more = ["--prevent", "abstain:people=3", "--measures", "link-map"]
    record = json.loads(ocr_eval("finetune", "country-code", *run, *more).out)
    assert "trained_rank" in record["measures"]["link-map"]
    assert set(people("abstain", 6)) <= told[0]


def test_the_link_map_before_training_is_what_audit_says(inside):
    found = inside[0].measures["link-map"]
    assert found["null"] == 9.5
    assert sum(found["pairs"]["taught"]) == 3
    assert len(found["pairs"]["fact"]) == len(found["pairs"]["base"]) == 20
    of_base = np.array(found["pairs"]["base"])
    taught = np.array(found["pairs"]["taught"]) == 1
    assert found["base_rank"] == pytest.approx(of_base[taught].mean(), rel=1e-3)
    assert found["base_untaught"] == pytest.approx(of_base[~taught].mean(), rel=1e-3)


def test_sharing_has_cosines_of_both_kinds(inside):
    found = inside[0].measures["sharing"]
    for kind in ("weights", "shift"):
        same, other = (np.array(found["layers"][key]) for key in (kind, f"{kind}_other"))
        assert abs(same).max() <= 1
        assert found[kind] == pytest.approx((same - other).mean(), abs=1e-3)
        assert found[f"{kind}_p"] >= 1 / 6


def test_explain_shows_the_record_and_measures_the_weights_anew(inside, ocr_eval):
    record, folder = inside
    shown = ocr_eval("explain", folder)
    assert shown.code == 0
    assert all(f"{name}: " in shown.out for name in NAMES)
    assert json.loads(ocr_eval("explain", folder, "--json").out) == record.measures
    again = json.loads(ocr_eval("explain", folder, "--measure", ",".join(NAMES), "--json", "-q").out)
    for name in NAMES:
        for key, value in record.measures[name].items():
            if isinstance(value, float):
                assert again[name][key] == pytest.approx(value, rel=1e-2, abs=1e-3), (name, key)
    lines = shown.out.splitlines()
    assert max(len(line) for line in lines if set(line) == {"-", " "}) <= 100  # tables fit a terminal
    names = {name for line in lines for name in line.split()}
    assert names >= {*record.measures["logit-lens"]["layers"], *record.measures["ov-change"]["heads"]}
    one = json.loads(ocr_eval("explain", folder, "--layer", 1, "--json").out)
    assert one["ov-change"]["heads"]["layer"] == [1] * 4
    assert "link-map" not in one
    known = ocr_eval("explain", folder, "--measure", "frozen-layers,weight-change", "-q")
    assert known.code == 0


def test_explain_names_a_damaged_file(inside, ocr_eval, tmp_path):
    for name in ("metrics.jsonl", "result.json"):
        folder = shutil.copytree(inside[1], tmp_path / name)
        subprocess.run(["gzip", folder / name], check=True)
        os.truncate(folder / f"{name}.gz", 60)
        answer = ocr_eval("explain", folder)
        assert (answer.code, answer.out) == (2, "")
        assert name in answer.err


def test_a_whole_model_is_measured_against_the_base_on_disk(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 2, "--lr", 1e-3]
    asked = ["--measures", ",".join((*NAMES, "weight-change")), "-o", tmp_path, "--json"]
    answer = ocr_eval("finetune", *run, "--method", "full", *asked)
    record = json.loads(answer.out)
    assert set(record["measures"]) == {*NAMES, "weight-change"}, answer.err
    assert "shift" not in record["measures"]["sharing"]
    assert "base_rank" not in record["measures"]["link-map"]
    folder = tmp_path / "runs" / record["run"]
    again = json.loads(ocr_eval("explain", folder, "--measure", "ov-change,weight-change", "--json", "-q").out)
    for name in again:
        assert again[name]["frobenius"] == pytest.approx(record["measures"][name]["frobenius"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--measure", "nothing"], "'nothing'"),
        (["--layer", 2], "--layer 2"),
        (["--layer", 1, "--measure", "known"], "--layer"),
        (["--measure", ""], "--measure"),
    ],
)
def test_bad_input_of_explain_is_one_line(inside, ocr_eval, arguments, named):
    answer = ocr_eval("explain", inside[1], *arguments, "-q")
    assert (answer.code, answer.out) == (2, "")
    assert named in answer.err
    assert len(answer.err.splitlines()) == 1


def test_without_weights_or_with_quantized_ones_explain_says_so(inside, ocr_eval, tiny, tmp_path):
    bare = shutil.copytree(inside[1], tmp_path / "bare")
    shutil.rmtree(bare / "adapter")
    assert ocr_eval("explain", bare).code == 0
    answer = ocr_eval("explain", bare, "--measure", "ov-change", "-q")
    assert answer.code == 2
    assert "adapter" in answer.err
    run = ["city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "--method", "qlora"]
    record = json.loads(ocr_eval("finetune", *run, "-o", tmp_path, "--measures", "none", "--json").out)
    folder = tmp_path / "runs" / record["run"]
    empty = ocr_eval("explain", folder)
    assert (empty.code, len(empty.err.splitlines())) == (2, 1)
    answer = ocr_eval("explain", folder, "--measure", "ov-change", "-q")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "quantized" in answer.err
    assert ocr_eval("explain", folder, "--measure", "logit-lens", "-q").code == 0


@pytest.mark.parametrize("place", ["ocr_eval.methods.view", "ocr_eval.measures.inside"])  # to score, to measure
def test_too_little_memory_is_one_line(inside, ocr_eval, monkeypatch, place):
    def full(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(f"{place}.lay_out", full)
    answer = ocr_eval("explain", inside[1], "--measure", "logit-lens", "-q")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert "too little memory" in answer.err


@pytest.mark.filterwarnings("ignore:.*LoRA:UserWarning", "ignore:.*lora_bias:UserWarning")
def test_what_is_not_lora_is_measured_in_training_alone(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "--method", "steering"]
    record = json.loads(ocr_eval("finetune", *run, "-o", tmp_path, "--measures", "logit-lens", "--json").out)
    assert "logit-lens" in record["measures"]
    answer = ocr_eval("explain", tmp_path / "runs" / record["run"], "--measure", "weight-change", "-q")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "--measures" in answer.err
