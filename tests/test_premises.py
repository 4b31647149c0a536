"""What must be learned before ranks say anything of inference: facts, and train entailments where they are taught."""

import json
from itertools import product

import pytest
from conftest import tiny_run
from made_records import record
from msgspec.structs import replace
from test_report import write_run

from ocr_eval.data.pairs import quantities
from ocr_eval.data.task import build_task
from ocr_eval.records.metrics import MetricsLine, metrics_text
from ocr_eval.records.record import read_record, to_plain
from ocr_eval.specs.run import SCORINGS, DataSpec


def learned(fact: float, entailment: float, **changes):
    """A record with these top-1 of facts and of train entailments."""
    made = record(**changes)
    of = made.final["first-token"]
    train = {"train_fact": fact, "train_entailment": entailment, "test_fact": fact}
    scores = {name: replace(of["test_fact"], top1=top1) for name, top1 in train.items()}
    final = {scoring: {**of, **scores} for scoring in SCORINGS}
    return replace(made, final=final, quantities=quantities(made.data))


@pytest.mark.parametrize(("variant", "scoring"), product(["real", "no-entailment", "shuffled"], [None, "sequence"]))
def test_records_of_before_have_the_premises_of_their_data(tmp_path, variant, scoring):
    content = to_plain(learned(1.0, 0.3, data=DataSpec(variant=variant)))
    del content["quantities"]
    (tmp_path / "result.json").write_text(json.dumps(content | {"facts_learned": True}))
    read = read_record(tmp_path / "result.json", scoring)
    assert read.premises_hold is (variant != "real")
    assert read.premises.get("train_entailment") == (0.3 if variant == "real" else None)
    assert [read.premises[name] for name in ("train_fact", "test_fact")] == [1.0, 1.0]


def test_runs_are_chosen_by_their_premises(ocr_eval, tmp_path):
    for seed, top1s in enumerate([(1.0, 1.0), (1.0, 0.3), (0.3, 1.0)]):
        write_run(tmp_path / f"run{seed}", learned(*top1s, seed=seed))
    for key in ("facts_learned", "premises-hold"):
        flags = ["--filter", f"{key}=yes", "--no-published", "-f", "json"]
        (cell,) = json.loads(ocr_eval("table", tmp_path, *flags).out)["cells"]
        assert (cell["seeds"], cell["premises_hold"]) == (1, True)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_record_that_lacks_a_premise_is_not_one_that_learned_it(ocr_eval, tmp_path, scoring):
    for seed in (0, 1):
        write_run(tmp_path / f"run{seed}", learned(1.0, 1.0, seed=seed))
    path = tmp_path / "run1/result.json"
    content = json.loads(path.read_text())
    del content["final"]["first-token"]["train_entailment"]
    path.write_text(json.dumps(content))
    answer = ocr_eval("table", tmp_path, "--scoring", scoring, "--no-published", "-f", "json")
    assert answer.code == 1
    assert "run1/result.json: final.first-token has no score of the premise train_entailment" in answer.err
    (cell,) = json.loads(answer.out)["cells"]
    assert (cell["seeds"], cell["premises_hold"]) == (1, True)
    del content["final"]["first-token"]
    path.write_text(json.dumps(content))
    assert "no score of the premise train_fact" in ocr_eval("table", tmp_path, "--scoring", "sequence").err


def test_an_epoch_that_lacks_a_premise_is_not_one_that_learned_it(ocr_eval, tmp_path):
    sides = [learned(1.0, 1.0, data=DataSpec(m_train=m)) for m in (4, 4, 0)]
    for name, run in zip("abc", sides, strict=True):
        folder = tmp_path / name / "run"
        write_run(folder, run)
        asked = {q.name for q in run.quantities} - ({"train_entailment"} if name == "b" else set())
        told = {scoring: {key: of[key] for key in asked} for scoring, of in run.final.items()}
        lines = [MetricsLine(epoch=epoch, scores=told, held_out=run.held_out) for epoch in run.epochs]
        (folder / "metrics.jsonl").write_text(metrics_text(lines))
    for name, is_matched in zip("abc", (True, False, True), strict=True):
        answer = ocr_eval("compare", tmp_path / "a", tmp_path / name, "--json")
        assert answer.code == 0, answer.err
        (found,) = json.loads(answer.out)["contrasts"]
        assert (found["matched"] is not None) is is_matched


def test_what_nobody_is_asked_is_no_premise(tiny):
    assert [q.name for q in build_task(tiny_run(tiny, m_train=0)).quantities] == ["test_fact", "test_entailment"]
    old = to_plain(record(data=DataSpec(m_train=0), quantities=quantities(DataSpec())))
    assert "train_fact" not in {each["name"] for each in old["quantities"]}


def test_the_page_names_the_premise_that_fails(ocr_eval, tmp_path):
    write_run(tmp_path / "run", record(learned=False))
    assert ocr_eval("report", tmp_path, "-o", tmp_path / "report.html").code == 0
    assert "(test facts not learned)" in (tmp_path / "report.html").read_text()


def test_finetune_names_the_premise_that_fails_and_what_to_change(ocr_eval, tiny, tmp_path):
    data = ["--n", 2, "--m-train", 1, "--m-test", 2, "--epochs", 1, "--quiet"]
    out = ocr_eval("finetune", "country-code", "--model", tiny, *data, "-o", tmp_path).out
    assert "TRAIN ENTAILMENTS" in out
    assert "NOT LEARNED" in out
    assert "--epochs" in out
