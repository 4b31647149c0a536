"""The layouts of an exported data set."""

import json
import re

import pytest
import yaml
from conftest import tiny_run
from datasets import load_dataset
from huggingface_hub import DatasetCard

from ocr_eval.data.export import FORMATS, inspect_rows, probe_rows, training_rows
from ocr_eval.data.task import build_task

QUANTITIES = ["train_fact", "train_entailment", "test_fact", "test_entailment"]


@pytest.fixture
def export(ocr_eval, tmp_path):
    """Export three groups of 2 + 3 subjects; the files by name."""

    def call(format, *arguments):
        data = ("--n", 3, "--m-train", 2, "--m-test", 3, *arguments)
        answer = ocr_eval(
            "data", "export", "--assoc", "country-code", "-o", tmp_path / "out", "--format", format, *data
        )
        assert answer.code == 0, answer.err
        paths = sorted((tmp_path / "out").iterdir())
        assert sorted(answer.out.split()) == [str(path) for path in paths]
        return {path.name: path.read_text() for path in paths}

    return call


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_completion_begins_with_the_space_and_completes_the_statement(export, tiny):
    content = export("prompt-completion")["prompt-completion.jsonl"]
    dataset = build_task(tiny_run(tiny, "country-code"))
    assert [row["prompt"] + row["completion"] for row in rows(content)] == [s.text for s in dataset.train]
    assert all(row["completion"] == f" {s.answer}" for row, s in zip(rows(content), dataset.train, strict=True))


def test_inspect_has_a_file_a_quantity_and_letters_for_the_right_choices(export):
    files = export("inspect")
    assert set(files) == {f"inspect_country-code_{quantity}.jsonl" for quantity in QUANTITIES}
    samples = rows(files["inspect_country-code_test_entailment.jsonl"])
    assert len(samples) == 9
    assert len({sample["id"] for sample in samples}) == 9
    assert {sample["target"] for sample in samples} == {"A", "B", "C"}
    for sample in samples:
        assert sample["choices"]["ABCDEFGHIJ".index(sample["target"])] == sample["metadata"]["answer"]
        assert "answer" not in sample["input"]


def test_choices_beyond_the_alphabet_are_numbers():
    probe = {"subject": "x", "prompt": "p", "candidates": [], "answer": "a", "in_use": 9, "group": 0}
    targets = [{**probe, "target": i, "split": "test", "relation": "fact"} for i in (0, 25, 26, 35)]
    assert [row["target"] for row in inspect_rows(targets)] == ["A", "Z", "1", "10"]


def test_lm_eval_has_a_task_a_quantity_in_one_group(export):
    files = export("lm-eval")
    tasks = [f"ocr_eval_country-code_{quantity}" for quantity in QUANTITIES]
    names = {f"{task}.{ending}" for task in tasks for ending in ("yaml", "jsonl")}
    assert set(files) == names | {"ocr_eval_country-code.yaml", "ocr_eval_task.py"}
    assert yaml.safe_load(files["ocr_eval_country-code.yaml"])["task"] == tasks
    imports = re.findall(r"^(?:from|import) (\w+)", files["ocr_eval_task.py"], re.M)
    assert set(imports) == {"json", "pathlib", "typing", "datasets"}, "it must stand alone"


@pytest.mark.parametrize("format", ["lm-eval", "inspect"])
def test_a_quantity_without_probes_is_left_out(export, format):
    files = export(format, "--m-train", 0)
    assert not any("train" in name for name in files)
    assert any("test_entailment" in name for name in files)
    assert "train" not in files.get("ocr_eval_country-code.yaml", "")


def test_all_formats_fit_in_one_folder(tiny):
    dataset = build_task(tiny_run(tiny))
    names = [name for make in FORMATS.values() for name in make(dataset, "city-language")]
    assert len(names) == len(set(names))


def test_a_folder_for_the_hub_is_loaded_by_name_and_scored(ocr_eval, tiny, tmp_path):
    size = ("--n", 3, "--m-train", 2, "--m-test", 3)
    words = ("data", "export", "country-code", *size, "-f", "hub", "-o", tmp_path / "hub")
    assert ocr_eval(*words).code == 0
    dataset = build_task(tiny_run(tiny, "country-code"))
    for name, expected in (("train", training_rows(dataset)), ("probes", probe_rows(dataset))):
        loaded = load_dataset(str(tmp_path / "hub"), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.to_list() == expected
    card = DatasetCard.load(tmp_path / "hub/README.md")
    assert card.data.tags == ["ocr-eval", "out-of-context-reasoning"]
    assert ocr_eval("score", "--data", tmp_path / "hub", "--model", tiny, "--json").code == 0
    assert ocr_eval(*words).code == 0, "a card of an export may be replaced"
    (tmp_path / "hub/README.md").write_text("# My project\n")
    answer = ocr_eval(*words)
    assert (answer.code, answer.out) == (2, "")
    assert "README.md" in answer.err
    assert (tmp_path / "hub/README.md").read_text() == "# My project\n"


def test_the_target_is_the_answers_place(tiny):
    for row in probe_rows(build_task(tiny_run(tiny))):
        assert row["candidates"][row["target"]] == row["answer"]


def test_an_unknown_format_is_one_line_with_a_suggestion(ocr_eval, tmp_path):
    answer = ocr_eval("data", "export", "--assoc", "country-code", "-o", tmp_path / "out", "--format", "lmeval")
    assert answer.code == 2
    assert "Did you mean 'lm-eval'?" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
