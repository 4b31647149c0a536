"""Run jobs side by side: as processes of this machine, one a device, or as jobs of a Slurm cluster.

A job must be safe to rerun after it was killed at any moment: that is how time limits, preemption and lost nodes are
survived.
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
    """Where jobs run and what each may use. All but ``devices`` is of Slurm, with None for the cluster's default.

    Attributes:
        executor: ``here`` is left to the caller.
        devices: local: one job at a time on each; CUDA devices as nvidia-smi numbers them, or "cpu". Empty: all that
            are visible.
        time_limit: minutes until a job is stopped and queued again, to resume where it was; None is four hours, or what
            the partition allows if that is less.
        gpus_per_job: None is one where the partition has any.
        parallel: jobs that run at once at most.
        slurm: further options of sbatch, "account=nlp" or "exclusive"; they win over those above.
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
    """A command under a name that stays the same when the work is resumed."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class JobEvent:
    """A job's state changed.

    Attributes:
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
        placement: ``local`` or ``slurm``, and what they need; ``here`` is left to the caller.
        logs: folder for the output of the jobs, ``<name>.log`` each (``<name>-2.log`` of a second caller that is at
            work here with the same folder); Slurm's own files go to ``slurm/`` in it.
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
    from ocr_eval.execution.jobs.local import run_local
    from ocr_eval.execution.jobs.slurm import run_slurm

    run = run_local if placement.executor == "local" else run_slurm
    return run(jobs, placement, logs, progress, meanwhile)
