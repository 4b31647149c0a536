"""Jobs side by side on this machine; tests/cluster has those on Slurm."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import tiny_run

import ocr_eval as api
from ocr_eval.cli.execution_flags import Jobs
from ocr_eval.common.errors import UserError
from ocr_eval.execution.jobs import Job, Placement, run_jobs
from ocr_eval.execution.jobs.local import resolve_devices
from ocr_eval.execution.jobs.slurm_queue import QueueEntry, find_jobs


def python(name, code):
    return Job(name, (sys.executable, "-c", code))


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_jobs_share_out_the_devices_and_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    events = []
    work = "import os, time; print('device', os.environ['CUDA_VISIBLE_DEVICES']); time.sleep({})"
    jobs = [python("long", work.format(1.5)), *(python(f"short{k}", work.format(0)) for k in range(3))]
    results = run_jobs(jobs, Placement(executor="local"), tmp_path / "logs", events.append)
    assert [result.job for result in results] == jobs
    assert [(result.end, result.returncode) for result in results] == [("done", 0)] * 4
    assert [result.place for result in results] == ["4", "7", "7", "7"], "a device is used again when it is free"
    for result in results:
        assert result.log == tmp_path / f"logs/{result.job.name}.log"
        assert result.log.read_text().splitlines()[1:] == [f"device {result.place}"]
    assert [event.state for event in events if event.job.name == "long"] == ["running", "done"]


def test_jobs_on_the_cpu_share_its_cores_and_see_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ.get('OMP_NUM_THREADS'))"
    jobs = [python("a", show), python("b", show)]
    for devices, seen in {("cpu", "cpu"): "'' 3", ("cpu",): "'' None"}.items():
        for result in run_jobs(jobs, Placement(executor="local", devices=devices), tmp_path):
            assert result.log.read_text().splitlines()[-1] == seen


def test_without_gpus_the_job_chooses_its_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_devices(()) == ("auto",)


def test_a_device_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=r"Unknown device '2'\. Available: 0, 1, cpu"):
        run_jobs([python("a", "pass")], Placement(executor="local", devices=("0", "2")), tmp_path)


def test_gpus_after_an_invalid_one_are_hidden_as_by_cuda(monkeypatch):
    for named, there in (("-1", ("auto",)), ("3,-1,1", ("3",))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert resolve_devices(()) == there


def test_who_says_gpu_means_cuda(ocr_eval, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for given, said in (("gpu", "cuda"), ("CUDA", "cuda"), ("metal", "mps")):
        answer = ocr_eval("finetune", "city-language", "--model", tiny, "--device", given, "--dry-run")
        assert answer.code == 2
        assert f"Did you mean '{said}'?" in answer.err
    answer = ocr_eval("sweep", "--executor", "local", "--devices", "gpu", "--dry-run", "-o", tmp_path)
    assert "Unknown device 'gpu'. Available: 0, cpu. GPUs are named by their numbers" in answer.err
    with pytest.raises(UserError, match=r"Unknown device 'gpu'\. Did you mean 'cuda'"):
        api.finetune(tiny_run(tiny), tmp_path, device="gpu")


def test_a_failed_job_says_why_and_stops_no_other(tmp_path):
    jobs = [
        python("bad", "import sys; print('ocr-eval: no such model', file=sys.stderr); sys.exit(2)"),
        python("killed", "import os; os.kill(os.getpid(), 9)"),
        python("good", "pass"),
    ]
    bad, killed, good = run_jobs(jobs, Placement(executor="local", devices=("cpu",)), tmp_path)
    log = tmp_path / "bad.log"
    assert bad.problem() == f"Job bad (cpu) ended with exit code 2: ocr-eval: no such model (log: {log})"
    assert killed.problem() == f"Job killed (cpu) was killed by SIGKILL (log: {tmp_path}/killed.log)"
    assert (bad.end, killed.end, good.end) == ("failed", "failed", "done")


def test_a_log_keeps_every_attempt_and_quotes_only_the_last(tmp_path):
    placement = Placement(executor="local", devices=("cpu",))
    (first,) = run_jobs([python("a", "print('first try'); raise SystemExit(1)")], placement, tmp_path)
    (second,) = run_jobs([python("a", "raise SystemExit(1)")], placement, tmp_path)
    assert (first.last_line, second.last_line) == ("first try", "")
    assert "first try" in second.log.read_text()


def test_callers_that_share_a_folder_have_logs_of_their_own(tmp_path):
    cpu = Placement(executor="local", devices=("cpu",))
    inner = []

    def a_second_caller(event):
        if event.state == "running":
            inner.extend(run_jobs([python("a", "print('second'); raise SystemExit(1)")], cpu, tmp_path))

    outer = run_jobs([python("a", "print('first'); raise SystemExit(1)")], cpu, tmp_path, a_second_caller)
    assert [(result.log.name, result.last_line) for result in [*outer, *inner]] == [
        ("a.log", "first"),
        ("a-2.log", "second"),
    ]
    (later,) = run_jobs([python("a", "print('third'); raise SystemExit(1)")], cpu, tmp_path)
    assert later.log.name == "a.log"


CALLER = """
import pathlib, signal, sys
from ocr_eval.execution.jobs import Job, Placement, run_jobs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
work = "import os, time; open('pids', 'a').write(f'{os.getpid()} '); time.sleep(600)"
jobs = [Job(name, (sys.executable, "-c", work)) for name in ("a", "b", "c")]
run_jobs(jobs, Placement(executor="local", devices=("cpu", "cpu")), pathlib.Path("logs"))
"""


def gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with a killed parent")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_its_caller(tmp_path, monkeypatch, by):
    monkeypatch.chdir(tmp_path)
    caller = subprocess.Popen([sys.executable, "-c", CALLER], stderr=subprocess.PIPE, text=True)
    pids = tmp_path / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    caller.send_signal(by)
    said = caller.communicate()[1]
    wait_for(lambda: all(gone(pid) for pid in pids.read_text().split()))
    assert len(pids.read_text().split()) == 2, "the third was never started"
    assert ("Stopping 2 running jobs" in said) == (by == signal.SIGINT)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with a killed parent")
def test_a_job_whose_caller_dies_while_it_starts_never_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getpid", os.getppid)  # the child finds another parent than its arguments name
    (result,) = run_jobs([python("a", "open('begun', 'w')")], Placement(executor="local", devices=("cpu",)), tmp_path)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "begun").exists()


def test_nothing_of_the_caller_which_may_have_threads_runs_in_the_fork_of_a_job(tmp_path):
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))  # not called where only the command runs in the child
    show = "import os, signal; print(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    (result,) = run_jobs([python("a", show)], Placement(executor="local", devices=("cpu",)), tmp_path)
    assert (result.end, forks) == ("done", [])
    assert result.log.read_text().splitlines()[1:] == ["True True"]


def test_away_from_a_cluster_slurm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no 'sbatch' on PATH.*--executor local"):
        run_jobs([python("a", "pass")], Placement(executor="slurm"), tmp_path / "logs")


def test_a_job_in_slurm_whose_result_is_still_being_written_is_waited_for(tmp_path, monkeypatch):
    for name, answer in {"sinfo": "main*|infinite|(null)", "sbatch": "7", "squeue": "", "scancel": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n[ -z '{answer}' ] || echo '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    end = tmp_path / "logs/slurm/7.end"
    end.parent.mkdir(parents=True)
    end.touch()
    threading.Timer(0.5, end.write_text, ["0\n"]).start()
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\n(echo "$@"; cat) > {tmp_path}/submitted\necho 7\n')
    (result,) = run_jobs([python("a", "pass")], Placement(executor="slurm"), tmp_path / "logs")
    assert (result.end, result.returncode) == ("done", 0)
    submitted = (tmp_path / "submitted").read_text()
    assert "--signal=B:USR2@75 " in submitted
    assert f"{tmp_path}/logs/a.log 10 60 {sys.executable}" in submitted  # a minute to save an epoch


def test_jobs_are_found_among_more_than_a_command_line_holds(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7|RUNNING|None|job-9999'\necho '8|RUNNING|None|an|other'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_jobs(f"job-{i}" for i in range(30_000)) == {"7": QueueEntry("job-9999", "RUNNING", "")}


@pytest.mark.parametrize("flag", ["--time-limit=0", "--gpus-per-job=-1", "--memory-gb=0", "--parallel=0"])
def test_what_fits_no_machine_is_refused(ocr_eval, tmp_path, flag):
    answer = ocr_eval("sweep", "--executor", "slurm", flag, "--dry-run", "-o", tmp_path)
    assert answer.code == 2
    assert flag.partition("=")[0] in answer.err
    assert answer.err.count("\n") == 1


def test_flags_make_a_placement():
    assert Jobs("here").placement() == Placement()
    assert Jobs("local", devices="0, 1").placement() == Placement(executor="local", devices=("0", "1"))
    slurm = Jobs("slurm", partition="gpu", memory_gb=8, gpus_per_job=0, slurm=["account=nlp"])
    assert slurm.placement() == Placement("slurm", (), "gpu", None, 0, None, 8, slurm=("account=nlp",))


@pytest.mark.parametrize("given", ["[account=nlp, exclusive]", "account=nlp", "\n- account=nlp\n- exclusive"])
def test_options_of_sbatch_can_come_from_a_file(ocr_eval, tmp_path, monkeypatch, given):
    seen = []
    monkeypatch.setattr(
        "ocr_eval.cli.sweep_work.plan", lambda specs, output, means: seen.append(means.placement()) or []
    )
    (tmp_path / "sweep.yaml").write_text(f"executor: slurm\nslurm: {given}\n")
    answer = ocr_eval("sweep", "-C", tmp_path / "sweep.yaml", "--dry-run", "-o", tmp_path)
    assert answer.code == 0, answer.err
    assert seen[0].slurm == (("account=nlp", "exclusive") if "exclusive" in given else ("account=nlp",))


def test_options_of_sbatch_that_are_no_plain_words_are_one_clear_line(ocr_eval, tmp_path):
    (tmp_path / "sweep.yaml").write_text("executor: slurm\nslurm:\n- account: nlp\n")
    answer = ocr_eval("sweep", "-C", tmp_path / "sweep.yaml", "--dry-run", "-o", tmp_path)
    assert answer.code == 2
    assert "YAML reads 'slurm' as [{'account': 'nlp'}]. Quote the word, or give a plain value." in answer.err


def test_flags_of_another_executor_are_refused():
    with pytest.raises(UserError, match="--time-limit needs --executor slurm"):
        Jobs("local", time_limit=30).placement()
    with pytest.raises(UserError, match="--devices needs --executor local"):
        Jobs("slurm", devices="0").placement()
