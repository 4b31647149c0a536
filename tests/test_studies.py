"""Controls, the sample-efficiency curve and the audit, through the command line on tiny models."""

import json
import re

import pytest
from conftest import content, load
from made_records import answers, record

from ocr_eval.analysis.controls import compare_conditions, verdict
from ocr_eval.data.candidate_tokens import audit_association
from ocr_eval.execution import live_run, run_pack
from ocr_eval.planning import packs as planned_packs
from ocr_eval.records.folder import RunFolder
from ocr_eval.specs.association import load_association
from ocr_eval.specs.run import SCORINGS, DataSpec

SMALL = ["--n", 3, "--m-test", 3, "--quiet"]


@pytest.fixture
def study(ocr_eval, tiny, tmp_path):
    def call(command, *more):
        flags = ["--model", tiny, "--assoc", "country-code", "-o", tmp_path, *SMALL]
        return ocr_eval(command, *flags, "--seed" if command == "finetune" else "--seeds", 0, *more)

    return call


def test_controls_run_all_conditions_on_the_same_test_subjects(study, tmp_path):
    answer = study("controls", "--m-train", 2, "--seeds", "0-1", "--json")
    assert answer.code == 0, answer.err
    conditions = {c["condition"]: c for c in json.loads(answer.out)["conditions"]}
    assert list(conditions) == ["real", "base", "no-entailment", "shuffled"]
    assert conditions["real"]["against"] is None
    for name in ("base", "no-entailment", "shuffled"):
        against = conditions[name]["against"]
        assert (against["subjects"], against["seeds"]) == (18, 2)
        expected = conditions["real"]["score"]["value"] - conditions[name]["score"]["value"]
        assert against["value"]["value"] == pytest.approx(expected)
        assert 0 < conditions[name]["p"] <= 1
    assert len(list(tmp_path.glob("runs/*/*/*/*/status.json"))) == 6


def test_controls_in_words(study):
    lines = study("controls", "--m-train", 2, "--epochs", 1).out.strip().splitlines()
    assert lines[0].split()[:3] == ["condition", "mean", "rank"]
    assert lines[-1].startswith("No finding")


@pytest.mark.parametrize(
    ("seeds", "ranks", "learned", "says"),
    [
        (6, {}, {}, "The finding stands: OCR score +0.90"),
        (
            6,
            {"shuffled": 0.2},
            {},
            "The finding does not stand: OCR score +0.90 (p 0.0005) is not clearly above shuffled",
        ),
        (6, {"real": 2.0}, {}, "The finding does not stand: OCR score +0.00"),
        (6, {}, {"shuffled": False}, "No verdict: shuffled did not learn the facts"),
        (6, {}, {"real": False}, "No finding"),
        (3, {}, {}, "Inferred: OCR score +0.90 (p 0.0005), +0.50 or more from each control. 3 seeds are too few"),
        (1, {}, {}, "No verdict from one seed: OCR score +0.90, +0.50 or more from each control."),
        (1, {"real": 2.0}, {}, "No verdict from one seed: OCR score +0.00, -0.40 or more from each control."),
    ],
)
def test_the_verdict_over_controls(seeds, ranks, learned, says):
    ranks = {"real": 0.2, "no-entailment": 1.2, "shuffled": 1.4, **ranks}
    base = [dict.fromkeys(SCORINGS, answers(2.0, 2.0, seed=seed)) for seed in range(seeds)]
    runs = [
        record(
            rank=rank, seed=seed, data=DataSpec(variant=name), learned=learned.get(name, True), base_held_out=base[seed]
        )
        for name, rank in ranks.items()
        for seed in range(seeds)
    ]
    assert verdict(compare_conditions(runs, "first-token")).startswith(says)


def test_trainings_of_one_data_set_count_as_one_seed():
    """Ranks 0.5 and 1.5 of two trainings of seed 0, and 0 of seed 1: 1 and 0."""
    runs = [
        record(rank=rank, seed=seed, train_seed=train, data=DataSpec(variant=name), base_held_out=base)
        for name in ("real", "no-entailment", "shuffled")
        for rank, seed, train in ((0.5, 0, 0), (1.5, 0, 1), (0.0, 1, 1))
        for base in [dict.fromkeys(SCORINGS, answers(2.0, 2.0, seed=seed))]
    ]
    real, *_ = compare_conditions(runs, "first-token")
    assert (real.mean_rank, real.null_rank) == pytest.approx((0.5, 2.0))
    assert real.score.value == pytest.approx(1 - 0.5 / 2.0)


