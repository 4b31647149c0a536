"""Sweeps that are killed, shared, damaged or full: nothing is lost, and the other runs continue."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import GRID, runs_in

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.execution import run_pack
from ocr_eval.execution.execute import Bases
from ocr_eval.execution.sweep import plan_sweep
from ocr_eval.planning import packs
from ocr_eval.records.folder import RunFolder
from ocr_eval.specs import strict
from ocr_eval.specs.grid import Grid


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
