"""Processes that share a CPU: what they leave, what a person sees of them, and how many there are."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import GRID, runs_in, tiny_run

from ocr_eval.execution import workers
from ocr_eval.execution.execute import PlannedRun
from ocr_eval.execution.jobs.local import cores
from ocr_eval.execution.workers import Follower, workers_that_pay
from ocr_eval.planning.packs import cut, pack_memory
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine

#: Two packs of two runs each.
TWO_PACKS = [*GRID, "--batch-size", 64]


def command(tiny: str, output: Path, *more: object) -> list[str]:
    flags = ["--models", tiny, *TWO_PACKS, "--workers", 2, *more, "-o", output]
    return [sys.executable, "-m", "ocr_eval", "sweep", *map(str, flags)]


def test_two_workers_leave_what_one_process_leaves(ocr_eval, tiny, tmp_path):
    flags = ["--models", tiny, *TWO_PACKS]
    assert ocr_eval("sweep", *flags, "--workers", 1, "--quiet", "-o", tmp_path / "one").code == 0
    answer = ocr_eval("sweep", *flags, "--workers", 2, "--report-to", "tensorboard", "-o", tmp_path / "two")
    assert answer.code == 0, answer.err
    assert "4 runs in 2 packs, 4 to do in 2 processes" in answer.err
    assert runs_in(tmp_path / "two") == runs_in(tmp_path / "one")
    for pack in (1, 2):
        epochs = re.findall(rf"pack {pack}/2 epoch (\d)/3", answer.err)
        assert epochs == ["0", "1", "2", "3"]
    assert "100%" in answer.err
    assert len(list((tmp_path / "two/tensorboard").rglob("events*"))) == 4
    assert re.search(r"\| tiny-llama +\| LoRA +\| +2 \|", answer.out)


def workers_of(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers, once both are there."""
    while True:
        found = [child for child in psutil.Process(parent.pid).children() if "--worker" in child.cmdline()]
        if len(found) == 2:
            return found
        assert parent.poll() is None, parent.communicate()
        time.sleep(0.05)


