"""Files of anyone's: what they hold is read within bounds, and what cannot be is one readable line."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_json, read_jsonl
from ocr_eval.common.yaml_files import parse, read_yaml
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import ModelSpec, load_model_spec

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
WORDS = [
    "2021-13-45",
    "0x_",
    "9" * 5000,
    "0x" + "f" * 5000,
    "!!int x",
    "!!binary '*'",
    "!!python/name:os.system",
    "!x y",
]


@pytest.mark.parametrize("word", [*WORDS, '"\\0"', "[" * 60, "*nothing", "&a [*a]", "!!set {b}"])
def test_a_value_that_cannot_be_is_one_line(word, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(f"name: it\nvalue: {word}\n")
    with pytest.raises(UserError, match=r"line [23]: ") as error:
        read_yaml(path)
    assert len(str(error.value)) < 1100


def test_aliases_are_written_out_as_far_as_the_bound(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("a: &a [b, c]\nd: *a\n")
    assert read_yaml(path) == {"a": ["b", "c"], "d": ["b", "c"]}
    path.write_text(LAUGHS)
    started = time.process_time()
    with pytest.raises(UserError, match="aliases"):
        read_yaml(path)
    assert time.process_time() - started < 5


def test_ten_thousand_problems_are_a_line(tmp_path):
    started = time.process_time()
    with pytest.raises(UserError, match="more") as error:
        parse(ModelSpec, {"notes": list(range(20_000)), "x" * 10_000: 1}, "file.yaml")
    assert time.process_time() - started < 5
    assert len(str(error.value)) < 1100


def test_an_error_shows_no_control_characters():
    assert str(UserError("a\x1b[31mb\nc \u202e")) == "a\\x1b[31mb c \\u202e"


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "9" * 5000, "\xff"])
def test_json_that_cannot_be_is_an_error(content, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"file\.json"):
        read_json(path)
    with pytest.raises(UserError, match="line 1"):
        read_jsonl(path)


def test_a_hundred_thousand_pairs_are_read_in_seconds(tmp_path):
    path = tmp_path / "many.yaml"
    relation = "{{templates: ['{{name}} {} {{answer}}']}}".format
    head = f"name: many\nkind: causal\ndescription: d\nfact: {relation('lives in')}\nentailment: {relation('speaks')}\n"
    path.write_text(head + "pairs:\n" + "".join(f"  City {i}: Language {i}\n" for i in range(100_000)))
    started = time.process_time()
    assert load_association(str(path)).size() == {"pairs": 100_000}
    assert time.process_time() - started < 6  # half of it on a machine of its own


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "a/b.git", "a/" + "b" * 100, "a/b-", "a/b."])
def test_a_name_that_the_hub_cannot_have_is_refused(name):
    with pytest.raises(UserError, match=r"ORG/NAME|No model"):
        load_model_spec(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"kind": "hup"}}, "'weights' should have as 'kind' one of 'hub', 'package', 'folder', 'served'"),
        ({"weights": {"path": "a"}}, "'weights' should have the key 'kind'"),
        ({"weights": "a/b"}, "'weights' should contain 'key: value' lines"),
        ({"weights": {"kind": "folder", "path": 5}}, "'weights.path' is read as the number 5"),
        ({"weights": {"kind": "package", "parts": [], "sha256": "x"}}, "'weights.sha256' should be 64 hex digits"),
        ({"train": {"targets": {"q_proj": 1}}}, "'train.targets' should be a list"),
        ({"train": {"targets": [1]}}, "'train.targets.0' is read as the number 1"),
        ({"train": {"epochs": 1.5}}, "'train.epochs' should be an integer, got 1.5"),
        ({"train": {"method": "a b"}}, "'train.method' should be NAME or NAME:setting=value"),
        ({"full": 5}, "'full' should contain 'key: value' lines, got 5"),
    ],
)
def test_a_model_file_that_cannot_be_is_refused_in_words(changes, said, tmp_path):
    content = {
        "name": "mine",
        "description": "d",
        "license": "l",
        "weights": {"kind": "folder", "path": "a"},
        **changes,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        load_model_spec(str(tmp_path / "mine.yaml"))
    assert said in str(error.value)
    assert not re.search(r"tuple|literal|validation|pattern|Input|function-", str(error.value))


@pytest.fixture
def finished(ocr_eval, tiny, tmp_path) -> Path:
    """A folder of two finished runs."""
    flags = ["--n", 3, "--m-train", 2, "--m-test", 2, "--epochs", 1, "--quiet"]
    for seed in (0, 1):
        run = ["--model", tiny, "--assoc", "country-code", "--seed", seed, "-o", tmp_path / "runs", *flags]
        assert ocr_eval("finetune", *run).code == 0
    return tmp_path / "runs"


def test_a_record_with_an_impossible_number_is_named_and_the_others_are_shown(finished, ocr_eval):
    damaged = min(finished.rglob("result.json"))
    whole = damaged.read_text()
    for key in ("train_loss", "seed", "seconds", "final"):
        content = json.loads(whole)
        content[key] = "THERE"
        damaged.write_text(json.dumps(content).replace('"THERE"', "1e400"))
        answer = ocr_eval("table", finished)
        assert answer.code == 1
        assert answer.err.count(str(damaged)) == 1
        assert "tiny-llama" in answer.out


@pytest.mark.parametrize("name", ["failure.json", "env.json", "probes.jsonl", "metrics.jsonl", "config.yaml"])
@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"epoch": 1e400}'])
def test_a_damaged_file_of_a_run_is_at_most_a_line(finished, ocr_eval, name, content):
    (min(finished.rglob("result.json")).parent / name).write_text(content)
    for command in (["report", finished, "-o", finished / "page.html"], ["compare", finished, finished]):
        answer = ocr_eval(*command)
        assert answer.code in (0, 1)
        assert len(answer.err.splitlines()) <= 2
        assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 0}, {"hidden_size": -1}, {"vocab_size": "many"}, {"num_key_value_heads": 0}, []],
    ids=str,
)
def test_an_impossible_configuration_is_refused(change, tiny, tmp_path, ocr_eval):
    folder = tmp_path / "model"
    shutil.copytree(Path(tiny).with_suffix(""), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change} if change else []))
    for command in ("check", "show"):
        answer = ocr_eval("models", command, folder)
        assert answer.code == (2 if command == "check" else 0)
        assert len(answer.err.splitlines()) == (command == "check")
    assert ocr_eval("score", "--model", folder, "--assoc", "country-code", "--quiet").code == 2


def test_a_model_of_nan_is_not_scored(tiny, tmp_path, ocr_eval):
    folder = tmp_path / "model"
    shutil.copytree(Path(tiny).with_suffix(""), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value * float("nan") for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    answer = ocr_eval("score", "--model", folder, "--assoc", "country-code", "--quiet")
    assert answer.code == 2
    assert "NaN" in answer.err
    assert len(answer.err.splitlines()) == 1
