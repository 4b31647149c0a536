"""What is measured on trained weights, against plain singular value decompositions."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ocr_eval.common.registry import MEASURES
from ocr_eval.measures.weight_change import norms
from ocr_eval.methods.changes import Dense, LowRank


def test_norms_of_a_hand_worked_case():
    assert norms(torch.tensor([4.0, 3.0])) == pytest.approx(
        {"frobenius": 5, "nuclear": 7, "spectral": 4, "effective_rank": (7 / 4) ** (4 / 7) * (7 / 3) ** (3 / 7)}
    )
    assert norms(torch.tensor([2.0, 2.0, 0.0]))["effective_rank"] == pytest.approx(2)
    assert norms(torch.zeros(3)) == {"frobenius": 0, "nuclear": 0, "spectral": 0, "effective_rank": 0}


@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 6, 6), (2, 5, 9), (6, 4, 3)])
def test_singular_values_are_those_of_the_change_added_up(shape):
    rank, inputs, outputs = shape
    torch.manual_seed(0)
    low = LowRank("m", torch.randn(rank, inputs), torch.randn(rank, outputs), 0.5)
    plain = torch.linalg.svdvals(low.dense().double())
    few = min(rank, inputs, outputs)
    torch.testing.assert_close(low.singular_values()[:few], plain[:few], rtol=1e-6, atol=1e-6)
    before = torch.randn(outputs, inputs)
    dense = Dense("m", before + low.dense(), lambda: before)
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


def check(measured, changes):
    values = {name: torch.linalg.svdvals(change.double()) for name, change in changes.items()}
    modules = measured["modules"]
    assert sorted(modules["name"]) == sorted(values)
    for name, nuclear, spectral in zip(modules["name"], modules["nuclear"], modules["spectral"], strict=True):
        assert nuclear == pytest.approx(float(values[name].sum()), rel=1e-3)
        assert spectral == pytest.approx(float(values[name].max()), rel=1e-3)
    assert measured["frobenius"] == pytest.approx(math.hypot(*(float(v.norm()) for v in values.values())), rel=1e-5)
    assert measured["nuclear"] == pytest.approx(sum(float(v.sum()) for v in values.values()), rel=1e-3)


@pytest.fixture
def door(monkeypatch):
    """Measures of a test, gone after it."""
    monkeypatch.setattr(MEASURES, "_added", {})
    return MEASURES.add


class Taken:
    about = "What a test says"

    def __init__(self, take):
        self.take = take

    def by_default(self, needs):
        return True


def fails(trained):
    raise ValueError("out of ink")


def test_a_measure_that_fails_or_finds_no_plain_number_costs_no_run(ocr_eval, tiny, tmp_path, door):
    door("broken", Taken(fails))
    door("endless", Taken(lambda trained: {"length": math.nan}))
    door("foreign", Taken(lambda trained: {"length": torch.ones(1)}))
    door("fine", Taken(lambda trained: {"length": 3}))
    run = ["--model", tiny, "--assoc", "city-language", "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path]
    answer = ocr_eval("finetune", *run, "--json")
    assert answer.code == 0
    assert set(json.loads(answer.out)["measures"]) == {"fine", "weight-change"}
    assert "no measure 'broken': out of ink" in answer.err
    assert "no measure 'endless'" in answer.err
    assert "'fine'" not in answer.err
    again = ocr_eval("finetune", *run, "--measures", "weight-change,nothing")
    assert again.code == 2
    assert "Unknown measure 'nothing'" in again.err


def test_finished_runs_without_a_measure_say_so(ocr_eval, tiny, tmp_path, door):
    run = ["--model", tiny, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--seeds", "0", "--n", 2]
    assert ocr_eval("sweep", "--models", *run[1:], "--assocs", "city-language", "--measures", "none").code == 0
    again = ocr_eval("sweep", "-o", tmp_path, "--measures", "weight-change")
    assert again.code == 0
    assert "1 finished runs lack the measure 'weight-change'" in again.err