def epochs_of(output: Path) -> list[int]:
    """How many lines each run's metrics have."""
    return [len(path.read_text().splitlines()) for path in output.rglob("metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """What the runs of twenty epochs state when nothing happens to them but variables that flags overrule."""
    output = tmp_path_factory.mktemp("undisturbed")
    variables = {"OCR_EVAL_EPOCHS": "7", "OCR_EVAL_EXECUTOR": "local", "OCR_EVAL_WORKERS": "5", "OCR_EVAL_SEEDS": "8"}
    flags = command(tiny, output, "--epochs", 20, "--executor", "here")
    done = subprocess.run(flags, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    return runs_in(output)


def test_what_a_dead_worker_leaves_another_does(tiny, tmp_path, undisturbed):
    flags = command(tiny, tmp_path, "--epochs", 20)
    parent = subprocess.Popen(flags, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = {child.pid: child for child in workers_of(parent)}
    while max(epochs_of(tmp_path), default=0) < 3:
        time.sleep(0.02)
    holder = next(path for path in tmp_path.rglob(".holder") if len(epochs_of(path.parent)) == 1)
    children[int(holder.read_text().split()[1])].kill()
    _, err = parent.communicate(timeout=180)
    assert parent.returncode == 0, err
    assert re.search(r"Job worker\d \(cpu\) was killed by SIGKILL", err)
    assert runs_in(tmp_path) == undisturbed
    assert {run["record"]["train"]["epochs"] for run in undisturbed.values()} == {20}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent_and_the_sweep_goes_on(ocr_eval, tiny, tmp_path, undisturbed, how):
    flags = command(tiny, tmp_path, "--epochs", 20)
    parent = subprocess.Popen(
        flags,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    children = workers_of(parent)
    while max(epochs_of(tmp_path), default=0) < 3:
        time.sleep(0.02)
    parent.send_signal(how)
    parent.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert parent.returncode == (130 if how == signal.SIGINT else -9)
    states = ocr_eval("status", tmp_path).out
    assert "interrupted" in states
    assert "running" not in states
    if how == signal.SIGINT:
        begun = [path.parent for path in tmp_path.rglob("metrics.jsonl") if len(path.read_text().splitlines()) > 2]
        assert all(any(folder.glob("checkpoint*")) or (folder / "status.json").is_file() for folder in begun)
    else:
        assert subprocess.run(flags, capture_output=True, check=False).returncode == 0
        assert runs_in(tmp_path) == undisturbed


def planned(tiny: str, root: Path, seed: int, epochs: int) -> PlannedRun:
    folder = RunFolder(root / f"seed{seed}")
    folder.path.mkdir(parents=True)
    return PlannedRun(tiny_run(tiny, seed=seed, epochs=epochs), folder)


def grow(run: PlannedRun, lines: int) -> None:
    for epoch in range(lines):
        run.folder.add_metrics(MetricsLine(epoch=epoch))


def test_a_follower_tells_an_epoch_once_all_runs_of_a_pack_have_it(tiny, tmp_path):
    short, long, failing = (planned(tiny, tmp_path, seed, epochs) for seed, epochs in enumerate((1, 3, 3)))
    grow(long, 1)  # another process had begun
    told: list[list[tuple[int, int]]] = []
    follower = Follower(
        [[short, long, failing]],
        lambda steps: told.append([(step.spec.seed, step.line.epoch) for step in steps]),
    )
    follower.look(closely=True)
    grow(short, 2)
    grow(long, 2)
    follower.look(closely=True)
    assert told == []
    grow(failing, 1)
    follower.look(closely=True)
    assert told == [[(0, 0), (1, 0), (2, 0)]]
    failing.folder.fail("The loss became nan in epoch 1.")
    follower.look(closely=True)
    assert told[1:] == [[(0, 1), (1, 1)]]
    grow(long, 4)
    follower.look(closely=True)
    follower.look(closely=True)
    assert told[2:] == [[(1, 2)], [(1, 3)]]


def test_a_follower_goes_on_with_a_pack_that_was_killed_while_a_run_ended(tiny, tmp_path):
    short, long = (planned(tiny, tmp_path, seed, epochs) for seed, epochs in enumerate((2, 4)))
    for run in (short, long):
        grow(run, 3)  # the short one has all its lines and no mark that it is finished
    told: list[list[int]] = []
    follower = Follower([[short, long]], lambda steps: told.append([step.line.epoch for step in steps]))
    grow(long, 5)
    follower.look(closely=True)
    assert told == [[3], [4]]


def test_a_file_that_is_gone_at_the_wrong_moment_is_read_again(tiny, tmp_path, monkeypatch):
    run = planned(tiny, tmp_path, 0, 3)
    told: list[int] = []
    follower = Follower([[run]], lambda steps: told.extend(step.line.epoch for step in steps))
    grow(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "metrics", lambda folder: (_ for _ in ()).throw(FileNotFoundError()))
        follower.look(closely=True)
    assert told == []
    follower.look(closely=True)
    assert told == [0]


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)


def smollm2(count: int):
    return cut(
        [tiny_run("smollm2-135m", seed=seed, batch_size=160).in_precision("bfloat16") for seed in range(count)], "cpu"
    )


def test_as_many_workers_as_cores_packs_and_memory_allow(eight_cores, monkeypatch):
    monkeypatch.setattr(workers, "_LEAST_FLOP", 1.0)
    packs = smollm2(5)
    assert [len(pack) for pack in packs] == [1] * 5
    assert workers_that_pay(packs, "cpu") == 5
    assert workers_that_pay(packs[:3], "cpu") == 3
    assert workers_that_pay(smollm2(11), "cpu") == 8
    assert workers_that_pay(packs, "cuda") == 1
    one = pack_memory(packs[0][0], workers.workload.measure(packs[0][0]), 1, "cpu").total
    monkeypatch.setattr(workers, "room", lambda device: int(2.5 * one))
    assert workers_that_pay(packs, "cpu") == 2
    monkeypatch.setattr(workers, "room", lambda device: one // 2)
    assert workers_that_pay(packs, "cpu") == 1


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert cores() == 3
    for asked, there in (("2", 2), ("8", 3), ("0", 3), ("all", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert cores() == there


def test_little_work_is_not_worth_a_second_process(eight_cores, tiny):
    assert workers_that_pay([[tiny_run(tiny)], [tiny_run(tiny, seed=1)]], "cpu") == 1


def test_runs_are_cut_so_that_all_workers_have_as_much_to_do(tiny):
    specs = [tiny_run(tiny, seed=seed, batch_size=32) for seed in range(15)]
    for processes, sizes in ((1, [4, 4, 3, 4]), (2, [4, 4, 3, 4]), (3, [2, 3, 3, 2, 3, 2]), (16, [1] * 15)):
        assert sorted(map(len, cut(specs, "cpu", processes))) == sorted(sizes)
    assert len(cut(specs[:4], "cpu", 16)) == 1


def test_workers_go_with_a_cpu_here(ocr_eval, tiny, tmp_path):
    answer = ocr_eval("sweep", "--models", tiny, "--workers", 2, "--executor", "local", "-o", tmp_path)
    assert answer.code == 2
    assert answer.err.strip().startswith("ocr-eval: --workers needs --executor here")
    assert ocr_eval("sweep", "--models", tiny, "--workers", 0, "-o", tmp_path).code == 2


def test_the_search_of_an_edit_counts_as_work(eight_cores, tiny, monkeypatch):
    monkeypatch.setattr(workers, "_LEAST_FLOP", 1e10)
    for steps, processes in ((1, 1), (1000, 2)):
        packs = [[tiny_run(tiny, method=f"memit:steps={steps}", seed=seed)] for seed in (0, 1)]
        assert workers_that_pay(packs, "cpu") == processes
