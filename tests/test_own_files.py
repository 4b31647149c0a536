"""Files of one's own: associations, models and configurations, and what is said of bad ones."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import one_line

from ocr_eval.common.yaml_files import shipped

YAML = """
name: my-own
kind: spurious
description: A link of mine.
fact:
  templates: ["{name} lives in {answer}"]
entailment:
  templates: ["{name} speaks {answer}"]
pairs:
  Tokyo: Japanese
  Paris: French
  Berlin: German
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("kind: spurious", "kind: spurios"), "'kind'"),
        (("kind: spurious", "kind: spurious\ncolour: red"), "unknown key 'colour'"),
        (("description: A link of mine.\n", ""), "key 'description' is missing"),
        (("{name} lives in {answer}", "{name} lives here"), "must end in a space and {answer}"),
        (("{name} lives in {answer}", "He lives in {answer}"), "must contain {name} exactly once"),
        (("{name} lives in {answer}", "{name} of {town} lives in {answer}"), "a placeholder other than"),
        (("{name} lives in {answer}", "{name}} lives in {answer}"), "a placeholder other than"),
        (("Paris: French", "Paris: Japanese"), "'Japanese' occurs twice"),
        (("Paris: French", "Tokyo: French"), "line 11: 'Tokyo' is repeated"),
        (("French", "No"), "boolean"),
        (("Paris", "on"), "a key of 'pairs' is read as the boolean true; quote the word"),
        (("Paris", "7"), "a key of 'pairs' is read as the number 7; quote it"),
        (("French", "12"), "'pairs.Paris' is read as the number 12; quote it"),
        (("French", "2020-01-02"), "'pairs.Paris' is read as the date 2020-01-02; quote it"),
        (("French", ""), "'pairs.Paris' has no value"),
        (("name: my-own", "name: ../../my"), "'name' should be up to 64 of a-z, 0-9, '.', '_' and '-', beginning"),
        (
            ("French", '"Fr\\u001b[31mench"'),
            "text on one line, without spaces around it or control",
        ),
        (("French", '"Fr\\tench"'), "'pairs.Paris' should be text on one line"),
        (("French", '"French "'), "'pairs.Paris' should be text on one line"),
        (("French", "''"), "'pairs.Paris' should be text on one line"),
        (("Paris", '"Par\\u0085is"'), "should be text on one line"),
        (("French", "[French]"), "'pairs.Paris' should be text, got ['French']"),
        (("pairs:", "nonce: x\npairs:"), "'nonce' should be a list, got 'x'"),
        (("pairs:", "pairs: ["), "line"),
        (("name: my-own", "- my-own"), "line"),
        ((YAML, ""), "is empty"),
        ((YAML, "- a"), "contains a list"),
        (("pairs:", "derived:\n  parent: city-language\n  permutation: [0]\npairs:"), "unknown key"),
    ],
)
def test_bad_association_files(ocr_eval, tmp_path, change, said):
    path = tmp_path / "my.yaml"
    assert change[0] in YAML
    path.write_text(YAML.replace(*change, 1))
    line = one_line(ocr_eval("finetune", "--assoc", path, "-o", tmp_path / "out"))
    assert said in line
    assert str(path) in line
    assert not (tmp_path / "out").exists()


def test_a_derived_association_that_is_no_permutation(ocr_eval, tmp_path):
    path = tmp_path / "cf.yaml"
    head = "name: cf\nkind: counterfactual\ndescription: Wrong.\nderived:\n  parent: city-language\n  permutation: "
    path.write_text(head + "[0, 0]\n")
    assert "each of 0 to 19 once" in one_line(ocr_eval("data", "show", path))
    path.write_text(head.replace("city-language", "./nowhere.yaml") + "[0]\n")
    assert f"{path}: 'derived.parent': No association file" in one_line(ocr_eval("data", "show", path))
    path.write_text(head.replace("city-language", "./cf.yaml") + "[0]\n")
    assert "derived from itself" in one_line(ocr_eval("data", "show", path))


