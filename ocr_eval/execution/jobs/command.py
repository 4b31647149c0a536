"""What runs on a node of the cluster: the command of one job, shielded from Slurm's signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.helpers import Checkpointable, DelayedSubmission

from ocr_eval.execution.jobs import process

_OF_SLURM = (signal.SIGTERM, signal.SIGUSR2)


class CommandFailed(Exception):
    """A job's command ended with another exit code than 0."""


class Command(Checkpointable):
    """What submitit runs in a job: a command that is run again, unchanged, when the job is queued again.

    Shortly before the time limit, and on preemption where the cluster announces it, Slurm sends USR2; submitit then
    calls ``checkpoint`` and queues the job again. The command itself ignores Slurm's signals, so that it works on
    until then and its death by a signal is never taken for its result.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = tuple(command)
        self.log = log
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the command to its end.

        Raises:
            CommandFailed: its exit code is not 0.
        """
        place = f"job {os.environ.get('SLURM_JOB_ID', '?')}"
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            place = f"job {array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        threads = {"OMP_NUM_THREADS": cores} if cores else {}  # what was asked for, not what the login node has
        self._child = process.start(self._command, self.log, place, threads, ignored=_OF_SLURM)
        try:
            # not wait(): it would hold a lock that checkpoint, called from a signal handler, needs
            while (code := self._child.poll()) is None:
                time.sleep(0.2)
        finally:
            process.stop([self._child])
        if code != 0:
            raise CommandFailed(f"exit code {code}")

    def checkpoint(self) -> DelayedSubmission:
        """Stop the command; what it has finished is in its files."""
        if self._child is not None:
            process.stop([self._child])
        return DelayedSubmission(Command(self._command, self.log))
