"""A command as a child process whose output is appended to a log, over all attempts."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import open_file, refuse_irregular

_MARK = "=== "
#: A script that becomes the command. Popen gets no preexec_fn, which is unsafe because this process may have threads.
_CHILD = Path(__file__).with_name("child.py")


def start(
    command: Sequence[str], log: Path, place: str, environment: Mapping[str, str], new_session: bool = False
) -> subprocess.Popen[bytes]:
    """Start a command, with a line in the log that says where (``place``) and when.

    On Linux it does not outlive this process, even if this is killed; elsewhere it would run to its end. Its
    environment is added to this process's own; a new session is not reached by Ctrl-C in this terminal.

    Raises:
        UserError: the log's path is taken by something that is not a file.
    """
    refuse_irregular(log)
    with log.open("ab") as output:
        header = f"{_MARK}{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} {place}: {' '.join(command)}\n"
        output.write(header.encode())
        output.flush()
        return subprocess.Popen(
            [sys.executable, "-SP", str(_CHILD), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in (os.environ | environment).items() if name != "OCR_EVAL_CONFIG"},
            start_new_session=new_session,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Interrupt children as Ctrl-C would, and kill those still running after ``grace`` seconds."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + grace
    try:
        while time.monotonic() < deadline and any(process.poll() is None for process in alive):
            time.sleep(0.05)
    finally:  # also if Ctrl-C is pressed again
        for process in alive:
            if process.poll() is None:
                process.kill()
                process.wait()


def last_line(log: Path) -> str:
    """The last line that the latest attempt wrote; empty if it wrote none or there is no log."""
    try:
        with open_file(log) as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in file.read(8192).decode(errors="replace").splitlines()]
    except (OSError, UserError):
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