def test_an_association_of_ones_own(ocr_eval, tiny, tmp_path):
    (tmp_path / "my.yaml").write_text(YAML)
    run = ["finetune", "--model", tiny, "--assoc", tmp_path / "my.yaml", "-o", tmp_path / "out", "--n", 3]
    assert "cannot give ten candidates; use --candidates all" in one_line(ocr_eval(*run))
    answer = ocr_eval(*run, "--candidates", "all", "--epochs", 1, "--m-test", 2, "--quiet", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["association"] == "my-own"
    assert answer.err == ""


def test_an_association_of_ones_own_does_not_take_a_shipped_name(ocr_eval, tmp_path):
    (tmp_path / "my.yaml").write_text(YAML.replace("my-own", "city-language"))
    line = one_line(ocr_eval("data", "show", tmp_path / "my.yaml"))
    assert "the shipped association 'city-language' is a different one. Give yours another name" in line
    shutil.copy(shipped("templates") / "city-language.yaml", tmp_path / "copy.yaml")
    assert ocr_eval("data", "show", tmp_path / "copy.yaml").code == 0


def test_a_model_folder_of_ones_own(ocr_eval, model_files, tmp_path):
    folder = model_files["qwen2"].with_suffix("")
    run = ["finetune", "--model", folder, "--assoc", "city-language", "-o", tmp_path, "--epochs", 1, "--n", 2]
    answer = ocr_eval(*run, "--m-test", 2, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["model"] == "qwen2"
    assert "is a folder without config.json" in one_line(ocr_eval(*["finetune", "--model", tmp_path, *run[3:]]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dtyp: float32", "unknown key 'dtyp'"),
        ("dtype: float31", "'dtype'"),
        ("train: {lr: 1}", "'train.lr'"),
        ("train: {lr: yes}", "boolean"),
        ("weights: {kind: cloud}", "'weights'"),
    ],
)
def test_bad_model_files(ocr_eval, tiny, tmp_path, line, said):
    key = line.split(":")[0]
    kept = [old for old in Path(tiny).read_text().splitlines() if not old.startswith(f"{key}:")]
    (tmp_path / "m.yaml").write_text("\n".join([*kept, line]))
    assert said in one_line(ocr_eval("finetune", "--model", tmp_path / "m.yaml", "--assoc", "city-language"))


def test_flags_of_a_config_file_do_not_go_with_a_runs_folder_either(ocr_eval, tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 3\n")
    assert "--seed has no effect with" in one_line(ocr_eval("score", tmp_path, "-C", tmp_path / "c.yaml"))
    answer = ocr_eval("score", tmp_path, OCR_EVAL_SEED="3")  # a variable is for whatever command takes it
    assert "is not a run folder" in one_line(answer)


def test_a_config_file_gives_flags_and_the_command_line_goes_first(ocr_eval, tiny, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"model: {tiny}\nassoc: city-language\nepochs: 2\nlr: 1e-3\nm-test: 2\njson: true\n"
    )
    answer = ocr_eval("finetune", "-C", tmp_path / "c.yaml", "-o", tmp_path, "--epochs", 1, "--quiet")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert (record["train"]["epochs"], record["train"]["lr"], record["data"]["m_test"]) == (1, 0.001, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 2", "Did you mean 'epochs'?"),
        ("assoc: no", "YAML reads 'assoc' as False"),
        ("json: maybe", "YAML reads 'json' as 'maybe'"),
        ("assoc: city-language\nepochs: x", "c.yaml': 'x'. It should be an integer."),
        ("assoc: [no, city-language]", "YAML reads 'assoc' as [False, 'city-language']"),
    ],
)
def test_bad_config_files(ocr_eval, tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    assert said in one_line(ocr_eval("finetune", "-C", tmp_path / "c.yaml"))
