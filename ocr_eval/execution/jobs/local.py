"""Jobs as processes on this machine, one at a time per device."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from filelock import Timeout

from ocr_eval.common.errors import unknown_name
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say
from ocr_eval.execution.jobs import Job, JobEvent, JobResult, Meanwhile, Placement, Progress, process

_POLL_SECONDS = 0.1
#: Seconds that an interrupted job gets to finish and save its epoch (execution/interruption.py).
_GRACE = 60.0


@dataclass(frozen=True)
class _Running:
    job: Job
    device: str
    log: Path
    child: subprocess.Popen[bytes]

    def result(self) -> JobResult:
        """How it ended."""
        code, words = self.child.returncode, process.last_line(self.log)
        reason = process.describe_exit(code) if code else ""
        return JobResult(self.job, "failed" if code else "done", code, self.device, reason, self.log, words)


def run_local(
    jobs: Sequence[Job], placement: Placement, logs: Path, progress: Progress, meanwhile: Meanwhile
) -> list[JobResult]:
    """Run jobs on the devices of this machine; see ``run_jobs``.

    Raises:
        UserError: a device is not available, or ``logs`` is on a file system without locks.
        KeyboardInterrupt: after stopping the running jobs.
    """
    devices = resolve_devices(placement.devices)
    free, waiting = deque(devices), deque(jobs)
    running: list[_Running] = []
    results: dict[str, JobResult] = {}
    with _ending(logs) as ending:
        try:
            while waiting or running:
                while waiting and free:
                    job, device = waiting.popleft(), free.popleft()
                    log, environment = logs / f"{job.name}{ending}.log", device_environment(device, devices)
                    child = process.start(job.command, log, device, environment, new_session=True)
                    running.append(_Running(job, device, log, child))
                    progress(JobEvent(job, "running", device))
                time.sleep(_POLL_SECONDS)
                meanwhile()
                for ended in [run for run in running if run.child.poll() is not None]:
                    running.remove(ended)
                    free.append(ended.device)
                    result = results[ended.job.name] = ended.result()
                    progress(JobEvent(result.job, result.end, result.place, result.reason))
        except KeyboardInterrupt:
            say(f"Stopping {len(running)} running jobs, which save their last epoch. Press Ctrl-C again to kill them.")
            raise
        finally:
            process.stop([run.child for run in running], _GRACE)
    return [results[job.name] for job in jobs]


@contextmanager
def _ending(logs: Path) -> Iterator[str]:
    """A suffix for the names of this caller's logs that no other running caller uses in the same folder."""
    for number in count(1):
        try:
            held = hold(logs / f".caller{number}.lock", timeout=0)
        except Timeout:
            continue
        with held:
            yield "" if number == 1 else f"-{number}"
        return


def resolve_devices(asked: Sequence[str]) -> tuple[str, ...]:
    """The devices to use: the requested ones, else all visible CUDA devices, else ``auto`` (the job chooses).

    Raises:
        UserError: a CUDA device is not visible.
    """
    if asked and all(device == "cpu" for device in asked):
        return tuple(asked)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        named = ",".join(map(str, range(torch.cuda.device_count())))
    listed = [part.strip() for part in named.split(",") if part.strip()]
    visible = tuple(takewhile(lambda device: not device.startswith("-"), listed))  # CUDA reads until the first invalid
    for device in asked:
        if device != "cpu" and device not in visible:
            raise unknown_name("device", device, [*visible, "cpu"], "GPUs are named by their numbers in nvidia-smi.")
    return tuple(asked) or visible or ("auto",)


def device_environment(device: str, devices: Sequence[str]) -> dict[str, str]:
    """Environment variables that keep a job on its device; several jobs on the CPU share its cores."""
    if device == "auto":
        return {}
    if device != "cpu":
        return {"CUDA_VISIBLE_DEVICES": device}
    sharing = sum(other == "cpu" for other in devices)
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // sharing))} if sharing > 1 else {}
    return {"CUDA_VISIBLE_DEVICES": "", **threads}


def cores() -> int:
    """Number of CPU cores that this process may use; ``OMP_NUM_THREADS`` may lower it."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(asked)) if asked.isdecimal() and int(asked) else there
