"""Run jobs side by side: as processes of this machine, one a device, or as jobs of a Slurm cluster.

A job must be safe to rerun after it was killed at any moment: that is how time limits, preemption and lost nodes are
survived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

from ocr_eval.common.errors import UserError

Executor = Literal["here", "local", "slurm"]
EXECUTORS: tuple[Executor, ...] = get_args(Executor)
#: How a job ended. ``lost``: Slurm no longer knows the job and it left no result.
End = Literal["done", "failed", "timeout", "cancelled", "lost"]


@dataclass(frozen=True)
class Placement:
    """Where jobs run and what each may use.

    Raises:
        UserError: a value that fits no machine.
    """

    executor: Executor = "here"
    #: Local: one job at a time on each; CUDA devices as nvidia-smi numbers them, or "cpu". Empty: all that are visible.
    devices: tuple[str, ...] = ()
    #: Slurm: the partition; None is the cluster's default.
    partition: str | None = None
    #: Slurm: minutes until a job is stopped and queued again, to resume where it was; None is four hours, or what the
    #: partition allows if that is less.
    time_limit: int | None = None
    #: Slurm: how often a job that reaches its time limit is queued again before it counts as timed out.
    max_requeues: int = 10
    #: Slurm: GPUs of a job; None is one where the partition has any.
    gpus_per_job: int | None = None
    #: Slurm: CPU cores of a job; None is the cluster's default.
    cpus_per_job: int | None = None
    #: Slurm: memory of a job in GB; None is the cluster's default.
    memory_gb: float | None = None
    #: Slurm: jobs that run at once at most.
    parallel: int = 256
    #: Slurm: further options of sbatch, "account=nlp" or "exclusive"; they win over those above.
    slurm_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        smallest = {
            "time-limit": (self.time_limit, 1),
            "max-requeues": (self.max_requeues, 0),
            "gpus-per-job": (self.gpus_per_job, 0),
            "cpus-per-job": (self.cpus_per_job, 1),
            "memory-gb": (self.memory_gb, 0.001),
            "parallel": (self.parallel, 1),
        }
        for flag, (value, least) in smallest.items():
            if value is not None and value < least:
                raise UserError(f"--{flag} {value}: must be at least {least}.")


@dataclass(frozen=True)
class Job:
    """A command under a name that stays the same when the work is resumed."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class JobEvent:
    """A job's state changed.

    Attributes:
        job: the job.
        state: ``queued``, ``running``, or how it ended (``End``); Slurm's own word, in lower case, for the rest.
        place: the device, or the job's id in Slurm.
        reason: why it waits or failed; may be empty.
    """

    job: Job
    state: str
    place: str
    reason: str = ""


#: Called at every change of a job's state.
Progress = Callable[[JobEvent], None]
#: Called now and then while jobs run.
Meanwhile = Callable[[], object]


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        job: the job.
        end: how it ended; ``done`` only with exit code 0.
        returncode: the command's exit code, negative for a signal; None if it never came to its end.
        place: the device, or the job's id in Slurm.
        reason: what went wrong, a few words; empty for ``done``.
        log: the file that holds its output.
        last_line: the last line that it wrote in this attempt; empty if none.
    """

    job: Job
    end: End
    returncode: int | None
    place: str
    reason: str
    log: Path
    last_line: str

    def problem(self) -> str:
        """One line on what went wrong: the job, the reason, its last words and where the rest is."""
        words = f": {self.last_line}" if self.last_line else ""
        return f"Job {self.job.name} ({self.place}) {self.reason}{words} (log: {self.log})"


def check_placement(placement: Placement) -> None:
    """Check that jobs could run where ``placement`` says; writes and submits nothing.

    Raises:
        UserError: the devices, the partition or the cluster do not exist.
        RunFailed: Slurm does not answer.
    """
    if placement.executor == "local":
        from ocr_eval.execution.jobs.local import resolve_devices

        resolve_devices(placement.devices)
    elif placement.executor == "slurm":
        _slurm().check_slurm(placement)


def run_jobs(
    jobs: Sequence[Job],
    placement: Placement,
    logs: Path,
    progress: Progress = lambda event: None,
    meanwhile: Meanwhile = lambda: None,
) -> list[JobResult]:
    """Run jobs where ``placement`` says and wait for them; the results come in the order of the jobs.

    A job that fails does not stop the others. A job that another process has in Slurm already, submitted with
    the same ``logs`` and under the same name, is not submitted again but watched.

    Args:
        jobs: what to run; names are distinct.
        placement: ``local`` or ``slurm``, and what they need; ``here`` is left to the caller.
        logs: folder for the output of the jobs, ``<name>.log`` each (``<name>-2.log`` of a second caller that is at
            work here with the same folder); Slurm's own files go to ``slurm/`` in it.
        progress: called whenever a job's state changes.
        meanwhile: called several times a second on this machine, and whenever Slurm is asked.

    Raises:
        UserError: the devices, the partition or the cluster do not exist, Slurm refuses the jobs, or the file system
            of ``logs`` has no locks.
        RunFailed: Slurm does not answer.
        KeyboardInterrupt: local jobs were stopped first; jobs in Slurm continue, and a line says how to cancel them.
    """
    assert placement.executor != "here", "jobs that run here are run by the caller"
    assert len({job.name for job in jobs}) == len(jobs), "two jobs of one name"
    if not jobs:
        return []
    logs.mkdir(parents=True, exist_ok=True)
    if placement.executor == "local":
        from ocr_eval.execution.jobs.local import run_local

        return run_local(jobs, placement, logs, progress, meanwhile)
    results: list[JobResult] = _slurm().run_slurm(jobs, placement, logs, progress, meanwhile)
    return results


def _slurm() -> ModuleType:
    """The module that speaks to Slurm.

    Raises:
        UserError: submitit is not installed.
    """
    try:
        return import_module("ocr_eval.execution.jobs.slurm")
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise UserError("--executor slurm needs submitit: pip install 'ocr-eval[cluster]'") from error
