"""One command as a child process whose output goes to a log that later attempts append to."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_MARK = "=== "
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def start(
    command: Sequence[str],
    log: Path,
    place: str,
    environment: Mapping[str, str],
    prepare: Callable[[], object],
) -> subprocess.Popen[bytes]:
    """Start a command, with a line in the log that says where and when.

    On Linux it does not outlive this process, even one that is killed; elsewhere it then goes on to its end.

    Args:
        command: program and arguments.
        log: file for both output streams.
        place: the device or job that the log names.
        environment: variables on top of this process's own.
        prepare: called in the child first.
    """
    with log.open("ab") as output:
        header = f"{_MARK}{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} {place}: {' '.join(command)}\n"
        output.write(header.encode())
        output.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=_before(prepare),
        )


def _before(prepare: Callable[[], object]) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
    parent = os.getpid()

    def in_child() -> None:
        prepare()
        if prctl is not None:
            prctl(_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the signal was asked for
                os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def stop(processes: Sequence[subprocess.Popen[bytes]], grace: float = 10.0) -> None:
    """Interrupt children as Ctrl-C would, and kill those that are still there after ``grace`` seconds."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + grace
    try:
        while time.monotonic() < deadline and any(process.poll() is None for process in alive):
            time.sleep(0.05)
    finally:  # also when Ctrl-C is pressed once more
        for process in alive:
            if process.poll() is None:
                process.kill()
                process.wait()


def last_line(log: Path) -> str:
    """The last line that the latest attempt wrote; empty if it wrote none or there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    line = next((line for line in reversed(lines) if line), "")
    return "" if line.startswith(_MARK) else line


def describe_exit(returncode: int) -> str:
    """``ended with exit code 2`` or ``was killed by SIGKILL``."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
