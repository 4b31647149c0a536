"""Run jobs side by side: as processes on this machine, one per device, or as jobs on a Slurm cluster.

A job must be safe to rerun after being killed at any moment; this is how it survives time limits, preemption and node
failures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Executor = Literal["here", "local", "slurm"]
#: How a job ended. ``lost``: Slurm no longer knows the job and it left no result.
End = Literal["done", "failed", "timeout", "cancelled", "lost"]


@dataclass(frozen=True)
class Placement:
    """Where jobs run and what each may use. All but ``devices`` applies to Slurm; None is the cluster's default.

    Attributes:
        executor: ``here`` is handled by the caller.
        devices: for ``local``: one job at a time on each; CUDA devices as numbered by nvidia-smi, or "cpu". Empty: all
            visible ones.
        time_limit: minutes until a job is stopped and requeued, to resume; None is four hours, or the partition's limit
            if that is less.
        gpus_per_job: None is one if the partition has GPUs.
        parallel: the most jobs that run at once.
        slurm: further options of sbatch, such as "account=nlp" or "exclusive"; they override those above.
    """

    executor: Executor = "here"
    devices: tuple[str, ...] = ()
    partition: str | None = None
    time_limit: int | None = None
    gpus_per_job: int | None = None
    cpus_per_job: int | None = None
    memory_gb: float | None = None
    parallel: int = 256
    slurm: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A command with a name that stays the same when the work is resumed."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class JobEvent:
    """A job's state changed.

    Attributes:
        state: ``queued``, ``running``, or how it ended (``End``); for other states Slurm's name in lower case.
        reason: why it is waiting or failed; may be empty.
    """

    job: Job
    state: str
    place: str
    reason: str = ""


#: Called whenever a job's state changes.
Progress = Callable[[JobEvent], None]
#: Called regularly while jobs run.
Meanwhile = Callable[[], object]


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        end: ``done`` only with exit code 0.
        returncode: the command's exit code, negative for a signal; None if it never ended by itself.
        place: the device, or the job's Slurm id.
        reason: what went wrong, in a few words; empty for ``done``.
        log: the file with its output.
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
        """One line on what went wrong: the job, the reason, its last line, and the log."""
        words = f": {self.last_line}" if self.last_line else ""
        return f"Job {self.job.name} ({self.place}) {self.reason}{words} (log: {self.log})"


def run_jobs(
    jobs: Sequence[Job],
    placement: Placement,
    logs: Path,
    progress: Progress = lambda event: None,
    meanwhile: Meanwhile = lambda: None,
) -> list[JobResult]:
    """Run jobs as ``placement`` says and wait for them; results are in the order of the jobs.

    A job that fails does not stop the others. A job that is already in Slurm, submitted with the same ``logs`` and
    name, is not submitted again but watched.

    Args:
        placement: ``local`` or ``slurm``, with their settings; ``here`` is handled by the caller.
        logs: folder for the jobs' output, ``<name>.log`` each (``<name>-2.log`` for a second caller that uses the same
            folder at the same time); Slurm's own files go to ``slurm/`` in it.
        meanwhile: called several times a second for local jobs, and after every query of Slurm.

    Raises:
        UserError: the devices, the partition or the cluster do not exist, Slurm rejects the jobs, or the file system
            of ``logs`` does not support locks.
        RunFailed: Slurm does not respond.
        KeyboardInterrupt: local jobs were stopped first; Slurm jobs continue, and a message says how to cancel them.
    """
    assert placement.executor != "here", "jobs that run here are run by the caller"
    assert len({job.name for job in jobs}) == len(jobs), "two jobs with the same name"
    if not jobs:
        return []
    logs.mkdir(parents=True, exist_ok=True)
    from ocr_eval.execution.jobs.local import run_local
    from ocr_eval.execution.jobs.slurm import run_slurm

    run = run_local if placement.executor == "local" else run_slurm
    return run(jobs, placement, logs, progress, meanwhile)
