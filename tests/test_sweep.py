"""Sweeps through the command line: the grid, sharing, and that nothing is lost."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import content, tiny_run

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.execution import run_pack
from ocr_eval.execution.execute import Bases
from ocr_eval.execution.sweep import plan_sweep
from ocr_eval.planning import packs
from ocr_eval.planning.packs import cut
from ocr_eval.records.folder import RunFolder
from ocr_eval.specs import strict
from ocr_eval.specs.grid import Grid

GRID = ["--assocs", "city-language,country-code", "--seeds", "0-1", "--n", 3, "--m-train", 2, "--m-test", 3]


@pytest.fixture
def sweep(ocr_eval, tiny):
    def call(output: Path, *more: object):
        return ocr_eval("sweep", "--models", tiny, *GRID, "-o", output, *more)

    return call


def runs_in(output: Path) -> dict[str, dict[str, object]]:
    """What every run of a sweep states, by its place."""
    packs = json.loads((output / "sweep.json").read_text())["packs"]
    return {run: content(RunFolder(output / "runs" / run)) for pack in packs for run in pack}


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
        answer = sweep(tmp_path, *flags, *how)
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


def test_no_folder_is_made_for_a_grid_that_cannot_be(sweep, tmp_path):
    assert sweep(tmp_path / "out", "--assocs", "city-languag").code == 2
    assert not (tmp_path / "out").exists()


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


def test_a_failed_run_is_named_and_not_tried_again_but_the_rest_is(sweep, tmp_path):
    sweep(tmp_path, "--quiet")
    first, second = (RunFolder(tmp_path / "runs" / run) for run in list(runs_in(tmp_path))[:2])
    for folder in (first, second):
        (folder.path / "status.json").unlink()
    first.fail("The loss became nan in epoch 2.")
    answer = sweep(tmp_path)
    assert answer.code == 1
    assert "1 to do" in answer.err
    assert "The loss became nan in epoch 2." in answer.err
    assert second.is_done()
    assert sweep(tmp_path, "--force", "--quiet").code == 0


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


def test_a_job_that_fails_is_named_with_its_last_words(sweep, tmp_path):
    sweep(tmp_path, "--quiet")
    victim = next(tmp_path.glob("**/status.json"))
    victim.unlink()
    (victim.parent / "result.json").unlink()
    RunFolder(victim.parent).write_checkpoint(1, lambda file: file.write(b"no checkpoint") and None)
    answer = sweep(tmp_path, "--executor", "local", "--devices", "cpu", "--quiet")
    assert answer.code == 1
    assert "checkpoint-1.pt cannot be used" in answer.err
    assert "log: " in answer.err


def test_a_full_disk_is_one_line_and_the_sweep_goes_on_later(sweep, tmp_path, monkeypatch):
    from ocr_eval.records import folder

    write = folder.write_atomic

    def full(path, data):
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(folder, "write_atomic", full)
    answer = sweep(tmp_path, "--quiet")
    assert answer.code == 1
    assert answer.err.strip().startswith("ocr-eval: The disk is full.")
    monkeypatch.setattr(folder, "write_atomic", write)
    assert sweep(tmp_path, "--quiet").code == 0
    assert len(runs_in(tmp_path)) == 4


# A process that has everything imported and forks the sweeps that are to be killed: starting one afresh takes seconds.
KILLER = """
import os, random, signal, sys, time
import ocr_eval.execution.run_pack
import ocr_eval.execution.execute
import ocr_eval.execution.sweep
import ocr_eval.analysis.table
import ocr_eval.execution.progress
from ocr_eval.cli.app import run
ocr_eval.execution.run_pack.CHECKPOINT_EVERY = 0.0
kills, arguments, moments = int(sys.argv[1]), sys.argv[2:], random.Random(0)
for attempt in range(kills + 1):
    child = os.fork()
    if not child:
        os._exit(run(arguments))
    if attempt < kills:
        time.sleep(moments.uniform(0.05, 0.9))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print('exit', os.waitstatus_to_exitcode(status), flush=True)
