"""Run by Slurm on a node: a job's command, until it ends or Slurm signals that the job's time is nearly up.

Arguments: a file for how the job ended, its log, how often it may be requeued, how many seconds the command then has
to save its work, and the command. The file gets ``stopped`` each time the time is up and the job is requeued, and
finally the command's exit code or ``timeout``. A job that Slurm cancels or preempts leaves no exit code.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ocr_eval.execution.jobs import process


def main(end: Path, log: Path, requeues: int, grace: float, command: list[str]) -> int:
    """Run the command; returns its exit code, or 1 if it was stopped."""
    signals: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    job = os.environ["SLURM_JOB_ID"]
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = {"OMP_NUM_THREADS": cores} if cores else {}  # the requested cores, not those of the login node
    child = process.start(command, log, f"job {job}", threads)
    while (code := child.poll()) is None and not signals:
        time.sleep(0.1)
    process.stop([child], grace)
    if not signals:
        _add(end, str(code))
        return max(code or 0, 0) or int(code != 0)
    if signal.SIGUSR2 in signals:
        if end.is_file() and end.read_text().split().count("stopped") >= requeues:
            _add(end, "timeout")
        else:
            _add(end, "stopped")
            subprocess.run(["scontrol", "requeue", job], check=True)
    return 1


def _add(path: Path, word: str) -> None:
    with path.open("a") as file:
        file.write(f"{word}\n")


if __name__ == "__main__":
    end, log, requeues, grace, *command = sys.argv[1:]
    sys.exit(main(Path(end), Path(log), int(requeues), float(grace), command))
