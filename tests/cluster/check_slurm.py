"""Jobs on a real Slurm: run by with_slurm.sh, not a part of the default tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import accumulate

import pytest

from ocr_eval.common.errors import UserError
from ocr_eval.execution.execute import Bases
from ocr_eval.execution.jobs import Job, Placement, run_jobs, slurm
from ocr_eval.execution.sweep import pack_jobs, plan_sweep
from ocr_eval.specs.grid import read_sweep

SLURM = Placement(executor="slurm", time_limit=30, gpus_per_job=0)
#: Writes a line to "starts", works until "half" is there, and is done when it finds "half" at its start.
IN_TWO_HALVES = """
import pathlib, sys, time
with open("starts", "a") as starts:
    starts.write("started\\n")
half = pathlib.Path("half")
if half.exists():
    sys.exit(0)
half.touch()
time.sleep(600)
"""


def python(name, code):
    return Job(name, (sys.executable, "-c", code))


def in_front_of(program, script, folder, monkeypatch):
    """Let a line of shell go before every call of a program."""
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / program
    path.write_text(f'#!/bin/sh\n{script}\nexec {shutil.which(program)} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def in_the_queue():
    return subprocess.check_output(["squeue", "--noheader"])


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_jobs_come_back_in_order_with_its_logs(tmp_path):
    events = []
    jobs = [python(f"pack{k}", f"print('this is', {k})") for k in range(3)]
    results = run_jobs(jobs, SLURM, tmp_path / "logs", events.append)
    assert [result.job for result in results] == jobs
    assert [(result.end, result.returncode) for result in results] == [("done", 0)] * 3
    for k in range(3):
        assert (tmp_path / f"logs/pack{k}.log").read_text().splitlines()[-1] == f"this is {k}"
    last = {event.job.name: event.state for event in events}
    assert last == {"pack0": "done", "pack1": "done", "pack2": "done"}


def test_no_more_jobs_than_allowed_run_at_once(tmp_path):
    work = "import time; say = open('turns', 'a', buffering=1).write; say('in\\n'); time.sleep(2); say('out\\n')"
    jobs = [python(f"pack{k}", work) for k in range(6)]
    results = run_jobs(jobs, replace(SLURM, parallel=2), tmp_path / "logs")
    assert [(result.job, result.end) for result in results] == [(job, "done") for job in jobs]
    steps = [1 if turn == "in" else -1 for turn in (tmp_path / "turns").read_text().split()]
    assert max(accumulate(steps)) == 2


def test_when_the_second_job_is_refused_the_first_is_cancelled(tmp_path, monkeypatch):
    once = "[ ! -e submitted ] || { echo 'sbatch: error: too many' >&2; exit 1; }; touch submitted"
    in_front_of("sbatch", once, tmp_path, monkeypatch)
    jobs = [python(f"pack{k}", "import time; time.sleep(600)") for k in range(2)]
    with pytest.raises(UserError, match="Slurm refuses the jobs: too many"):
        run_jobs(jobs, SLURM, tmp_path / "logs")
    wait_for(lambda: not in_the_queue())


def test_a_job_gets_what_the_placement_asks_for(tmp_path):
    show = (
        "import os, subprocess, time\n"
        "say = open('turns', 'a', buffering=1).write\n"
        "say('in\\n'); time.sleep(0.3); say('out\\n')\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])\n"
        "print(subprocess.getoutput('scontrol show job ' + os.environ['SLURM_JOB_ID']))"
    )
    placement = Placement(
        executor="slurm",
        partition="main",
        time_limit=7,
        cpus_per_job=2,
        memory_gb=0.5,
        parallel=1,
        slurm=("--comment=by hand",),
    )
    jobs = [python("pack0", show), python("pack1", show)]
    results = run_jobs(jobs, placement, tmp_path / "a log")
    assert [result.end for result in results] == ["done", "done"]
    log = (tmp_path / "a log/pack1.log").read_text()
    assert "\n0 2\n" in log, "the GPU that Slurm gave, one being the default where there are any; two threads"
    for word in ("Partition=main", "TimeLimit=00:07:00", "MinMemoryNode=512M", "Requeue=1", "Comment=by hand"):
        assert word in log
    assert (tmp_path / "turns").read_text().split() == ["in", "out"] * 2, "one at a time"


def test_a_failed_job_names_its_last_words_and_stops_no_other(tmp_path):
    jobs = [
        python("bad", "import sys; print('ocr-eval: no such model', file=sys.stderr); sys.exit(2)"),
        python("killed", "import os; os.kill(os.getpid(), 9)"),
        python("good", "pass"),
        Job("missing", ("/no/such/program",)),
    ]
    bad, killed, good, missing = run_jobs(jobs, SLURM, tmp_path / "logs")
    assert (bad.end, bad.returncode) == ("failed", 2)
    assert bad.problem() == (
        f"Job bad ({bad.place}) ended with exit code 2: ocr-eval: no such model (log: {tmp_path}/logs/bad.log)"
    )
    assert (killed.end, killed.returncode) == ("failed", -9)
    assert "was killed by SIGKILL" in killed.problem()
    assert good.end == "done"
    assert missing.end == "failed"
    assert "No such file" in missing.problem()


def test_an_unknown_partition_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"Unknown partition 'mian'. Did you mean 'main'\? Available: main, urgent"):
        run_jobs([python("pack", "pass")], Placement(executor="slurm", partition="mian"), tmp_path / "logs")


def test_a_time_limit_that_the_partition_never_grants_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="--time-limit 90: partition 'main' allows 60 minutes"):
        run_jobs([python("pack", "pass")], Placement(executor="slurm", time_limit=90), tmp_path / "logs")


def test_a_refused_submission_leaves_nothing_in_the_queue(tmp_path, capfd):
    with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*node configuration is not available"):
        run_jobs([python("pack", "pass")], Placement(executor="slurm", gpus_per_job=3), tmp_path / "logs")
    assert not in_the_queue()
    assert "sbatch" not in capfd.readouterr().err


def by_signal(job_id):
    subprocess.run(["scancel", "--batch", "--signal=USR2", job_id], check=True)


def by_requeue(job_id):
    subprocess.run(["scontrol", "requeue", job_id], check=True)


def by_preemption(job_id):
    everything = ["--partition=urgent", "--cpus-per-task=4", "--time=1", "--output=/dev/null"]
    subprocess.run(["sbatch", *everything, "--wrap=sleep 2"], check=True, capture_output=True)


@pytest.mark.parametrize("interrupt", [by_signal, by_requeue, by_preemption])
def test_an_interrupted_job_is_queued_again_and_goes_on(tmp_path, interrupt):
    events = []

    def when_half_done():
        wait_for(lambda: (tmp_path / "half").exists() and "running" in [event.state for event in events])
        interrupt(events[0].place)

    helper = threading.Thread(target=when_half_done, daemon=True)
    helper.start()
    (result,) = run_jobs([python("pack", IN_TWO_HALVES)], SLURM, tmp_path / "logs", events.append)
    helper.join()
    assert (result.end, result.returncode) == ("done", 0)
    assert (tmp_path / "starts").read_text() == "started\n" * 2


def test_a_job_that_reaches_its_time_limit_too_often_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "REQUEUES", 0)
    placement = replace(SLURM, time_limit=1)
    work = "import time; print('epoch 3', flush=True); time.sleep(600)"
    (result,) = run_jobs([python("pack", work)], placement, tmp_path / "logs")
    assert (result.end, result.returncode) == ("timeout", None)
    assert "reached its time limit too often (log: " in result.problem()


@pytest.mark.parametrize(("accounted", "end"), [("RUNNING", "done"), ("CANCELLED by 0", "cancelled"), ("", "lost")])
def test_a_job_that_the_controller_does_not_name_is_what_the_accounts_say(tmp_path, monkeypatch, accounted, end):
    in_front_of("squeue", "[ ! -e silent ] || exit 0", tmp_path, monkeypatch)
    in_front_of("sacct", f"touch asked; echo '{accounted}'; exit 0", tmp_path, monkeypatch)
    events = []

    def become_silent(event):
        events.append(event.state)
        if event.state == "running":
            (tmp_path / "silent").touch()

    work = "import pathlib, time\nfor _ in range(150): pathlib.Path('asked').exists() or time.sleep(0.1)\ntime.sleep(3)"
    (result,) = run_jobs([python("pack", work)], SLURM, tmp_path / "logs", become_silent)
    assert (tmp_path / "asked").exists()
    assert result.end == end, result.problem()
    assert events[-1] == end
    (tmp_path / "silent").unlink()
    subprocess.run(["scancel", result.place], check=False, capture_output=True)


def test_a_cancelled_job_is_reported(tmp_path):
    def cancel(event):
        if event.state == "running":
            subprocess.run(["scancel", event.place], check=True)

    (result,) = run_jobs([python("pack", "import time; time.sleep(600)")], SLURM, tmp_path / "logs", cancel)
    assert result.end == "cancelled"
    assert "CANCELLED" in result.problem()


WAITER = """
import pathlib, signal, sys
from ocr_eval.execution.jobs import Job, Placement, run_jobs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
command = (sys.executable, "-c", "open('starts', 'a').write('started\\\\n'); import time; time.sleep(4)")
jobs = [Job(name, command) for name in ("pack0", "pack1")]
for result in run_jobs(jobs, Placement(executor="slurm", time_limit=30, gpus_per_job=0), pathlib.Path("logs")):
    print(result.end)
