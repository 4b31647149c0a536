"""Sweeps through the command line: the grid, sharing, and that nothing is lost."""

import json
import re

import pytest
from conftest import runs_in, tiny_run

from ocr_eval.planning.packs import cut
from ocr_eval.records.folder import RunFolder


def test_a_sweep_does_every_run_and_prints_the_table(sweep, tmp_path):
    answer = sweep(tmp_path)
    assert answer.code == 0, answer.err
    assert len(runs_in(tmp_path)) == 4
    assert re.search(r"\| tiny-llama +\| LoRA +\| +2 \|", answer.out)
    assert "4 runs in 1 pack, 4 to do" in answer.err
    assert "pack 1/1 epoch 3/3" in answer.err
    again = sweep(tmp_path)
    assert again.code == 0
    assert "0 to do" in again.err
    assert again.out == answer.out


def test_a_swept_run_is_the_run_alone(sweep, ocr_eval, tiny, tmp_path):
    sweep(tmp_path / "sweep", "--quiet")
    data = ["--n", 3, "--m-train", 2, "--m-test", 3, "--quiet"]
    assert (
        ocr_eval(
            "finetune", "--model", tiny, "--assoc", "country-code", "--seed", 1, *data, "-o", tmp_path / "solo"
        ).code
        == 0
    )
    (solo,) = (path.parent for path in (tmp_path / "solo").glob("**/result.json"))
    packed = RunFolder(tmp_path / "sweep" / solo.relative_to(tmp_path / "solo"))
    losses = [[line.train_loss for line in folder.metrics()][1:] for folder in (RunFolder(solo), packed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_every_axis_multiplies_the_runs(ocr_eval, tiny, tmp_path):
    axes = ["--lr", "1e-3,1e-2", "--rank", "2,4", "--m-train", "2-3", "--variants", "real,shuffled", "--epochs", "1,2"]
    answer = ocr_eval("sweep", "--models", tiny, "--n", 3, "--m-test", 3, "--dry-run", "-o", tmp_path, *axes)
    assert answer.code == 0, answer.err
    assert sum(" seed " in line for line in answer.out.splitlines()) == 5 * 3 * 2**5
    assert list(tmp_path.iterdir()) == []


def test_without_flags_the_sweep_of_the_folder_goes_on(sweep, ocr_eval, tmp_path):
    sweep(tmp_path, "--quiet")
    victim = next(tmp_path.glob("**/status.json"))
    victim.unlink()
    answer = ocr_eval("sweep", "-o", tmp_path)
    assert answer.code == 0, answer.err
    assert "1 to do" in answer.err
    assert victim.is_file()


def test_a_sweep_file_gives_the_flags(ocr_eval, tiny, tmp_path):
    (tmp_path / "s.yaml").write_text(
        f"models: [{tiny}]\nassocs: [sport-music]\nseeds: 3\nlr: [1e-3, 1e-2]\nn: 3\nm-test: 2\n"
    )
    answer = ocr_eval("sweep", "-C", tmp_path / "s.yaml", "--m-train", 2, "-o", tmp_path / "out", "--quiet")
    assert answer.code == 0, answer.err
    grid = json.loads((tmp_path / "out/sweep.json").read_text())["grid"]
    assert (grid["assocs"], grid["seeds"], grid["lr"], grid["m_train"]) == (["sport-music"], [3], [1e-3, 1e-2], [2])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--assocs", ""], "--assocs is empty"),
        (["--assocs", "city-language,"], "has an empty entry"),
        (["--seeds", "1,x"], "'--seeds': '1,x'"),
        (["--lr", "fast"], "'--lr': 'fast'"),
        (["--rank", "2.5"], "'--rank': '2.5'"),
        (["--lr", "1e-3,1e-3"], "0.001 is named twice"),
        (["--assocs", "city-languag"], "Did you mean 'city-language'?"),
        (["--methods", "lorra"], "method"),
        (["--methods", "lora,full", "--rank", "4,8"], "--rank: method 'full' does not use it"),
        (["--m-train", "0", "--variants", "shuffled"], "m_train = 0 has none"),
        (["--m-train", "0", "--variants", "real,no-entailment"], "m_train = 0 has none"),
        (["--m-train", "1", "--variants", "shuffled"], "which is a consistent link; use 2 or more"),
        (["--n", "5,11"], "ten candidates cannot hold 11 answers in use"),
        (["--n", "19,21", "--candidates", "all"], "n = 21 is more than the 20 pairs"),
        (["--seeds", "0-"], "'--seeds': '0-'"),
        (["--seeds", "2-0"], "ends before it begins"),
        (["--seeds", "0-2,1"], "1 is named twice"),
        (["--seeds", "0-999999999"], "More than 10,000"),
        (["--executor", "local", "--devices", "cpux"], "Did you mean 'cpu'?"),
        (["--executor", "local", "--devices", "cpu,99"], "Unknown device '99'"),
        (["--partition", "gpu"], "--partition needs --executor slurm"),
        (["--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["--executor", "slrum"], "Did you mean 'slurm'?"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(sweep, tmp_path, monkeypatch, flags, complaint):
    monkeypatch.setenv("PATH", "")
    for how in ([], ["--dry-run"]):
        answer = sweep(tmp_path / "out", *flags, *how)
        assert answer.code == 2
        assert complaint in answer.err
        assert len(answer.err.strip().splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


def test_a_sweep_for_a_cluster_is_planned_without_it_and_not_begun(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    answer = sweep(tmp_path, "--executor", "slurm")
    assert answer.code == 2
    assert "there is no 'sbatch' on PATH" in answer.err
    assert sweep(tmp_path, "--executor", "slurm", "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_no_path_also_where_a_folder_is_called_so(ocr_eval, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "city-language"):
        (tmp_path / name).mkdir()
    answer = ocr_eval("sweep", "--models", f"smollm2-135m,{tiny}", "--assocs", "city-language", "--dry-run")
    assert answer.code == 0, answer.err
    assert "models: [smollm2-135m, " in answer.out
    assert "assocs: [city-language]" in answer.out


def test_a_worker_asks_for_a_pack_that_is_there(sweep, tmp_path):
    sweep(tmp_path, "--epochs", 1, "--quiet")
    for number in (-1, 2):
        answer = sweep(tmp_path, "--worker", number)
        assert answer.code == 2
        assert f"--worker {number}: this sweep has packs 1 to 1" in answer.err
    for flags, complaint in (
        (["--worker", 1, "--dry-run"], "--dry-run cannot be combined with --worker"),
        (["--worker", 1, "--study", "controls-city"], "no sweep to work on"),
        (["--study", "controls-city"], "--study needs --worker"),
    ):
        answer = sweep(tmp_path, *flags)
        assert answer.code == 2
        assert complaint in answer.err


def test_nobody_takes_part_where_no_sweep_is(sweep, tmp_path):
    answer = sweep(tmp_path / "out", "--worker", 9)
    assert answer.code == 2
    assert "no sweep to work on" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_plan_shows_the_packs_that_the_folder_holds(sweep, tmp_path):
    assert sweep(tmp_path, "--epochs", 1).code == 0
    held = json.loads((tmp_path / "sweep.json").read_text())
    held["packs"] = [[run] for pack in held["packs"] for run in pack]
    (tmp_path / "sweep.json").write_text(json.dumps(held))
    answer = sweep(tmp_path, "--epochs", 1, "--dry-run")
    assert answer.code == 0
    assert "pack 4/4: 1 runs, 1 done" in answer.out


def test_runs_of_a_pack_have_batches_of_about_one_size(tiny):
    """In whatever order they are named."""
    specs = [tiny_run(tiny, seed=seed, batch_size=size) for seed in (0, 1) for size in (64, 8)]
    packs = [[(spec.train.batch_size, spec.seed) for spec in pack] for pack in cut(specs, "cpu", 2)]
    assert packs == [[(8, 0), (8, 1)], [(64, 0), (64, 1)]]


def test_an_unknown_key_in_a_sweep_file_is_named(ocr_eval, tmp_path):
    (tmp_path / "s.yaml").write_text("assoc: [city-language]\n")
    answer = ocr_eval("sweep", "-C", tmp_path / "s.yaml", "-o", tmp_path / "out")
    assert answer.code == 2
    assert "'assoc'" in answer.err
    assert "Did you mean 'assocs'?" in answer.err


def test_a_folder_that_holds_another_sweep_is_refused(sweep, tmp_path):
    sweep(tmp_path, "--quiet", "--epochs", 1)
    answer = sweep(tmp_path, "--epochs", 2)
    assert answer.code == 2
    assert "holds another sweep (epochs (1,) there, (2,) here)" in answer.err


def test_data_that_a_tokenizer_cannot_do_with_is_found_before_any_run(sweep, tmp_path):
    (tmp_path / "clash.yaml").write_text(
        "name: clash\nkind: spurious\ndescription: d\n"
        'fact:\n  templates: ["{name} lives in {answer}"]\nentailment:\n  templates: ["{name} speaks {answer}"]\n'
        "pairs:\n  Paris: Frenchish\n  Rome: Frenchly\n  Oslo: Danish\n"
    )
    assocs = f"city-language,{tmp_path / 'clash.yaml'}"
    answer = sweep(tmp_path / "out", "--assocs", assocs, "--candidates", "all")
    assert answer.code == 2
    assert "begin with the same token" in answer.err
    assert not list((tmp_path / "out").rglob("*.json"))


def test_status_says_how_far_every_run_is(sweep, ocr_eval, tmp_path):
    assert ocr_eval("status", tmp_path).code == 2
    sweep(tmp_path, "--quiet")
    done, failed, stopped, waiting = (RunFolder(tmp_path / "runs" / run) for run in runs_in(tmp_path))
    for folder in (failed, stopped):
        (folder.path / "status.json").unlink()
    failed.fail("The loss became nan in epoch 2.")
    waiting.clear()
    answer = ocr_eval("status", tmp_path, "--json")
    assert answer.code == 0
    states = json.loads(answer.out)
    assert [state["state"] for state in states] == ["done", "failed", "interrupted", "waiting"]
    assert states[0]["epoch"] == 3
    assert states[0]["train_loss"] == pytest.approx(done.record().train_loss)
    assert states[3]["epoch"] is states[3]["ocr_score"] is None
    with stopped.lock():
        assert "3  " in ocr_eval("status", tmp_path).out
        assert [s["state"] for s in json.loads(ocr_eval("status", tmp_path, "--json").out)][2] == "running"
    assert "4 runs: 1 done, 1 failed, 1 interrupted, 1 waiting" in ocr_eval("status", tmp_path).out


def test_where_no_sweep_is_status_says_where_one_is_or_what_there_is_instead(ocr_eval, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "m/a/lora/seed0-01234567"
    state = {"schema_version": 1, "code": "", "packs": [[run]]}
    for folder in ("results/mine/studies", f"results/mine/runs/{run}", f"single/runs/{run}", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "results/mine/studies/controls.json").write_text(json.dumps(state))
    mine = "but there is a sweep in 'results/mine'. Run: ocr-eval status results/mine"
    for folder, said in {
        None: f"There is no folder 'results/sweep', {mine}",
        "results": f"'results' contains no sweep or study, {mine}",
        "results/mine/runs": f"'results/mine/runs' contains no sweep or study, {mine}",
        f"results/mine/runs/{run}": f"'results/mine/runs/{run}' contains no sweep or study, {mine}",
        "single": "'single' contains single runs; to see their results: ocr-eval table single",
        "empty": "'empty' contains no sweep or study. Name a sweep's folder, or start one: ocr-eval sweep -o empty",
    }.items():
        answer = ocr_eval("status", *filter(None, [folder]))
        assert (answer.code, answer.out) == (2, "")
        assert said in answer.err
        assert answer.err.count("\n") == 1
    assert ocr_eval("status", "results/mine").code == 0


def test_packs_as_jobs_of_this_machine_leave_what_one_process_leaves(sweep, tmp_path):
    assert sweep(tmp_path / "here", "--quiet", "--batch-size", 64).code == 0
    answer = sweep(
        tmp_path / "local",
        "--batch-size",
        64,
        "--executor",
        "local",
        "--devices",
        "cpu,cpu",
        "--report-to",
        "tensorboard",
    )
    assert answer.code == 0, answer.err
    assert "4 to do in 2 jobs" in answer.err
    # a thread a process, as here: the last bits of fp32 products depend on it
    assert runs_in(tmp_path / "local") == runs_in(tmp_path / "here")
    assert len(list((tmp_path / "local/logs").glob("pack*.log"))) == 2
    assert len(list((tmp_path / "local/tensorboard").rglob("events*"))) == 4
    assert "tensorboard --logdir" in answer.err
