"""Runs that are killed, interrupted or in each other's way: nothing is lost, and no two meet."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import SMALL, content, only_run

from ocr_eval.methods.pack import GradientPack
from ocr_eval.records.folder import RunFolder

KILLED = """
import sys, ocr_eval.execution.run_pack
ocr_eval.execution.run_pack.CHECKPOINT_EVERY = 0.0
from ocr_eval.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_result(finetune, tiny, tmp_path):
    assert finetune(tmp_path / "whole", "--epochs", 12).code == 0
    output = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, "finetune", "--model", tiny, "--assoc", "country-code"]
    command += ["-o", str(output), "--epochs", "12", *SMALL[:-1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = random.Random(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            if " epoch " in line and moments.random() < 0.35:
                time.sleep(moments.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills > 0
    assert content(RunFolder(only_run(output))) == content(RunFolder(only_run(tmp_path / "whole")))
    assert not list(only_run(output).glob("*.partial"))
    assert not list(only_run(output).glob("checkpoint*"))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from ocr_eval.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def started(output: Path, tiny: str, *more: object, program: Sequence[str] = ("-m", "ocr_eval")):
    """A run of forty epochs in a process of its own, which Ctrl-C reaches."""
    flags = ["--model", tiny, "--assoc", "country-code", "-o", output, "--epochs", 40, *SMALL[:-1], *more]
    return subprocess.Popen(
        [sys.executable, *program, "finetune", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def until(process: subprocess.Popen[str], said: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if said in line:
            return
    raise AssertionError(f"never said {said}")


@pytest.fixture(scope="module")
def forty_epochs(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("forty")
    process = started(output, tiny)
    process.communicate(timeout=120)
    assert process.returncode == 0
    return content(RunFolder(only_run(output)))


@pytest.mark.parametrize(("how", "more"), [(signal.SIGINT, ["--quiet"]), (signal.SIGTERM, [])])
def test_an_interruption_within_the_first_second_loses_no_finished_epoch(tiny, tmp_path, forty_epochs, how, more):
    process = started(tmp_path, tiny, *more)
    if more:
        while not (lines := list(tmp_path.glob("runs/*/*/*/*/metrics.jsonl"))) or len(lines[0].open().readlines()) < 4:
            time.sleep(0.005)
    else:
        until(process, " epoch  3/40")
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    (checkpoint,) = tmp_path.glob("runs/*/*/*/*/checkpoint-*.pt")
    epoch = checkpoint.stem.partition("-")[2]
    assert 3 <= int(epoch) < 40
    assert last.startswith("ocr-eval: Interrupted")
    assert f"epoch {epoch} of 40 is saved" in last
    metrics = checkpoint.parent / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == int(epoch) + 1
    with metrics.open("a") as file:
        file.write('{"epoch": ')  # as a power cut in the next epoch leaves it
    again = started(tmp_path, tiny)
    _, err = again.communicate(timeout=120)
    assert f"after epoch {epoch}" in err
    assert content(RunFolder(only_run(tmp_path))) == forty_epochs


@pytest.fixture
def interruptible():
    """Ctrl-C arrives also where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("epochs", "said"), [(0, "no epoch is saved yet"), (2, "epoch 2 of 3 is saved")])
def test_ctrl_c_says_from_where_the_run_resumes(interruptible, finetune, tmp_path, monkeypatch, epochs, said):

    honest = GradientPack.step

    def interrupt(pack, lanes):
        if pack.learners[0].epochs_done == max(0, epochs - 1):
            os.kill(os.getpid(), signal.SIGINT)
        return honest(pack, lanes)

    monkeypatch.setattr(GradientPack, "step", interrupt)
    answer = finetune(tmp_path)
    assert answer.code == 130
    assert answer.err.strip().splitlines()[-1].startswith("ocr-eval: Interrupted")
    assert said in answer.err
    assert "--force" not in answer.err
    monkeypatch.undo()
    assert finetune(tmp_path).code == 0


def test_a_second_ctrl_c_stops_at_once_and_force_would_start_over(interruptible, finetune, tmp_path, monkeypatch):
    from ocr_eval.execution import interruption

    monkeypatch.setattr(interruption, "_ECHO", 0.0)
    honest = GradientPack.step

    def interrupt_twice(pack, lanes):
        if pack.learners[0].epochs_done == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return honest(pack, lanes)

    monkeypatch.setattr(GradientPack, "step", interrupt_twice)
    answer = finetune(tmp_path, "--force")
    assert answer.code == 130
    assert "no epoch is saved yet" in answer.err
    assert not list(tmp_path.glob("**/checkpoint*"))
    assert "Drop --force" in answer.err


def test_two_processes_on_one_run_do_not_meet(finetune, tmp_path):
    from filelock import FileLock

    finetune(tmp_path)
    with FileLock(only_run(tmp_path) / ".lock"):
        answer = finetune(tmp_path, "--force")
        assert "done before" in finetune(tmp_path).out
    assert answer.code == 2
    assert "Another process is working on" in answer.err
    assert (only_run(tmp_path) / "result.json").is_file()


def test_a_second_process_is_refused_while_the_first_still_loads(finetune, tiny, tmp_path, monkeypatch):
    from ocr_eval.execution import execute as module

    honest = module.load_base

    def loading(*arguments, **more):
        for force in ([], ["--force"]):
            second = started(tmp_path, tiny, *force, "--epochs", 3, program=["-c", WITHOUT_TORCH])
            out, err = second.communicate(timeout=60)
            assert (second.returncode, out) == (2, ""), err
            assert "Another process is working on" in err
            assert len(err.splitlines()) == 1
        return honest(*arguments, **more)

    monkeypatch.setattr(module, "load_base", loading)
    answer = finetune(tmp_path)
    assert answer.code == 0, answer.err


def test_a_run_that_cannot_be_loaded_leaves_no_folder_and_no_lock(finetune, tmp_path, monkeypatch):
    from ocr_eval.common.errors import UserError
    from ocr_eval.execution import execute as module

    def damaged(*arguments, **more):
        raise UserError("damaged")

    monkeypatch.setattr(module, "load_base", damaged)
    assert finetune(tmp_path).code == 2
    assert list(tmp_path.iterdir()) == []