def test_too_few_groups_give_no_verdict_over_controls():
    """Two groups in four seeds can be exchanged in 16 ways, so no data could have a p below 1/16."""

    def held(rank, seed):
        return dict.fromkeys(SCORINGS, answers(rank, 2.0, n=2, seed=seed))

    runs = [
        record(seed=seed, data=DataSpec(n=2, variant=name), held_out=held(rank, seed), base_held_out=held(2.0, seed))
        for name, rank in (("real", 0.2), ("no-entailment", 1.2), ("shuffled", 1.2))
        for seed in range(4)
    ]
    said = verdict(compare_conditions(runs, "first-token"))
    assert said.startswith("No verdict: OCR score +0.9")
    assert said.endswith("(p 0.062), and so few groups cannot give p <= 0.05. Raise --n or add seeds.")


def test_controls_reuse_runs_that_are_done(study, tmp_path):
    study("controls", "--m-train", 2, "--epochs", 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*/*/result.json")}
    study("controls", "--m-train", 2, "--epochs", 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*/*/result.json")} == before


def records(output):
    """What every run below a folder states, by its place there."""
    runs = [RunFolder(path.parent) for path in output.glob("runs/*/*/*/*/status.json")]
    return {run.identity: content(run) for run in runs}


@pytest.mark.parametrize("means", [["--workers", 2], ["--executor", "local", "--devices", "cpu,cpu"]])
def test_a_study_in_several_processes_leaves_what_one_process_leaves(ocr_eval, tiny, tmp_path, means):
    flags = [
        "controls",
        "country-code",
        "--model",
        tiny,
        "--n",
        3,
        "--m-train",
        2,
        "--m-test",
        3,
        "--batch-size",
        128,
        "--seeds",
        0,
    ]
    one = ocr_eval(*flags, "--workers", 1, "-o", tmp_path / "one")
    several = ocr_eval(*flags, *means, "--score-at", "last", "-o", tmp_path / "several")
    assert (one.code, several.code) == (0, 0), several.err
    assert "3 runs in 3 packs, 3 to do in " in several.err
    assert "pack 3/3 epoch 3/3" in several.err
    assert several.out == one.out
    scored = [
        [line["epoch"] for line in run["metrics"] if "held_out" in line]
        for run in records(tmp_path / "several").values()
    ]
    assert scored == [[0, 3]] * 3


@pytest.fixture
def interrupted(study, tmp_path, monkeypatch):
    """Controls of two seeds that Ctrl-C stopped in the third epoch, all in one pack."""
    monkeypatch.setattr(run_pack, "CHECKPOINT_EVERY", 0.0)
    add = RunFolder.add_metrics

    def stop(folder, line):
        if line.epoch == 3:
            raise KeyboardInterrupt
        add(folder, line)

    command = ["controls", "--m-train", 2, "--seeds", "0-1", "--epochs", 4, "--workers", 1]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add_metrics", stop)
        assert study(*command).code == 130
    monkeypatch.setattr(planned_packs, "room", lambda device: 1)  # cut now, each run would be a pack
    (state,) = (tmp_path / "studies").iterdir()
    packs = json.loads(state.read_text())["packs"]
    assert [len(pack) for pack in packs] == [6]
    return command, state, packs[0]


def test_an_interrupted_study_resumes_in_its_packs(interrupted, study, ocr_eval, tiny, tmp_path, monkeypatch):
    command, state, pack = interrupted
    before = state.read_text()
    assert "6 interrupted" in ocr_eval("status", tmp_path).out
    assert live_run.common_epoch([RunFolder(tmp_path / "runs" / run) for run in pack], [4] * 6) >= 1
    assert study(*command).code == 0
    assert state.read_text() == before
    finished = records(tmp_path)
    monkeypatch.setattr(planned_packs, "room", lambda device: 10**12)
    assert ocr_eval(*command, "--model", tiny, "--assoc", "country-code", "-o", tmp_path / "whole", *SMALL).code == 0
    assert finished == records(tmp_path / "whole")


def test_a_run_of_a_study_that_failed_holds_up_no_other(interrupted, study, ocr_eval, tmp_path):
    command, _, pack = interrupted
    failed, *others = (RunFolder(tmp_path / "runs" / run) for run in pack)
    failed.fail("The loss became nan in epoch 3.")
    first_losses = [folder.metrics()[1].train_loss for folder in others]
    first_seconds = [folder.metrics()[1].train_seconds for folder in others]
    answer = study(*command, "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "The loss became nan in epoch 3." in answer.err
    assert all(folder.is_done() for folder in others)
    assert [folder.metrics()[1].train_loss for folder in others] == first_losses
    assert [folder.metrics()[1].train_seconds for folder in others] == first_seconds, "epoch 1 was not done again"
    assert study(*command).code == 1
    assert not failed.is_done()
    assert study(*command, "--force").code == 0


def test_studies_sweeps_and_single_runs_share_a_folder(study, ocr_eval, tiny, tmp_path):
    runs = ["--epochs", 1, "--m-train"]
    assert study("finetune", *runs, 2).code == 0
    shared = ["--model", tiny, "--assoc", "country-code", "-o", tmp_path, "--n", 3, "--m-test", 3]
    assert "3 runs in 1 pack, 2 to do" in ocr_eval("controls", *shared, "--seeds", 0, *runs, 2).err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(before) == 3
    assert "3 runs in 1 pack, 2 to do" in ocr_eval("curve", *shared, "--seeds", 0, *runs, "0-2").err
    swept = ["--models", tiny, "--assocs", "country-code", "--seeds", 0, *shared[4:], *runs, "1-2"]
    assert "2 runs in 1 pack, 0 to do" in ocr_eval("sweep", *swept).err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.rglob("result.json"))) == 5
    states = json.loads(ocr_eval("status", tmp_path, "--json").out)
    assert {state["state"] for state in states} == {"done"}
    studies = [state["study"] for state in states]
    assert [name.rpartition("-")[0] for name in dict.fromkeys(studies)] == [
        "",
        "controls-country-code",
        "curve-country-code",
    ]
    assert [studies.count(name) for name in dict.fromkeys(studies)] == [2, 3, 3]
    text = ocr_eval("status", tmp_path).out
    assert all(f"\n{name}\n" in text for name in studies if name)
    assert text.count("runs: ") == 3


