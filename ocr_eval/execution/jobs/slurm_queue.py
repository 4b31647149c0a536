"""Calls of Slurm's commands: partitions, submission, and the states of jobs by name.

All but ``require_slurm`` and ``find_accounted`` raise RunFailed if Slurm does not respond.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ocr_eval.common.errors import RunFailed, UserError, unknown_name

#: States that a job never leaves.
FINAL_STATES = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)


@dataclass(frozen=True)
class QueueEntry:
    """A job in Slurm: its name, its state as Slurm calls it, and why it is waiting or ended, if known."""

    name: str
    state: str
    reason: str

    @property
    def live(self) -> bool:
        """Whether it is running or may still run."""
        return self.state not in FINAL_STATES


def require_slurm() -> None:
    """Raise a UserError if this machine cannot submit jobs."""
    missing = [program for program in ("sbatch", "squeue", "scancel") if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"--executor slurm: there is no '{missing[0]}' on PATH. Start it on a login node of the cluster, "
            "or use --executor local for the devices of this machine."
        )


@dataclass(frozen=True)
class Partition:
    """A partition: whether any of its nodes has GPUs, and its time limit in minutes (None: no limit)."""

    name: str
    has_gpus: bool
    minutes: int | None


def find_partition(wanted: str | None) -> Partition:
    """A partition by name; None is the cluster's default.

    Raises:
        UserError: there is no such partition, or no default.
    """
    partitions: dict[str, Partition] = {}
    for line in _ask("sinfo", "--noheader", "--format=%P|%l|%G").splitlines():  # one line per kind of node
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


def submit(script: str, flags: Sequence[str]) -> str:
    """Submit a script; returns its job id.

    Raises:
        UserError: Slurm rejects it.
    """
    done = _run(["sbatch", "--parsable", *flags], script)
    if done.returncode != 0:
        complaint = done.stderr.strip().replace("sbatch: error: ", "").replace("\n", "; ")
        raise UserError(f"Slurm refuses the jobs: {complaint}")
    return done.stdout.strip().partition(";")[0]


def find_jobs(names: Iterable[str]) -> dict[str, QueueEntry]:
    """The jobs with these names that the controller knows, by id; it keeps finished ones for a while."""
    entries, wanted = {}, set(names)
    # all of the user's: the names of thousands of jobs would be too long for a command line
    answer = _ask("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%r|%j")
    for line in answer.splitlines():
        job_id, state, reason, name = line.strip().split("|", 3)
        if name in wanted:
            entries[job_id] = QueueEntry(name, state, "" if reason == "None" else reason)
    return entries


def find_accounted(job_id: str) -> QueueEntry | None:
    """A job that the controller no longer knows, from the cluster's accounting; None if that is not available."""
    try:
        answer = _ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}")
    except RunFailed:
        return None
    return QueueEntry("", answer.split()[0], "") if answer.split() else None


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs by their ids."""
    if ids:
        _ask("scancel", *ids)


def _ask(*command: str) -> str:
    done = _run(command)
    if done.returncode != 0:
        raise RunFailed(f"Slurm does not answer: {command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _run(command: Sequence[str], script: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"Slurm does not answer: {command[0]}: {error}") from error
