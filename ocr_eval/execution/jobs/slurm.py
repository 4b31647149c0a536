"""Jobs on a Slurm cluster. Each job's Slurm name comes from its folder's path and its own name, to find it again."""

import hashlib
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import Timeout

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say
from ocr_eval.execution.jobs import End, Job, JobEvent, JobResult, Meanwhile, Placement, Progress, process
from ocr_eval.execution.jobs import slurm_queue as queue

#: Seconds between queries of Slurm: short while things change, longer while they do not.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
#: Seconds that a result may take to appear on a shared file system after Slurm reports its job as done.
_RESULT_PATIENCE = 15.0
#: Seconds to wait for another process that is submitting.
_SUBMIT_PATIENCE = 120.0
_DEFAULT_MINUTES = 240
#: Seconds of notice before a job's time is up: a minute to finish and save an epoch, and some to be requeued.
_NOTICE = 75
#: How often a job that reaches its time limit is requeued before it counts as timed out.
REQUEUES = 10
_ENDS: dict[str, End] = {"TIMEOUT": "timeout", "DEADLINE": "timeout", "CANCELLED": "cancelled", "REVOKED": "cancelled"}


def run_slurm(
    jobs: Sequence[Job], placement: Placement, logs: Path, progress: Progress, meanwhile: Meanwhile
) -> list[JobResult]:
    """Submit the jobs that are not in Slurm already, and wait for all of them; see ``run_jobs``.

    Raises:
        UserError: no Slurm here, no such partition, Slurm rejects the jobs, or another process has been submitting for
            two minutes.
        RunFailed: Slurm does not respond.
        KeyboardInterrupt: the jobs continue.
    """
    folder = (logs / "slurm").resolve()
    for value in (*placement.slurm, placement.partition or "", str(folder)):
        if not value.isprintable():  # it could break out of the job's script, which quotes only commands
            raise UserError(f"{value!r} contains a control character, which a Slurm job cannot have. Remove it.")
    flags, notice = sbatch_flags(placement)
    folder.mkdir(parents=True, exist_ok=True)
    # Jobs of a copied folder, or of another user, get other names.
    prefix = "ocr-eval-" + hashlib.sha256(f"{os.getuid()} {folder}".encode()).hexdigest()[:12]
    named = {f"{prefix}-{job.name}": job for job in jobs}
    try:
        with hold(folder / ".lock", timeout=_SUBMIT_PATIENCE):
            ids = {named[entry.name]: job_id for job_id, entry in queue.find_jobs(named).items() if entry.live}
            if ids:
                say(f"Already in Slurm: jobs {' '.join(ids.values())}")
            fresh = {name: job for name, job in named.items() if job not in ids}
            if fresh:
                added = _submit(fresh, flags, notice * 4 // 5, placement.parallel, logs.resolve(), folder)
                say(f"Submitted to Slurm: jobs {' '.join(added.values())}")
                ids |= added
    except Timeout as error:
        raise UserError(f"Another process is submitting the jobs of '{folder}'. Try again later.") from error
    results = _watch(ids, logs, folder, list(named), progress, meanwhile)
    return [results[job] for job in jobs]


def _submit(
    named: Mapping[str, Job], flags: Sequence[str], grace: int, parallel: int, logs: Path, folder: Path
) -> dict[Job, str]:
    """Submit jobs under their names; returns their ids. Each starts after the job ``parallel`` places before it.

    ``grace`` is how many seconds a command has to save its epoch once its job's time is nearly up.

    If Slurm rejects one of them, all are cancelled.
    """
    ids: dict[Job, str] = {}
    for name, job in named.items():
        before = list(ids.values())[-parallel:]
        waits = [f"--dependency=afterany:{before[0]}"] if len(before) == parallel else []
        end, log = '"$SLURM_JOB_ID".end', logs / f"{job.name}.log"
        node = [sys.executable, "-m", "ocr_eval.execution.jobs.node"]
        script = f"#!/bin/sh\nexec {shlex.join(node)} {shlex.quote(str(folder))}/{end} "
        script += shlex.join([str(log), str(REQUEUES), str(grace), *job.command])
        try:
            ids[job] = queue.submit(script, [f"--job-name={name}", f"--output={folder}/%j.out", *waits, *flags])
        except (UserError, RunFailed):
            queue.cancel(list(ids.values()))
            raise
    return ids


def sbatch_flags(placement: Placement) -> tuple[list[str], int]:
    """A placement as flags of sbatch, checked against the partition; and seconds of notice before a job's time is up.

    Raises:
        UserError: no Slurm here, no such partition, or its time limit is shorter.
        RunFailed: Slurm does not respond.
    """
    queue.require_slurm()
    partition = queue.find_partition(placement.partition)
    longest = partition.minutes or 10**9
    if placement.time_limit is not None and placement.time_limit > longest:
        # Slurm would accept the jobs but never start them
        raise UserError(
            f"--time-limit {placement.time_limit}: partition '{partition.name}' allows {partition.minutes} minutes. "
            "Give that or less; a job that needs more is requeued and resumes."
        )
    minutes = placement.time_limit or min(_DEFAULT_MINUTES, longest)
    notice = min(_NOTICE, minutes * 15)
    gpus = int(partition.has_gpus) if placement.gpus_per_job is None else placement.gpus_per_job
    given = {
        "partition": placement.partition,
        "time": minutes,
        "gpus-per-node": gpus or None,
        "cpus-per-task": placement.cpus_per_job,
        "mem": None if placement.memory_gb is None else f"{round(placement.memory_gb * 1024)}M",
        "signal": f"B:USR2@{notice}",  # Slurm may send it up to a minute early
    }
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    flags += ["--requeue", "--open-mode=append", *(f"--{one.removeprefix('--')}" for one in placement.slurm)]
    return flags, notice


def _watch(
    ids: Mapping[Job, str], logs: Path, folder: Path, names: Sequence[str], progress: Progress, meanwhile: Meanwhile
) -> dict[Job, JobResult]:
    """Wait for jobs in Slurm and return their results."""
    seen: dict[Job, tuple[str, str]] = {}
    results: dict[Job, JobResult] = {}
    pause, silent = _SHORTEST_PAUSE, False
    try:
        while True:
            before = dict(seen)
            try:
                found, silent = queue.find_jobs(names), False
                left = [job for job in ids if job not in results]
            except RunFailed as error:
                if not silent:
                    say(f"{error}; asking again")
                left, silent = [], True
            for job in left:
                entry = found.get(ids[job])
                if entry is None and not _end_file(folder, ids[job]).is_file():
                    entry = queue.find_accounted(ids[job])
                if entry is not None and entry.live:
                    now = {"PENDING": "queued"}.get(entry.state, entry.state.lower()), entry.reason
                else:
                    result = results[job] = _result(job, ids[job], "" if entry is None else entry.state, logs, folder)
                    now = result.end, result.reason
                if seen.get(job) != now:
                    seen[job] = now
                    progress(JobEvent(job, now[0], ids[job], now[1]))
            meanwhile()
            if len(results) == len(ids):
                return results
            pause = _SHORTEST_PAUSE if before != seen else min(pause * 1.5, _LONGEST_PAUSE)
            time.sleep(pause)
    except KeyboardInterrupt:
        going_on = " ".join(ids[job] for job in ids if job not in results)
        say(f"Slurm jobs {going_on} continue. Rerun the command to watch them again.")
        say(f"To cancel them: scancel {going_on}")
        raise


def _result(job: Job, job_id: str, state: str, logs: Path, folder: Path) -> JobResult:
    """How a job that left the queue ended; ``state`` is its state in Slurm, empty if Slurm no longer knows the job."""
    ended = _last_word(_end_file(folder, job_id), _RESULT_PATIENCE if state == "COMPLETED" else 1.0)
    end: End
    code: int | None = None
    if ended == "0":
        end, code, reason = "done", 0, ""
    elif ended == "timeout":
        end, reason = "timeout", "reached its time limit too often"
    elif ended in ("", "stopped") or state in _ENDS:
        end = _ENDS.get(state, "failed" if state else "lost")
        reason = f"ended in Slurm as {state}" if state else "is no longer in Slurm and left no result"
    else:
        end, code = "failed", int(ended)
        reason = process.describe_exit(code)
    log, slurms = logs / f"{job.name}.log", folder / f"{job_id}.out"
    if code is None and process.last_line(slurms) and not process.last_line(log):
        log = slurms
    words = process.last_line(log) if end in ("failed", "lost") else ""
    return JobResult(job, end, code, job_id, reason, log, words)


def _end_file(folder: Path, job_id: str) -> Path:
    """The file in which a job records how it ended (jobs/node.py)."""
    return folder / f"{job_id}.end"


def _last_word(path: Path, patience: float) -> str:
    """The last word of a file that may take seconds to appear; empty if it does not."""
    deadline = time.monotonic() + patience
    while True:
        if path in path.parent.iterdir() and (words := path.read_text().split()):  # listing makes NFS refresh a folder
            return words[-1]
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.5)