"""

SHARE = """
import os, sys
import ocr_eval.execution.run_pack
import ocr_eval.execution.execute
import ocr_eval.execution.sweep
import ocr_eval.analysis.table
import ocr_eval.execution.progress
from ocr_eval.cli.app import run
children = []
for i in range(2):
    child = os.fork()
    if not child:
        os._exit(run(sys.argv[1:]))
    children.append(child)
for child in children:
    print('exit', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def in_one_process(script: str, *arguments: object) -> list[int]:
    """Run a script with everything imported once; the exit codes of the sweeps that it forked."""
    command = [sys.executable, "-c", script, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(code) for code in re.findall(r"^exit (-?\d+)$", done.stdout, re.MULTILINE)]


def test_killed_at_20_random_moments_it_ends_as_if_undisturbed(tiny, tmp_path):
    flags = ["--models", tiny, *GRID, "--epochs", "2,5", "--batch-size", 16]
    assert in_one_process(KILLER, 0, "sweep", *flags, "-o", tmp_path / "whole") == [0]
    killed = in_one_process(KILLER, 20, "sweep", *flags, "-o", tmp_path / "killed")
    assert killed[-1] == 0
    assert killed.count(-9) >= 5
    assert runs_in(tmp_path / "killed") == runs_in(tmp_path / "whole")
    left = [
        path.name for path in (tmp_path / "killed").rglob("*") if ".partial" in path.name or "checkpoint" in path.name
    ]
    assert left == []


def test_two_processes_on_one_folder_share_the_work(tiny, tmp_path):
    flags = ["--models", tiny, *GRID, "--batch-size", 64, "--lr", "1e-3,1e-2"]
    assert in_one_process(KILLER, 0, "sweep", *flags, "-o", tmp_path / "one") == [0]
    assert in_one_process(SHARE, "sweep", *flags, "-o", tmp_path / "two") == [0, 0]
    assert runs_in(tmp_path / "two") == runs_in(tmp_path / "one")


def test_force_removes_all_runs_or_none(sweep, tmp_path):
    assert sweep(tmp_path, "--epochs", 1, "--quiet").code == 0
    before = runs_in(tmp_path)
    last = RunFolder(tmp_path / "runs" / sorted(before)[-1])
    with last.lock():
        answer = sweep(tmp_path, "--epochs", 1, "--force")
    assert answer.code == 2
    assert "Another process is working on" in answer.err
    assert runs_in(tmp_path) == before


def test_who_takes_part_does_the_runs_that_were_stated_or_none(sweep, tmp_path, monkeypatch):
    assert sweep(tmp_path, "--epochs", 1, "--quiet").code == 0
    there = sorted(tmp_path.glob("runs/*/*/*/*"))
    monkeypatch.setattr(strict, "RESULTS_VERSION", strict.RESULTS_VERSION + 1)
    answer = sweep(tmp_path, "--epochs", 1, "--worker", 1)
    assert answer.code == 2
    assert "The results version or the weights have changed" in answer.err
    assert sorted(tmp_path.glob("runs/*/*/*/*")) == there
    answer = sweep(tmp_path, "--epochs", 1)
    assert answer.code == 0
    assert "4 runs in this folder came from another results version" in answer.err
    assert len(list(tmp_path.glob("runs/*/*/*/*"))) == 8


def test_a_sweep_that_an_older_version_stated_is_joined_and_goes_on(sweep, ocr_eval, tmp_path):
    """Its file says what its runs are by the grid alone."""
    assert sweep(tmp_path, "--epochs", 1, "--score-at", "every:2", "--quiet").code == 0
    state = json.loads((tmp_path / "sweep.json").read_text())
    specs, whole = state.pop("specs"), runs_in(tmp_path)
    state["grid"]["score_every"] = int(state["grid"].pop("score_at").removeprefix("every:"))
    state["dtypes"] = {state["grid"]["models"][0]: "float32"}
    state["packs"] = [[run] for pack in state["packs"] for run in pack]
    (tmp_path / "sweep.json").write_text(json.dumps(state))
    for run in whole:
        RunFolder(tmp_path / "runs" / run).clear()
    assert ocr_eval("sweep", "-o", tmp_path, "--worker", 1, "--quiet").code == 0
    answer = ocr_eval("sweep", "-o", tmp_path, "--workers", 1)
    assert answer.code == 0, answer.err
    assert "4 runs in 4 packs, 3 to do" in answer.err
    assert runs_in(tmp_path).keys() == whole.keys()
    again = json.loads((tmp_path / "sweep.json").read_text())
    assert again["packs"] == state["packs"]
    assert again["specs"] == specs
    assert again["grid"]["score_at"] == "every:2"
    assert sweep(tmp_path, "--epochs", 1, "--score-at", "last", "--quiet").code == 0  # says nothing of what runs are


def test_a_worker_does_what_was_stated_even_if_a_file_is_gone(ocr_eval, tiny, tmp_path):
    mine = tmp_path / "mine.yaml"
    text = (yaml_files.shipped("templates") / "country-code.yaml").read_text()
    mine.write_text(text.replace("name: country-code", "name: mine"))
    data = ["--seeds", 0, "--n", 3, "--m-train", 2, "--m-test", 3, "--epochs", 1]
    output = tmp_path / "out"
    assert ocr_eval("sweep", "--models", tiny, "--assocs", mine, *data, "-o", output, "--quiet").code == 0
    (run,), whole = runs_in(output), runs_in(output)
    RunFolder(output / "runs" / run).clear()
    mine.unlink()
    assert ocr_eval("sweep", "-o", output).code == 2
    answer = ocr_eval("sweep", "-o", output, "--worker", 1)
    assert answer.code == 0, answer.err
    assert runs_in(output) == whole


def test_two_that_begin_a_sweep_in_one_folder_agree(tiny, tmp_path):
    def planned(seeds, at_once):
        grid = Grid(models=(tiny,), assocs=("city-language",), seeds=seeds, n=(3,), m_train=(2,), m_test=3)
        return plan_sweep(grid.specs(), tmp_path, "cpu", Bases("cpu"), at_once, grid=grid)

    one, other, another = planned((0, 1), 1), planned((0, 1), 1), planned((0, 1, 2), 1)
    other = replace(other, packs=tuple((run,) for pack in other.packs for run in pack))
    stated = one.stated()
    taken = other.stated()
    assert [[run.folder for run in pack] for pack in taken.packs] == [
        [run.folder for run in pack] for pack in stated.packs
    ]
    with pytest.raises(UserError, match="holds another sweep"):
        another.stated()


def test_a_pack_that_cannot_go_on_does_not_stop_the_others(sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(packs.PASS_NODES, "cpu", 16)  # a pack a run
    monkeypatch.setattr(run_pack, "CHECKPOINT_EVERY", 0.0)
    sweep(tmp_path, "--quiet", "--workers", 1)
    victims = [RunFolder(tmp_path / "runs" / run) for run in sorted(runs_in(tmp_path))]
    for victim in victims[:2]:
        victim.clear()
    victims[0].write_checkpoint(1, lambda file: file.write(b"no checkpoint") and None)
    answer = sweep(tmp_path, "--workers", 1)
    assert answer.code == 1
    assert "cannot continue" in answer.err
    assert "1 runs are not finished" in answer.err
    assert [victim.is_done() for victim in victims] == [False, True, True, True]


@pytest.mark.parametrize(
    "packs",
    ["null", "[1]", '[["../../../x"]]', '[["m/a/lora/seed0"]]', '[["m/../lora/seed0-01234567"]]'],
)
def test_a_damaged_sweep_file_is_one_line(sweep, ocr_eval, tmp_path, packs):
    assert sweep(tmp_path, "--epochs", 1, "--quiet").code == 0
    content = json.loads((tmp_path / "sweep.json").read_text())
    text = json.dumps({**content, "packs": "PACKS"}).replace('"PACKS"', packs)
    (tmp_path / "sweep.json").write_text(text)
    answer = ocr_eval("status", tmp_path)
    assert answer.code == 2
    assert "sweep.json is damaged ('packs" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
