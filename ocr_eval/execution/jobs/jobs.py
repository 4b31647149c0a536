"""What the executors share: jobs, where they run, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
    #: Slurm: minutes until a job is stopped and queued again, to go on where it was; None is four hours, or what the
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
    """A command under a name that stays the same when the work is taken up again."""

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


#: Told about every change of a job's state.
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
        """One line on what went wrong: the job, the reason, its last words and where the rest stands."""
        words = f": {self.last_line}" if self.last_line else ""
        return f"Job {self.job.name} ({self.place}) {self.reason}{words} (log: {self.log})"
