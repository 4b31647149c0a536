"""Who works on a run's folder: a lock that the system lets go of, and signs of life for other hosts.

The lock is ``.lock``; ``.holder`` says whose it is and is touched every minute.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from ocr_eval.common import locks
from ocr_eval.common.errors import Busy, UserError
from ocr_eval.common.files import read_bytes, refuse_irregular

#: The files of whoever holds a folder.
FILES = (".holder", ".lock")
#: Seconds that a lock is waited for: one that only checks whether it is free holds it for an instant.
_GLANCE = 0.2
#: The most bytes that say who holds a folder.
_MOST_BYTES = 1 << 20
#: Seconds between signs of life of whoever holds a folder.
HEARTBEAT = 60.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a run's folder: its host, its number there, and its last sign of life."""

    host: str
    process: int
    seen: float


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, for this process; released also when the process is killed.

    The file ``.lock`` stays, unless an error ends the work before it has left anything: then no trace is left.

    Raises:
        Busy: another process holds it.
        UserError: the place of its holder is taken by something else than a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_irregular(mark := folder / ".holder")
    try:
        lock = locks.hold(folder / ".lock", timeout=_GLANCE).lock
    except Timeout as error:
        raise Busy(f"Another process is working on {folder}. Wait for it, or choose another --output-dir.") from error
    ended = threading.Event()
    mark.write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
    threading.Thread(target=_beat, args=(mark, ended), daemon=True).start()
    try:
        yield
    except BaseException:
        _remove_if_empty(folder)
        raise
    finally:
        ended.set()
        mark.unlink(missing_ok=True)
        lock.release()


def _beat(mark: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(mark)


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder and its parents up to ``runs/`` where they hold nothing but this process's lock.

    Whoever waits for the lock sees that its file is gone and makes another.
    """
    if {path.name for path in folder.iterdir()} <= set(FILES):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # the first that is not empty ends it
            for each in (folder, *folder.parents[:4]):
                each.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now; makes nothing."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with locks.hold(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def holder_of(folder: Path) -> Holder | None:
    """Who took the folder last and did not give it back; the process may have been killed since."""
    try:
        host, process = read_bytes(folder / ".holder", _MOST_BYTES).decode().split()
        return Holder(host, int(process), (folder / ".holder").stat().st_mtime)
    except (OSError, ValueError, UserError):
        return None
