"""What must be learned before ranks say anything of inference: facts, and train entailments where they are taught."""

import json
from itertools import product

import pytest
from msgspec.structs import replace
from test_report import write_run
from test_table import record

from ocr_eval.records.record import read_record, to_plain
from ocr_eval.specs.run import SCORINGS, DataSpec


def learned(fact: float, entailment: float, **changes):
    """A record with these top-1 of facts and of train entailments."""
    made = record(**changes)
    of = made.final["first-token"]
    train = {"train_fact": fact, "train_entailment": entailment, "test_fact": fact}
    scores = {name: replace(of["test_fact"], top1=top1) for name, top1 in train.items()}
    return replace(made, final={scoring: {**of, **scores} for scoring in SCORINGS})


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
