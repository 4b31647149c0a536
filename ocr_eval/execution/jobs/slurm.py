"""Jobs of a Slurm cluster, submitted through submitit as an array, or several where the cluster limits its length."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from filelock import Timeout
from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError, FailedSubmissionError

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say
from ocr_eval.execution.jobs import End, Job, JobEvent, JobResult, Meanwhile, Placement, Progress, process
from ocr_eval.execution.jobs import slurm_queue as queue
from ocr_eval.execution.jobs.command import Command

#: Seconds between two questions to Slurm: few while something happens, more while nothing does.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
#: Seconds that a result may take to show on a shared file system after Slurm has declared its job done.
_RESULT_PATIENCE = 15.0
#: Seconds that cancelled jobs may take to be gone; Slurm itself kills them after KillWait, 30 s by default.
_CANCEL_PATIENCE = 120.0
#: Seconds to wait for another process that is submitting.
_SUBMIT_PATIENCE = 120.0
#: Seconds that the files of a job stay after it has ended, for processes that still watch it.
_KEEP = 24 * 3600.0
_DEFAULT_MINUTES = 240
_ENDS: dict[str, End] = {"TIMEOUT": "timeout", "DEADLINE": "timeout", "CANCELLED": "cancelled", "REVOKED": "cancelled"}


@dataclass(frozen=True)
class _Submitted:
    """One of our jobs in Slurm."""

    job: Job
    id: str


def check_slurm(placement: Placement) -> None:
    """Check that there is a Slurm that has room for such jobs.

    Raises:
        UserError: no Slurm here, no such partition, or one that is not open for so long.
        RunFailed: Slurm does not answer.
    """
    queue.require_slurm()
    _parameters(placement)


def run_slurm(
    jobs: Sequence[Job], placement: Placement, logs: Path, progress: Progress, meanwhile: Meanwhile
) -> list[JobResult]:
    """Submit the jobs that are not in Slurm already, and wait for all of them; see ``run_jobs``.

    Raises:
        UserError: no Slurm here, no such partition, Slurm refuses the jobs, or another process has been submitting
            for two minutes.
        RunFailed: Slurm does not answer.
        KeyboardInterrupt: the jobs continue.
    """
    queue.require_slurm()
    folder = (logs / "slurm").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # The name that all jobs of this folder have in Slurm: those of a copied folder, or of another user, have another.
    name = "ocr-eval-" + hashlib.sha256(f"{os.getuid()} {folder}".encode()).hexdigest()[:12]
    try:
        with hold(folder / ".lock", timeout=_SUBMIT_PATIENCE):
            submitted = _attach(jobs, folder, name)
            if submitted:
                say(f"In Slurm already: {_ids(list(submitted.values()))}")
            fresh = [job for job in jobs if job.name not in submitted]
            if fresh:
                added = _submit(fresh, placement, logs.resolve(), folder, name)
                submitted |= added
                say(f"Submitted to Slurm: {_ids(list(added.values()))}")
    except Timeout as error:
        raise UserError(f"Another process is submitting the jobs of '{folder}'. Try again later.") from error
    return _Watch([submitted[job.name] for job in jobs], logs, folder, name, progress).wait(meanwhile)


def _attach(jobs: Sequence[Job], folder: Path, name: str) -> dict[str, _Submitted]:
    """Those of the jobs that Slurm still has, by name; submitit's files of jobs that ended a day ago are removed.

    Raises:
        RunFailed: jobs of a submission that was cut short do not go away.
    """
    live = [job_id for job_id, entry in queue.find_jobs(name).items() if entry.live]
    handles = [SlurmJob[None](folder, job_id) for job_id in live]
    broken = [handle.job_id for handle in handles if not handle.paths.submitted_pickle.is_file()]
    if broken:  # their submitter died before it had written what they do
        _cancel(broken, name)
    by_name = {job.name: job for job in jobs}
    attached = {}
    for handle in handles:
        if handle.job_id not in broken:
            command = cast(Command, handle.submission().function)
            if (job := by_name.get(command.log.stem)) is not None:
                attached[job.name] = _Submitted(job, handle.job_id)
    arrays = {job_id.partition("_")[0] for job_id in live}
    for path in folder.iterdir():
        if path.name.partition("_")[0] not in {".lock", *arrays} and time.time() - path.lstat().st_mtime > _KEEP:
            path.unlink(missing_ok=True)
    return attached


def _cancel(ids: Sequence[str], name: str) -> None:
    """Cancel jobs and wait until they are gone.

    Raises:
        RunFailed: they do not go away.
    """
    deadline = time.monotonic() + _CANCEL_PATIENCE
    queue.cancel(ids)
    while any(entry.live for job_id, entry in queue.find_jobs(name).items() if job_id in ids):
        if time.monotonic() > deadline:
            raise RunFailed(f"A submission was cut short and its jobs are still in Slurm; cancel {' '.join(ids)}.")
        time.sleep(_SHORTEST_PAUSE)


def _submit(jobs: Sequence[Job], placement: Placement, logs: Path, folder: Path, name: str) -> dict[str, _Submitted]:
    """Submit jobs as few arrays of about one length, which share the number of jobs that run at once.

    Raises:
        UserError: Slurm refuses them, or the arrays are too many to share that number; nothing is left in Slurm.
    """
    arrays = math.ceil(len(jobs) / queue.longest_array())
    if arrays > placement.parallel:
        raise UserError(
            f"--parallel {placement.parallel}: {len(jobs)} jobs are {arrays} arrays on this cluster, each with a job "
            f"that runs. Give {arrays} or more."
        )
    submitted: dict[str, _Submitted] = {}
    for k in range(arrays):
        part = jobs[len(jobs) * k // arrays : len(jobs) * (k + 1) // arrays]
        executor = SlurmExecutor(folder, max_num_timeout=placement.max_requeues)
        share = replace(placement, parallel=(placement.parallel + k) // arrays)
        executor.update_parameters(job_name=name, **_parameters(share))
        commands = [Command(job.command, logs / f"{job.name}.log") for job in part]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                handles = executor.submit_array(commands)
        except (FailedJobError, FailedSubmissionError) as error:
            queue.cancel([one.id for one in submitted.values()])
            complaint = str(error).strip().replace("sbatch: error: ", "").replace("\n", "; ")
            raise UserError(f"Slurm refuses the jobs: {complaint}") from error
        submitted |= {job.name: _Submitted(job, handle.job_id) for job, handle in zip(part, handles, strict=True)}
    return submitted


def _parameters(placement: Placement) -> dict[str, object]:
    """A placement in submitit's words.

    Raises:
        UserError: no such partition, or one that is not open for so long.
    """
    partition = queue.find_partition(placement.partition)
    longest = partition.minutes or 10**9
    if placement.time_limit is not None and placement.time_limit > longest:
        # Slurm would take the jobs and never start them
        raise UserError(
            f"--time-limit {placement.time_limit}: partition '{partition.name}' allows {partition.minutes} minutes. "
            "Give that or less; a job that needs more is requeued and resumes."
        )
    minutes = placement.time_limit or min(_DEFAULT_MINUTES, longest)
    gpus = int(partition.has_gpus) if placement.gpus_per_job is None else placement.gpus_per_job
    options = [option.removeprefix("--").partition("=") for option in placement.slurm_options]
    memory = None if placement.memory_gb is None else f"{round(placement.memory_gb * 1024)}M"
    return {
        "partition": placement.partition,
        "time": minutes,
        "gpus_per_node": gpus or None,
        "cpus_per_task": placement.cpus_per_job,
        "mem": memory,
        "array_parallelism": placement.parallel,
        # a job needs seconds to stop; Slurm may send the signal up to a minute before it is due
        "signal_delay_s": min(60, minutes * 15),
        "stderr_to_stdout": True,
        "additional_parameters": {
            "requeue": True,
            **{key: value if equals else True for key, equals, value in options},
        },
    }


class _Watch:
    """Waits for jobs in Slurm."""

    def __init__(
        self, submitted: Sequence[_Submitted], logs: Path, folder: Path, name: str, progress: Progress
    ) -> None:
        self._submitted = submitted
        self._logs, self._folder, self._name = logs, folder, name
        self._progress = progress
        self._seen: dict[str, tuple[str, str]] = {}
        self._results: dict[str, JobResult] = {}
        self._silent = False

    def wait(self, meanwhile: Meanwhile) -> list[JobResult]:
        """The results of all jobs, in their order."""
        pause = _SHORTEST_PAUSE
        try:
            while True:
                changed = self._look()
                meanwhile()
                if len(self._results) == len(self._submitted):
                    return [self._results[one.id] for one in self._submitted]
                pause = _SHORTEST_PAUSE if changed else min(pause * 1.5, _LONGEST_PAUSE)
                time.sleep(pause)
        except KeyboardInterrupt:
            left = [one for one in self._submitted if one.id not in self._results]
            arrays = " ".join(sorted({one.id.split("_")[0] for one in left}))
            say(f"The jobs continue in Slurm: {_ids(left)}. The same command watches them again.")
            say(f"To cancel them: scancel {arrays}")
            raise

    def _look(self) -> bool:
        """Ask Slurm once; whether anything has changed."""
        left = [one for one in self._submitted if one.id not in self._results]
        try:
            found = queue.find_jobs(self._name)
        except RunFailed as error:
            if not self._silent:
                say(f"{error}; asking again")
            self._silent = True
            return False
        self._silent = False
        before = dict(self._seen)
        for one in left:
            entry = found.get(one.id)
            if entry is None and not SlurmJob[None](self._folder, one.id).paths.result_pickle.is_file():
                entry = queue.find_accounted(one.id)
            if entry is not None and entry.live:
                self._tell(one, {"PENDING": "queued"}.get(entry.state, entry.state.lower()), entry.reason)
                continue
            result = self._result(one, "" if entry is None else entry.state)
            self._results[one.id] = result
            self._tell(one, result.end, result.reason)
        return before != self._seen

    def _tell(self, one: _Submitted, state: str, reason: str) -> None:
        if self._seen.get(one.id) != (state, reason):
            self._seen[one.id] = (state, reason)
            self._progress(JobEvent(one.job, state, one.id, reason))

    def _result(self, one: _Submitted, state: str) -> JobResult:
        """How a job ended that Slurm has done with.

        Args:
            one: the job.
            state: Slurm's word for it, empty if it has forgotten the job.
        """
        handle = SlurmJob[None](self._folder, one.id)
        error = _error_of(handle, _RESULT_PATIENCE if state == "COMPLETED" else 1.0)
        end: End
        code: int | None = None
        if error == "":
            end, code, reason = "done", 0, ""
        elif error is None or state in _ENDS:
            end = _ENDS.get(state, "failed" if state else "lost")
            reason = f"ended in Slurm as {state}" if state else "is no longer in Slurm and left no result"
        elif match := re.search(r"CommandFailed: exit code (-?\d+)", error):
            end, code = "failed", int(match[1])
            reason = process.describe_exit(code)
        elif "timed-out too many times" in error:
            end, reason = "timeout", "reached its time limit too often"
        else:
            end, reason = "failed", f"could not run ({error.splitlines()[-1]})"
        log = self._logs / f"{one.job.name}.log"
        if code is None and handle.paths.stdout.is_file() and not process.last_line(log):
            log = handle.paths.stdout
        words = process.last_line(log) if end in ("failed", "lost") else ""
        return JobResult(one.job, end, code, one.id, reason, log, words)


def _error_of(handle: SlurmJob[None], patience: float) -> str | None:
    """What a finished job reported: empty for success, the trace of its error, or None if it left nothing."""
    deadline = time.monotonic() + patience
    while handle.paths.folder.is_dir():
        list(handle.paths.folder.iterdir())  # makes NFS look again
        if handle.paths.result_pickle.is_file():
            error = handle.exception()  # submitit frames the trace with lines of dashes
            return "" if error is None else re.split(r"^-{10,}$", str(error), flags=re.MULTILINE)[1].strip()
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return None


def _ids(submitted: Sequence[_Submitted]) -> str:
    """Job ids as a person would say them: ``job 12 (5 tasks), job 14``."""
    counts: dict[str, int] = {}
    for one in submitted:
        array = one.id.split("_")[0]
        counts[array] = counts.get(array, 0) + 1
    return ", ".join(f"job {array} ({n} tasks)" if n > 1 else f"job {array}" for array, n in counts.items())
