"""What --dry-run says, from the configuration alone, and whether the simulated memory is what the parts add up to."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from ocr_eval.models.architecture import examine
from ocr_eval.models.precision import choose_for
from ocr_eval.planning import memory, timing
from ocr_eval.planning.memory import PROCESS_BYTES, estimate, least
from ocr_eval.planning.simulation import Geometry
from ocr_eval.specs.model import load_model_spec
from tests.test_facts import staff, write_csv

BATCH, CHUNK = Geometry(lanes=1, nodes=160, reads=32, tokens=32), Geometry(lanes=1, nodes=512, reads=150, tokens=900)


def settled(name):
    spec = load_model_spec(name)
    return spec.model_copy(update={"dtype": choose_for(spec, "cuda").dtype})


def planned(name, device="cpu", training=BATCH, layers=None, **train):
    spec = settled(name)
    return estimate(spec, spec.train.model_copy(update=train), training, CHUNK, device, layers)


def test_the_parts_of_lora_on_llama3_by_hand():
    plan = planned("llama3-8b")
    assert plan.weights == pytest.approx(2 * 8_030_261_248, rel=1e-6)
    assert plan.optimizer == 8 * 41_943_040
    assert plan.adapters == (4 + 2) * 41_943_040  # masters, and the bf16 copies in use
    assert plan.gradients == 4 * 41_943_040
    assert plan.process == PROCESS_BYTES
    assert plan.while_training
    assert 0.5e9 < plan.activations < 2e9
    on_gpu = planned("llama3-8b", device="cuda")
    assert on_gpu.process == 0
    assert on_gpu.activations != plan.activations  # another attention


def test_the_parts_of_other_methods_by_hand():
    four_bit = planned("llama3-8b", method="qlora")
    linears, rest = 6_979_321_856, 8_030_261_248 - 6_979_321_856
    nf4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes: a code, a scale for 64 of them, a scale for 256 scales
    assert four_bit.weights == pytest.approx(linears * nf4 + rest * 2, rel=1e-3)
    full = planned("llama3-8b", method="full")
    assert full.weights == pytest.approx(4 * 8_030_261_248, rel=1e-6)
    assert full.optimizer == pytest.approx(8 * 8_030_261_248, rel=1e-6)
    assert full.gradients == pytest.approx(4 * 8_030_261_248, rel=1e-3)
    assert planned("llama3-8b", method="full", device="cuda").optimizer == pytest.approx(2.03 * 8_030_261_248, rel=1e-2)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("training", [BATCH, Geometry(lanes=1, nodes=6, reads=1, tokens=1)])
def test_many_layers_from_a_few_is_what_simulating_all_gives(monkeypatch, method, training):
    few = planned("gemma3-270m", method=method, training=training, layers=5)
    monkeypatch.setattr(memory, "_at", lambda layers, peaks: peaks(layers))
    memory._estimate.cache_clear()
    assert few.total == pytest.approx(
        planned("gemma3-270m", method=method, training=training, layers=5).total, rel=0.01
    )


def test_a_pack_of_runs_shares_the_weights():
    one, four = planned("smollm2-135m"), planned("smollm2-135m", training=Geometry(4, 160, 32, 32))
    assert four.weights == one.weights
    assert (four.optimizer, four.adapters) == (4 * one.optimizer, 4 * one.adapters)
    assert four.activations == pytest.approx(4 * one.activations, rel=0.05)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_what_is_held_at_least_is_below_the_plan_and_near(method):
    spec = settled("llama3-8b")
    train = spec.train.model_copy(update={"method": method})
    bound, plan = least(spec, train, "cpu"), planned("llama3-8b", method=method)
    assert 0.75 * plan.total < bound < plan.total


def test_the_plan_of_a_model_that_is_not_here(ocr_eval, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available", lambda device: 24_000_000_000)
    answer = ocr_eval("finetune", "--model", "llama3-8b", "--assoc", "country-code", "--dry-run", "--device", "cpu")
    assert answer.code == 0, answer.err
    for said in (
        "meta-llama/Meta-Llama-3-8B at 8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920",
        "Meta Llama 3 community license",
        "; gated: ",
        "about 16.1 GB would be fetched",
        "41,943,040 trainable parameters (0.52%), adamw",
        "120 statements, 16 epochs, 64 steps",
        "counted with a stand-in",
        "in training: weights 16.1 GB, adapters 0.3 GB, optimizer 0.3 GB",
    ):
        assert said in answer.out
    assert "fits:" not in answer.out
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_with_what_would(ocr_eval, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10_000_000_000)
    run = ["finetune", "--model", "llama3-8b", "--assoc", "country-code", "--dry-run", "--device", "cpu"]
    answer = ocr_eval(*run)
    assert answer.code == 1
    assert "fits:     NO" in answer.out
    assert "would:    --method qlora needs 8." in answer.out
    assert "would:    a GPU such as RTX 4090 24 GB" in answer.out
    plan = json.loads(ocr_eval(*run, "--json").out)
    assert plan["fits"] is False
    assert plan["memory"]["total"] == sum(v for k, v in plan["memory"].items() if k not in ("total", "while"))
    assert list(plan["alternatives"]) == ["--method qlora"]


def test_a_smaller_batch_is_proposed_where_it_helps(ocr_eval, tiny, monkeypatch):
    spec = load_model_spec(tiny)
    whole = estimate(spec, spec.train, Geometry(1, 5000, 400, 400), CHUNK, "cpu")
    held = whole.weights + whole.adapters + whole.optimizer + whole.process
    train = spec.train.model_copy(update={"batch_size": 800})
    found = memory.alternatives(spec, train, Geometry(1, 5000, 400, 400), CHUNK, "cpu", held + whole.activations // 3)
    assert found[0][0].startswith("--batch-size ")
    assert found[0][1].total < whole.total


def test_the_plan_of_a_scoring(ocr_eval, tiny):
    answer = ocr_eval("score", "--model", tiny, "--assoc", "city-language", "--dry-run")
    assert answer.code == 0
    assert "200 once" in answer.out
    assert "GB at the peak, in scoring" in answer.out
    assert "steps" not in answer.out.split("schema_version")[0]


def test_a_run_that_does_not_fit_is_a_pack_of_its_own(tiny, monkeypatch):
    from conftest import tiny_run

    from ocr_eval.planning import packs

    monkeypatch.setattr(packs, "room", lambda device: 1000)
    assert packs.lanes_that_fit([tiny_run(tiny)], 1, "cpu") == 1


def test_the_time_of_a_scoring_is_in_proportion_to_its_rows(monkeypatch):
    monkeypatch.setattr(timing, "_seconds_a_weight", lambda rows, *of_what: rows * 1e-12)
    spec = settled("smollm2-135m")
    sizes = examine(spec)

    def chunk(training_lanes, lanes, nodes, reads):
        training = replace(BATCH, lanes=training_lanes)
        scoring = replace(CHUNK, lanes=lanes, nodes=nodes, reads=reads)
        return timing.calibrate(spec, sizes, spec.train, training, scoring, torch.device("cpu")).node * nodes

    by_hand = 1e-12 * (600 * sizes.linear_parameters + 120 * sizes.head)
    assert chunk(1, 1, 600, 120) == pytest.approx(timing.OVERHEAD * by_hand)
    assert chunk(4, 4, 150, 30) == pytest.approx(timing.OVERHEAD * by_hand)
    assert chunk(4, 1, 600, 120) == pytest.approx(timing.OVERHEAD * by_hand)


def test_the_time_of_an_edit_is_that_of_its_search(monkeypatch):
    monkeypatch.setattr(timing, "_seconds_a_weight", lambda rows, *of_what: rows * 1e-12)
    spec = settled("smollm2-135m")

    def step(method):
        train = spec.train.model_copy(update={"method": method})
        return timing.calibrate(spec, examine(spec), train, BATCH, CHUNK, torch.device("cpu")).step

    assert step("memit:steps=7") == pytest.approx(7 * step("lora"))


@pytest.mark.parametrize(("every", "scorings"), [("every", 6), ("doubling", 6), ("2,3", 5), ("last", 3)])
def test_a_plan_knows_how_often_is_scored(ocr_eval, tiny, every, scorings):
    run = ["--assoc", "city-language", "--epochs", "5", "--score-at", every, "--dry-run"]
    assert f"at each of at most {scorings} scorings" in ocr_eval("finetune", "--model", tiny, *run).out


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("dpo", "dpo: no candidate is unused."),
        ("rome:text=", "does not name its subject before the answer"),
        ("memit:text=", "does not name its subject before the answer"),
        ("in-context", "but the model reads 128 at most"),
    ],
)
def test_what_a_method_cannot_teach_is_refused_before_a_run_starts_in_the_words_of_the_run(
    ocr_eval, tiny, tmp_path, method, said
):
    table = write_csv(tmp_path / "staff.csv", staff(30, 15))
    if method.endswith("="):  # a text of enough words for a covariance
        (tmp_path / "text.txt").write_text(" ".join(f"word{i}" for i in range(400)))
        method += str(tmp_path / "text.txt")
    stated = {"structure": "facts", "name": "staff-facts", "description": "Staff.", "table": "staff.csv"}
    (tmp_path / "staff-facts.yaml").write_text(yaml.safe_dump(stated))
    out = tmp_path / "out"
    one = ["finetune", "--facts", table, "--model", tiny, "--method", method, "-o", out, "-q"]
    many = ["sweep", "--assocs", tmp_path / "staff-facts.yaml", "--models", tiny, "--methods", method, "-o", out, "-q"]
    lines = {}
    for command in (one, many):
        for more in ([], ["--dry-run"]):
            answer = ocr_eval(*command, *more)
            assert (answer.code, answer.out) == (2, "")
            lines[answer.err] = said in answer.err
    assert list(lines.values()) == [True], lines
    assert not list(out.rglob("config.yaml"))


def test_what_needs_no_tokenizer_is_refused_without_one(ocr_eval, tmp_path, monkeypatch):
    monkeypatch.setenv("OCR_EVAL_CACHE", str(tmp_path))
    answer = ocr_eval(
        "finetune", "city-language", "--model", "llama3-8b", "--candidates", "in-use", "--method", "dpo", "--dry-run"
    )
    assert answer.code == 2
    assert "dpo: no candidate is unused" in answer.err