"""


def test_ctrl_c_leaves_the_jobs_and_the_same_command_finds_them(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", WAITER], stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "starts").exists)
    first.send_signal(signal.SIGINT)
    said = first.communicate()[1]
    assert "Slurm jobs" in said
    assert "To cancel them: scancel" in said
    second = subprocess.run([sys.executable, "-c", WAITER], capture_output=True, text=True, check=True)
    assert "Already in Slurm: job" in second.stderr
    assert "Submitted" not in second.stderr
    assert second.stdout.split() == ["done", "done"]
    assert (tmp_path / "starts").read_text() == "started\n" * 2


def test_processes_that_start_together_submit_once(tmp_path):
    waiters = [subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [waiter.communicate()[0].split() for waiter in waiters] == [["done", "done"]] * 3
    assert (tmp_path / "starts").read_text() == "started\n" * 2


def test_a_copied_folder_has_jobs_of_its_own_and_leaves_those_of_the_original(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    work = (
        "import pathlib, time\npathlib.Path('first').touch()\n"
        "for _ in range(300): pathlib.Path('end').exists() or time.sleep(0.1)"
    )
    watcher = threading.Thread(
        target=lambda: results.extend(run_jobs([python("pack", work)], SLURM, original)), daemon=True
    )
    results = []
    watcher.start()
    wait_for((tmp_path / "first").exists)
    shutil.copytree(original, copy)
    (own,) = run_jobs([python("pack", "open('second', 'w')")], SLURM, copy)
    assert own.end == "done"
    assert (tmp_path / "second").exists()
    assert watcher.is_alive(), "the original's job continues"
    (tmp_path / "end").touch()
    watcher.join()
    assert [result.end for result in results] == ["done"]
    assert results[0].place != own.place


def test_a_sweep_that_is_requeued_ends_as_one_that_was_left_alone(tmp_path, model_files):
    models = f"{model_files['llama']},{model_files['olmo']}"
    shape = [
        "--n=3",
        "--m-train=1",
        "--m-test=2",
        "--epochs=12",
        "--assocs=city-language",
        "--seeds=0-1",
        "--dtype=float32",
    ]
    command = (sys.executable, "-m", "ocr_eval", "sweep", f"--models={models}", *shape)
    subprocess.run([*command, "-o", "here"], check=True, capture_output=True)

    def requeue(event):
        if event.state == "running" and event.place not in seen:
            seen.add(event.place)
            wait_for(lambda: list((tmp_path / "there").glob("**/metrics.jsonl")))
            subprocess.run(["scontrol", "requeue", event.place], check=True)

    seen = set()
    (tmp_path / "there").mkdir()
    grid = read_sweep(tmp_path / "here").grid
    sweep = plan_sweep(grid.specs(), tmp_path / "there", "cpu", Bases("cpu"), grid=grid)
    jobs = pack_jobs(sweep.stated(), [])
    results = run_jobs(jobs, SLURM, tmp_path / "there/logs", requeue)
    assert [result.end for result in results] == ["done", "done"], results
    assert len(seen) == 2
    records = {
        path.relative_to(tmp_path / "here"): numbers(path) for path in (tmp_path / "here").glob("**/result.json")
    }
    assert len(records) == 4
    for path, expected in records.items():
        assert numbers(tmp_path / "there" / path) == expected


def numbers(path):
    """A record without what differs between any two runs."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in ("seconds", "memory")}
