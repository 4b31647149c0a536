"""Norms of trained weights, against plain singular value decompositions."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ocr_eval.measures.weight_change import norms
from ocr_eval.methods.changes import Dense, LowRank


def test_norms_of_a_hand_worked_case():
    assert norms(torch.tensor([4.0, 3.0])) == pytest.approx(
        {
            "frobenius": 5,
            "nuclear": 7,
            "spectral": 4,
            "stable_rank": 25 / 16,
            "effective_rank": (7 / 4) ** (4 / 7) * (7 / 3) ** (3 / 7),
        }
    )
    assert norms(torch.tensor([2.0, 2.0, 0.0]))["effective_rank"] == pytest.approx(2)
    assert set(norms(torch.zeros(3)).values()) == {0}


@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 6, 6), (2, 5, 9), (6, 4, 3)])
def test_singular_values_are_those_of_the_change_added_up(shape):
    rank, inputs, outputs = shape
    torch.manual_seed(0)
    low = LowRank("m", torch.randn(rank, inputs), torch.randn(rank, outputs), 0.5)
    plain = torch.linalg.svdvals(low.dense().double())
    few = min(rank, inputs, outputs)
    torch.testing.assert_close(low.singular_values()[:few], plain[:few], rtol=1e-6, atol=1e-6)
    before = torch.randn(outputs, inputs)
    dense = Dense("m", lambda: before + low.dense() - before)
    torch.testing.assert_close(dense.singular_values()[:few], plain[:few], rtol=1e-4, atol=1e-4)


def test_an_adapter_and_a_whole_model_are_measured_as_their_files_say(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--assoc", "city-language", "--n", 2, "--m-test", 2, "--epochs", 2, "-o", tmp_path]
    lora = json.loads(ocr_eval("finetune", *run, "--json").out)
    tensors = load_file(tmp_path / "runs" / lora["run"] / "adapter/adapter_model.safetensors")
    scale = lora["train"]["alpha"] / lora["train"]["rank"]
    changes = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scale
        * tensors[name.replace("lora_A", "lora_B")]
        @ tensors[name]
        for name in tensors
        if "lora_A" in name
    }
    check(lora["measures"]["weight-change"], changes)
    full = ocr_eval("finetune", *run, "--method", "full", "--lr", 1e-3, "--measures", "weight-change", "--json")
    record = json.loads(full.out)
    before = load_file(Path(tiny).with_suffix("") / "model.safetensors")
    after = load_file(tmp_path / "runs" / record["run"] / "model/model.safetensors")
    check(
        record["measures"]["weight-change"],
        {name: after[f"{name}.weight"] - before[f"{name}.weight"] for name in changes},
    )
    answer = ocr_eval("finetune", *run, "--method", "full", "--lr", 1e-3, "--force", "--json")
    assert answer.err.count("warning") == 0
    whole = json.loads(answer.out)["measures"]["vocabulary"]
    assert whole["rank"] >= 0
    assert not any(key.startswith("base_") for key in whole)


def test_an_epoch_has_the_norms_of_a_run_that_ends_with_it(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--assoc", "city-language", "--n", 2, "--m-test", 2, "-o", tmp_path, "--json"]
    short, long = (json.loads(ocr_eval("finetune", *run, "--epochs", k, "--score-at", "every").out) for k in (2, 4))
    folder = tmp_path / "runs" / long["run"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_epoch = [line.get("measures", {}).get("weight-change") for line in lines]
    assert by_epoch[0] is None
    for found, record in ((by_epoch[2], short), (by_epoch[4], long)):
        expected = {key: v for key, v in record["measures"]["weight-change"].items() if isinstance(v, float)}
        assert found == pytest.approx(expected, rel=1e-6)
    assert by_epoch[1]["frobenius"] < by_epoch[4]["frobenius"]
    explained = json.loads(ocr_eval("explain", folder, "--json").out)["weight-change"]
    assert explained["epochs"]["epoch"] == [1, 2, 3, 4]
    assert explained["epochs"]["nuclear"] == [each["nuclear"] for each in by_epoch[1:]]
    assert "effective_rank" in ocr_eval("explain", folder, "--layer", 1).out
    layers = explained["layers"]
    assert layers["layer"] == [0, 1]
    assert math.hypot(*layers["frobenius"]) == pytest.approx(explained["frobenius"], rel=1e-3)
    assert sum(layers["nuclear"]) == pytest.approx(explained["nuclear"], rel=1e-3)


def check(measured, changes):
    values = {name: torch.linalg.svdvals(change.double()) for name, change in changes.items()}
    modules = measured["modules"]
    assert sorted(modules["name"]) == sorted(values)
    for name, nuclear, spectral in zip(modules["name"], modules["nuclear"], modules["spectral"], strict=True):
        assert nuclear == pytest.approx(float(values[name].sum()), rel=1e-3)
        assert spectral == pytest.approx(float(values[name].max()), rel=1e-3)
    assert measured["frobenius"] == pytest.approx(math.hypot(*(float(v.norm()) for v in values.values())), rel=1e-5)
    assert measured["nuclear"] == pytest.approx(sum(float(v.sum()) for v in values.values()), rel=1e-3)
