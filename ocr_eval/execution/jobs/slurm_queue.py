"""What Slurm says: partitions, and the states of jobs by the name they were submitted under."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ocr_eval.common.errors import RunFailed, UserError, unknown_name

#: States that a job does not leave again.
FINAL_STATES = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)


@dataclass(frozen=True)
class QueueEntry:
    """A job in Slurm: its state, in Slurm's word, and why it waits or ended, if there is a reason."""

    state: str
    reason: str

    @property
    def live(self) -> bool:
        """Whether it runs or may still run."""
        return self.state not in FINAL_STATES


def require_slurm() -> None:
    """Raise a UserError if this machine cannot submit jobs."""
    missing = [program for program in ("sbatch", "srun", "squeue", "scancel") if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"--executor slurm: there is no '{missing[0]}' on PATH. Start it on a login node of the cluster, "
            "or use --executor local for the devices of this machine."
        )


@dataclass(frozen=True)
class Partition:
    """A partition: whether any of its nodes has GPUs, and its time limit in minutes (None: none)."""

    name: str
    has_gpus: bool
    minutes: int | None


def find_partition(wanted: str | None) -> Partition:
    """A partition by name; None is the cluster's default.

    Raises:
        UserError: there is no such partition, or no default.
        RunFailed: Slurm does not answer.
    """
    partitions: dict[str, Partition] = {}
    for line in _ask("sinfo", "--noheader", "--format=%P|%l|%G").splitlines():  # a line for each kind of node
        name, limit, gres = line.strip().split("|", 2)
        if name.endswith("*") and wanted is None:
            wanted = name.removesuffix("*")
        name = name.removesuffix("*")
        has_gpus = "gpu" in gres or (name in partitions and partitions[name].has_gpus)
        partitions[name] = Partition(name, has_gpus, _minutes(limit))
    if wanted is None:
        raise UserError(f"The cluster has no default partition. Choose one with --partition: {', '.join(partitions)}.")
    if wanted not in partitions:
        raise unknown_name("partition", wanted, partitions, "('sinfo' lists them.)")
    return partitions[wanted]


def _minutes(limit: str) -> int | None:
    """The minutes of Slurm's ``[days-][[hours:]minutes:]seconds``; None for ``infinite``."""
    days, _, clock = limit.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
    except ValueError:
        return None
    hours, minutes, _ = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes


def longest_array() -> int:
    """How many jobs one array may have.

    Raises:
        RunFailed: Slurm does not answer.
    """
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(limit[1])) if limit else 1  # 0: no arrays on this cluster


def find_jobs(name: str) -> dict[str, QueueEntry]:
    """The jobs of this name that the controller remembers, by id (``12`` or ``12_0``); finished ones for a while.

    Raises:
        RunFailed: Slurm does not answer.
    """
    entries = {}
    answer = _ask("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r")
    for line in answer.splitlines():
        job_id, state, reason = line.strip().split("|", 2)
        entries[job_id] = QueueEntry(state, "" if reason == "None" else reason)
    return entries


def find_accounted(job_id: str) -> QueueEntry | None:
    """A job that the controller does not name, where the cluster keeps accounts; else None."""
    try:
        answer = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}")
    except RunFailed:
        return None
    return QueueEntry(answer.split()[0], "") if answer.split() else None


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs by their ids.

    Raises:
        RunFailed: Slurm does not answer.
    """
    if ids:
        _ask("scancel", *ids)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"Slurm does not answer: {command[0]}: {error}") from error
    if done.returncode != 0:
        raise RunFailed(f"Slurm does not answer: {command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