def test_measures_of_a_study_are_taken(study, tmp_path):
    assert study("controls", "--m-train", 2, "--epochs", 1, "--measures", "none").code == 0
    assert [run["record"]["measures"] for run in records(tmp_path).values()] == [{}] * 3
    answer = study("controls", "--m-train", 2, "--epochs", 1, "--measures", "no-such")
    assert answer.code == 2
    assert "no-such" in answer.err


@pytest.mark.parametrize(
    ("command", "runs"), [(["controls", "--seeds", "0-1"], 6), (["curve", "--m-train", "0,2", "--seeds", "0-1"], 4)]
)
def test_a_study_is_planned_before_it_is_run(study, tmp_path, command, runs):
    answer = study(*command, "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.out.count("tiny-llama country-code seed") == runs
    assert "GB" in answer.out
    assert "time: about" in answer.out
    assert "comparing: no verdict from 2 seeds; a comparison of OCR scores takes 6" in answer.out
    assert (
        "6 seeds show a difference in OCR score of 0.38 or more (80 % power, sd of a run 0.15)"
        in study(*command[:-1], "0-5", "--dry-run").out
    )
    assert list(tmp_path.iterdir()) == []
    assert study(*command, "--dry-run", "--json").code == 2
    assert study(*command, "--epochs", 1).code == 0
    assert study(*command, "--epochs", 1, "--dry-run").out.count(" done\n") == runs


def test_a_plan_of_several_comparisons_says_what_they_take(ocr_eval, tiny, tmp_path):
    def planned(seeds):
        flags = [
            "--assocs",
            "country-code,sport-music",
            "--variants",
            "real,shuffled",
            "--m-train",
            2,
            "--seeds",
            seeds,
        ]
        return ocr_eval("sweep", "--models", tiny, *SMALL, *flags, "-o", tmp_path, "--dry-run").out

    assert "comparing: no verdict from 6 seeds; 2 comparisons of OCR scores take 7 or more\n" in planned("0-5")
    assert "7 seeds show a difference in OCR score of 0.39 or more in each of 2 comparisons (80 %" in planned("0-6")


def test_controls_need_something_to_shuffle(study):
    answer = study("controls", "--m-train", 0)
    assert answer.code == 2
    assert "m_train = 0 has none" in answer.err


def test_the_curve_has_a_point_for_each_m_train(study):
    answer = study("curve", "--m-train", "0-1,3", "--epochs", 1, "--json")
    assert answer.code == 0, answer.err
    points = json.loads(answer.out)["points"]
    assert all(p["ocr_score"]["low"] is None for p in points), "one seed has no interval"
    assert [p["m_train"] for p in points] == [0, 1, 3]
    assert [p["sqrt_m_train_over_m_test"] for p in points] == pytest.approx([0, (1 / 3) ** 0.5, 1])
    words = study("curve", "--m-train", "0-1,3", "--epochs", 1).out
    assert "min(1, sqrt(m_train/m_test))" in words
    assert words.splitlines()[-1].startswith("One seed has no interval")


def test_a_curve_over_seeds_says_nothing_of_one_seed(study):
    assert "One seed" not in study("curve", "--m-train", 1, "--seeds", "0-1", "--epochs", 1).out


@pytest.mark.parametrize("text", [",", "one", "3-1", "1,,2", "0-"])
def test_a_range_that_is_none_is_an_error(study, text):
    answer = study("curve", "--m-train", text)
    assert answer.code == 2
    assert f"'--m-train': '{text}'" in answer.err


def test_audit_of_a_tokenizer_says_what_it_does(ocr_eval, model_files):
    answer = ocr_eval(
        "data",
        "candidates",
        "--assoc",
        "country-code",
        "--model",
        model_files["llama"],
        "--model",
        model_files["qwen2"],
        "--json",
    )
    assert answer.code == 0
    llama, qwen2 = json.loads(answer.out).values()
    assert (llama["bos"], qwen2["bos"]) == ("<bos>", None)
    entailments = [each for each in llama["prompts"] if each["quantity"] == "test_entailment"]
    assert len(entailments) == 4
    assert "TypeScript" in entailments[0]["multi_token"]
    assert "".join(entailments[0]["pieces"]["TypeScript"]) == "ĠTypeScript"


def test_audit_names_clashes_and_exits_1(ocr_eval, model_files, tmp_path):
    path = tmp_path / "clash.yaml"
    path.write_text(
        "name: clash\nkind: spurious\ndescription: d\n"
        'fact:\n  templates: ["{name} lives in {answer}"]\nentailment:\n  templates: ["{name} speaks {answer}"]\n'
        "pairs:\n  Paris: Frenchish\n  Rome: Frenchly\n"
    )
    answer = ocr_eval("data", "candidates", "--assoc", path, "--model", model_files["llama"])
    assert answer.code == 1
    assert "CANNOT be scored first-token" in answer.out
    assert re.search("same first token: (Frenchish = Frenchly|Frenchly = Frenchish)", answer.out)


def test_answers_of_a_table_may_begin_alike(ocr_eval, model_files, tmp_path):
    (tmp_path / "t.csv").write_text("name,p,q\nA,x,Frenchish\nB,x,Frenchish\nC,y,Frenchly\nD,y,Frenchly\nE,y,\n")
    (tmp_path / "t.yaml").write_text("structure: facts\nname: t\nkind: spurious\ndescription: d\ntable: t.csv\n")
    answer = ocr_eval("data", "candidates", tmp_path / "t.yaml", "--model", model_files["llama"])
    assert answer.code == 0
    assert "t on" in answer.out
    assert "answers that begin alike are scored over all their tokens" in answer.out


def test_audit_sees_generic_first_pieces(model_files):
    tokenizer = load(model_files["llama"]).tokenizer
    association = load_association("city-language")
    odd = association.model_copy(update={"pairs": (("Tokyo", "Zzyzx"), ("Paris", "French"))})
    assert audit_association(tokenizer, odd).prompts[-1].generic == ("Zzyzx",)


def test_audit_without_a_tokenizer(ocr_eval, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = ocr_eval("data", "candidates", "--assoc", "country-code", "--model", tmp_path / "empty")
    assert answer.code == 2
    assert "no tokenizer" in answer.err
