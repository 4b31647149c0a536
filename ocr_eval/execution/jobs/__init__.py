"""Run jobs side by side: as processes of this machine, one a device, or as jobs of a Slurm cluster.

What a job does is its own affair. It must be safe to run again after it was killed at any moment, for that is how
time limits, preemption and lost nodes are survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ocr_eval.common.errors import UserError
from ocr_eval.execution.jobs.jobs import EXECUTORS, Executor, Job, JobEvent, JobResult, Meanwhile, Placement, Progress

__all__ = [
    "EXECUTORS",
    "Executor",
    "Job",
    "JobEvent",
    "JobResult",
    "Meanwhile",
    "Placement",
    "Progress",
    "check_placement",
    "run_jobs",
]


def check_placement(placement: Placement) -> None:
    """Look whether jobs could run where ``placement`` says; writes and submits nothing.

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
        placement: ``local`` or ``slurm``, and what they need; ``here`` is the caller's own affair.
        logs: folder for the output of the jobs, ``<name>.log`` each (``<name>-2.log`` of a second caller that is at
            work here with the same folder); Slurm's own files go to ``slurm/`` in it.
        progress: called whenever a job's state changes.
        meanwhile: called several times a second on this machine, and whenever Slurm is asked.

    Raises:
        UserError: the devices, the partition or the cluster do not exist, Slurm refuses the jobs, or the file system
            of ``logs`` has no locks.
        RunFailed: Slurm does not answer.
        KeyboardInterrupt: local jobs were stopped first; jobs in Slurm go on, and a line says how to cancel them.
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
