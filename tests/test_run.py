"""Runs through the command line: what is on disk, that it is repeatable, and that nothing is lost."""

import json

import pytest
import yaml
from conftest import SMALL, content, only_run
from huggingface_hub import ModelCard
from msgspec.structs import replace

from ocr_eval.records.config import read_config
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.record import read_record, to_plain
from ocr_eval.records.run_files import matched_of


def test_a_run_leaves_its_files_and_nothing_else(finetune, tmp_path):
    answer = finetune(tmp_path)
    assert answer.code == 0
    folder = only_run(tmp_path)
    assert folder.relative_to(tmp_path).parts[:4] == ("runs", "tiny-llama", "country-code", "lora")
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "adapter",
        "audit.json",
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "probes.jsonl",
        "result.json",
        "status.json",
    ]
    assert sorted(p.name for p in (folder / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    card = ModelCard.load(folder / "adapter/README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", None), "whose base is a folder"
    score = read_record(folder / "result.json").finding("first-token")
    assert f"OCR score {score.ocr_score:+.2f}" in card.text
    for name in ("audit.json", "env.json", "result.json", "status.json"):
        assert json.loads((folder / name).read_text())["schema_version"] == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["schema_version"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert "country-code (spurious) seed 0: held-out mean rank" in answer.out


def test_the_record_states_all_four_quantities_under_every_scoring(finetune, tmp_path):
    finetune(tmp_path)
    folder = only_run(tmp_path)
    record = json.loads((folder / "result.json").read_text())
    for when in ("base", "final"):
        for scoring in ("first-token", "sequence", "per-token"):
            scores = record[when][scoring]
            assert {name: score["probes"] for name, score in scores.items()} == {
                "train_fact": 6,
                "train_entailment": 6,
                "test_fact": 9,
                "test_entailment": 9,
            }
            for score in scores.values():
                assert score["ocr_score"] == pytest.approx(1 - score["in_use_rank"] / 1)  # 3 answers in use
    held_out = record["held_out"]["first-token"]
    right = [row[target] for row, target in zip(held_out["ranks"], held_out["target"], strict=True)]
    assert sum(right) / 9 == pytest.approx(record["final"]["first-token"]["test_entailment"]["mean_rank"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["train_loss"] is None
    assert lines[-1]["scores"] == record["final"]
    probes = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    assert [(p["epoch"]) for p in probes] == [0] * 30 + [3] * 30
    assert all(p["prompt"] and len(p["candidates"]) == len(p["logprobs"]["sequence"]) == 10 for p in probes)


def test_the_same_command_twice_gives_the_same_everything(finetune, tmp_path):
    for name in ("a", "b"):
        assert finetune(tmp_path / name).code == 0
    assert content(RunFolder(only_run(tmp_path / "a"))) == content(RunFolder(only_run(tmp_path / "b")))


def test_a_schedule_changes_when_is_scored_and_nothing_else(finetune, tmp_path):
    """All probes at its epochs, at 0, at the last and when premises first hold; until then the premises elsewhere."""

    def run(schedule):
        finetune(tmp_path / schedule, "--epochs", 14, "--score-at", schedule)
        return content(RunFolder(only_run(tmp_path / schedule)))

    def scored(metrics):
        """Each epoch with the scorings and quantities of its line."""
        return {line["epoch"]: {s: list(found) for s, found in line.get("scores", {}).items()} for line in metrics}

    every = run("every")
    assert all("held_out" in line for line in every["metrics"])
    tops = [[score["top1"] for score in line["scores"]["first-token"].values()][:3] for line in every["metrics"]]
    learned = next(epoch for epoch, top1 in enumerate(tops) if min(top1) >= 0.95)
    assert 3 < learned < 13, "the case shows nothing otherwise"
    at = every["metrics"][learned]
    ranks = {scoring: held["ranks"] for scoring, held in at["held_out"].items()}
    assert every["record"]["matched"] == {"epoch": learned, "scores": at["scores"], "ranks": ranks}
    folder = only_run(tmp_path / "every")
    record = read_record(folder / "result.json")
    for each in (record, replace(record, matched=None, results_version=0)):
        assert to_plain(matched_of(FinishedRun(folder, each))) == every["record"]["matched"]
    in_part = read_record(folder / "result.json", "first-token").matched
    only = {part: {"first-token": every["record"]["matched"][part]["first-token"]} for part in ("scores", "ranks")}
    assert to_plain(in_part) == {"epoch": learned, **only}
    early = record.when_matched()
    assert (to_plain(early.final), to_plain(early.held_out)) == (at["scores"], at["held_out"])
    for schedule, named in (("doubling", {1, 2, 4, 8}), ("last", set()), ("every:5", {5, 10}), ("2,13", {2, 13})):
        found = run(schedule)
        assert found["record"] == every["record"]
        assert found["probes"] == every["probes"]
        lines = found["metrics"]
        assert [line["train_loss"] for line in lines] == [line["train_loss"] for line in every["metrics"]]
        assert {line["epoch"] for line in lines if "held_out" in line} == {0, 14, learned} | named
        in_full = scored(every["metrics"])[0]
        for epoch, quantities in scored(lines).items():
            premises = {"first-token": ["train_fact", "train_entailment", "test_fact"]} if epoch < learned else {}
            assert quantities == (in_full if epoch in {0, 14, learned} | named else premises)


@pytest.mark.parametrize(("norm", "epoch"), [(12, 14), (1, None)])
def test_a_prevention_that_acts_after_training_is_matched_at_the_end_or_never(finetune, tmp_path, norm, epoch):
    finetune(tmp_path, "--epochs", 14, "--score-at", "12", "--prevent", f"scale-after:norm={norm}")
    folder = only_run(tmp_path)
    found = content(RunFolder(folder))
    lines = {line["epoch"]: line["scores"]["first-token"] for line in found["metrics"] if "scores" in line}
    assert list(lines) == [0, 12, 14]
    assert min(score["top1"] for name, score in lines[12].items() if name != "test_entailment") == 1
    before = replace(read_record(folder / "result.json"), matched=None, results_version=0)
    for matched in (read_record(folder / "result.json").matched, matched_of(FinishedRun(folder, before))):
        assert (matched and matched.epoch) == epoch


def test_what_never_learns_is_never_matched(finetune, tmp_path):
    finetune(tmp_path, "--lr", 1e-6, "--score-at", "last")
    folder = only_run(tmp_path)
    found = content(RunFolder(folder))
    assert found["record"]["matched"] is None
    assert matched_of(FinishedRun(folder, read_record(folder / "result.json"))) is None
    assert [len(line["scores"]) for line in found["metrics"]] == [3, 1, 1, 3]


@pytest.mark.parametrize("schedule", ["often", "every:0", "0", "1,,2", "3-5", ","])
def test_what_is_no_schedule_is_refused(finetune, tmp_path, schedule):
    answer = finetune(tmp_path, "--score-at", schedule)
    assert answer.code == 2
    assert "--score-at" in answer.err
    assert "doubling" in answer.err
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_shown_and_not_repeated(finetune, tmp_path):
    finetune(tmp_path)
    before = (only_run(tmp_path) / "result.json").stat().st_mtime_ns
    again = finetune(tmp_path)
    assert again.code == 0
    assert "done before" in again.out
    assert (only_run(tmp_path) / "result.json").stat().st_mtime_ns == before
    assert "written to" in finetune(tmp_path, "--force").out
    assert (only_run(tmp_path) / "result.json").stat().st_mtime_ns != before


def test_what_changes_the_result_changes_the_folder(finetune, tmp_path):
    for more in ([], ["--lr", "5e-3"], ["--seed", "1"], ["--candidates", "all"]):
        finetune(tmp_path, "--epochs", 1, *more)
    assert len(list(tmp_path.glob("runs/*/*/*/*/status.json"))) == 4


def test_the_resolved_config_reads_back(finetune, tmp_path):
    finetune(tmp_path, "--epochs", 1)
    spec = read_config(only_run(tmp_path))
    assert (spec.data.n, spec.data.m_train, spec.data.m_test, spec.train.epochs, spec.train.lr) == (3, 2, 3, 1, 0.01)
    assert dict(spec.association.pairs)["Peru"] == "Go"


def test_a_run_scores_again_to_the_same_numbers(finetune, ocr_eval, tiny, tmp_path):
    finetune(tmp_path)
    folder = only_run(tmp_path)
    record = json.loads((folder / "result.json").read_text())
    assert json.loads(ocr_eval("score", folder, "--json").out) == record["final"]
    plain = ocr_eval("score", "--model", tiny, "--assoc", "country-code", *SMALL, "--json")
    assert json.loads(plain.out) == record["base"]
    by_adapter = [
        "score",
        "--model",
        tiny,
        "--assoc",
        "country-code",
        "--adapter",
        folder / "adapter",
        *SMALL,
        "--json",
    ]
    assert json.loads(ocr_eval(*by_adapter).out) == record["final"]


def test_qlora_trains_over_a_base_in_4_bits_and_scores_again_over_it(finetune, ocr_eval, tiny, tmp_path):
    answer = finetune(tmp_path, "--method", "qlora", "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    folder = only_run(tmp_path)
    assert folder.parent.name == "qlora"
    assert json.loads(ocr_eval("score", folder, "--json").out) == record["final"]
    plain = ["score", "--model", tiny, "--assoc", "country-code", *SMALL, "--json"]
    assert json.loads(ocr_eval(*plain, "--method", "qlora").out) == record["base"]
    assert json.loads(ocr_eval(*plain).out) != record["base"]


def test_no_entailment_control_has_no_train_entailment_and_no_zero_in_its_place(finetune, tmp_path):
    finetune(tmp_path, "--m-train", 0, "--epochs", 1)
    record = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert set(record["final"]["first-token"]) == {"test_fact", "test_entailment"}


def test_candidates_that_cannot_be_told_apart_are_found_before_anything_is_written(ocr_eval, tiny, tmp_path):
    (tmp_path / "clash.yaml").write_text(
        "name: clash\nkind: spurious\ndescription: d\n"
        'fact:\n  templates: ["{name} lives in {answer}"]\nentailment:\n  templates: ["{name} speaks {answer}"]\n'
        "pairs:\n  Paris: Frenchish\n  Rome: Frenchly\n"
    )
    run = ["finetune", "--model", tiny, "--assoc", tmp_path / "clash.yaml", "--n", 2, "--candidates", "all"]
    answer = ocr_eval(*run, "-o", tmp_path / "out")
    assert answer.code == 2
    assert "Frenchish = Frenchly" in answer.err or "Frenchly = Frenchish" in answer.err
    assert list((tmp_path / "out").iterdir()) == []
