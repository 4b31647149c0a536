"""What a run is called: finished runs keep their names while the program around them grows."""

import json
import shutil
from typing import Literal

import pytest
import yaml
from conftest import tiny_run
from made_records import record

from ocr_eval.api import records_frame
from ocr_eval.common import provenance
from ocr_eval.common.errors import UserError
from ocr_eval.records.config import read_config
from ocr_eval.records.record import read_record, read_settings, to_plain
from ocr_eval.records.rows import group_rows
from ocr_eval.specs import strict
from ocr_eval.specs.model import TrainSpec, load_model_spec
from ocr_eval.specs.run import DataSpec, RunSpec
from ocr_eval.specs.strict import added_field

#: Of the tiny Llama's run below, at results version 1. Where it changes without a new version, every finished run of
#: every user is orphaned.
NAME = "1a694389"


class Grown(TrainSpec):
    """Training with a field that was added later, and whose default is not what there was before."""

    momentum: float = added_field(0.9, legacy=0.0)
    layers: tuple[int, ...] = added_field((0,), legacy=(0,))


def grown(spec: RunSpec, **changes: object) -> RunSpec:
    return spec.model_copy(update={"train": Grown(**{**spec.train.model_dump(), **changes})})


def test_the_name_of_a_run_is_frozen(tiny):
    assert tiny_run(tiny).fingerprint("weights") == NAME


def test_a_field_that_is_added_renames_no_run_that_does_as_before(tiny):
    spec = tiny_run(tiny)
    assert grown(spec, momentum=0.0).fingerprint("weights") == NAME
    assert grown(spec).fingerprint("weights") != NAME, "another default is another run"


def test_what_changes_the_result_changes_the_name(tiny, monkeypatch):
    spec = tiny_run(tiny)
    names = {
        spec.fingerprint("weights"),
        spec.fingerprint("other weights"),
        spec.in_precision("bfloat16").fingerprint("weights"),
        tiny_run(tiny, seed=1).fingerprint("weights"),
        tiny_run(tiny, lr=3e-3).fingerprint("weights"),
        tiny_run(tiny, m_train=1).fingerprint("weights"),
    }
    monkeypatch.setattr(strict, "RESULTS_VERSION", strict.RESULTS_VERSION + 1)
    assert len({*names, spec.fingerprint("weights")}) == 7


def test_a_record_of_an_older_program_has_legacy_values(tmp_path):
    old = read_settings(Grown, TrainSpec().model_dump(mode="json"))
    assert old.momentum == 0.0
    content = to_plain(record())
    del content["results_version"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "result.json").results_version == 0


@pytest.mark.parametrize("scoring", [None, "first-token"])
def test_a_record_of_a_newer_program_is_read_and_its_settings_tell_rows_apart(tmp_path, scoring):
    read = []
    for momentum in (0.5, 0.9):
        content = to_plain(record())
        content["train"]["momentum"] = momentum
        content |= {
            "measures": {"rank of the change": {"mean": 3}},
            "mood": "good",
            "run": f"a/b/lora/seed0-{momentum}",
        }
        content["final"]["first-token"]["test_entailment"]["spread"] = 1.0
        (tmp_path / "result.json").write_text(json.dumps(content))
        read.append(read_record(tmp_path / "result.json", scoring))
    assert [row.setting for row in group_rows(read)] == ["LoRA, train.momentum=0.5", "LoRA, train.momentum=0.9"]
    assert [row.setting for row in group_rows([read[0], record()])] == [
        "LoRA, train.momentum=0.5",
        "LoRA, train.momentum=unset",
    ]


def test_other_code_of_the_same_results_version_is_averaged_and_older_code_is_not():
    assert len(group_rows([record(code="a", results_version=1), record(code="b", results_version=1)])) == 1
    assert len(group_rows([record(code="a", results_version=1), record(code="a", results_version=2)])) == 2
    assert len(group_rows([record(code="a", results_version=0), record(code="b", results_version=0)])) == 2


def test_a_run_resumes_after_an_upgrade(ocr_eval, tiny, tmp_path, monkeypatch):
    flags = ["finetune", "city-language", "--model", tiny, "--n", 3, "--m-train", 2, "--m-test", 2, "-o", tmp_path]
    assert ocr_eval(*flags).code == 0
    monkeypatch.setattr(provenance, "code_digest", lambda: "0123456789ab")
    assert "done before" in ocr_eval(*flags).out


def test_the_config_of_an_older_run_is_what_that_run_was(ocr_eval, tiny, tmp_path, monkeypatch):
    class Older(DataSpec):
        language: Literal["en", "fr"] = added_field("fr", legacy="en")

    flags = ["finetune", "city-language", "--model", tiny, "--n", 3, "--m-train", 2, "--m-test", 2, "--epochs", 1]
    assert ocr_eval(*flags, "-o", tmp_path).code == 0
    (config,) = tmp_path.rglob("config.yaml")
    assert "language" not in yaml.safe_load(config.read_text())["data"]
    monkeypatch.setattr("ocr_eval.records.config.DataSpec", Older)
    monkeypatch.setattr(RunSpec, "model_validate", classmethod(lambda cls, content, **_: content))
    assert read_config(config.parent)["data"]["language"] == "en"


def test_a_model_of_yours_may_not_take_a_shipped_name(model_files, tmp_path):
    text = model_files["llama"].read_text().replace("name: tiny-llama", "name: llama3-8b")
    (tmp_path / "mine.yaml").write_text(text.replace("./llama", str(model_files["llama"].with_suffix(""))))
    with pytest.raises(UserError, match="'name: llama3-8b' belongs to a shipped model"):
        load_model_spec(str(tmp_path / "mine.yaml"))
    folder = model_files["llama"].with_suffix("")
    shutil.copytree(folder, tmp_path / "llama3-8b")
    assert load_model_spec(str(tmp_path / "llama3-8b")).name == "llama3-8b-folder"
    assert load_model_spec(str(folder)).name == "llama"


def test_unknown_settings_may_have_names_that_mean_something_else_here(tmp_path):
    read = []
    for value in ("a", "b"):
        content = to_plain(record())
        content["train"] |= {"dtype": value, "model": value}
        (tmp_path / "result.json").write_text(json.dumps(content))
        read.append(read_record(tmp_path / "result.json"))
    rows = group_rows(read)
    assert [row.labels for row in rows] == [("smollm2-135m",)] * 2
    assert records_frame(read)["train.dtype"].unique().tolist() == ["a", "b"]


@pytest.mark.parametrize("settings", [None, [], 5, "x"])
def test_settings_that_are_none_are_a_damaged_record(tmp_path, settings):
    (tmp_path / "result.json").write_text(json.dumps(to_plain(record()) | {"train": settings}))
    with pytest.raises(UserError, match=r"result\.json"):
        read_record(tmp_path / "result.json", "first-token")


def test_the_config_of_a_newer_run_says_to_upgrade(ocr_eval, tiny, tmp_path):
    flags = ["finetune", "city-language", "--model", tiny, "--n", 3, "--m-train", 2, "--m-test", 2, "--epochs", 1]
    assert ocr_eval(*flags, "-o", tmp_path).code == 0
    (config,) = tmp_path.rglob("config.yaml")
    content = yaml.safe_load(config.read_text())
    content["train"]["momentum"] = 0.5
    config.write_text(yaml.safe_dump(content))
    answer = ocr_eval("score", config.parent)
    assert answer.code == 2
    assert "unknown key 'train.momentum'" in answer.err
