"""Who is working on a run's folder: a lock that the system releases, and a heartbeat for other hosts.

The lock is ``.lock``; ``.holder`` says who holds it and is touched every minute.
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

#: The files that a holder makes.
FILES = (".holder", ".lock")
#: Seconds to wait for a lock: a process that only checks whether it is free holds it for an instant.
_GLANCE = 0.2
#: Largest ``.holder`` that is read, in bytes.
_MOST_BYTES = 1 << 20
#: Seconds between heartbeats of the holder.
HEARTBEAT = 60.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a run's folder: its host, its process id there, and its last heartbeat (a timestamp)."""

    host: str
    process: int
    seen: float


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Create a folder and hold it for this process; a killed process releases it, too.

    The file ``.lock`` stays, except after an error before anything else was written: then the folder is removed.

    Raises:
        Busy: another process holds it.
        UserError: the path of ``.holder`` is taken by something that is not a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_irregular(mark := folder / ".holder")
    try:
        lock = locks.hold(folder / ".lock", timeout=_GLANCE).lock
    except Timeout as error:
        raise Busy(f"Another process is working on {folder}. Wait for it, or choose another --output-dir.") from error
    ended = threading.Event()
    mark.write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
    heart = threading.Thread(target=_beat, args=(mark, ended), daemon=True)
    heart.start()
    try:
        yield
    except BaseException:
        _remove_if_empty(folder)
        raise
    finally:
        ended.set()
        mark.unlink(missing_ok=True)
        heart.join()  # a last beat must not touch the next holder's mark
        lock.release()


def _beat(mark: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(mark)


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder, and its parents up to ``runs/``, if it contains nothing but this process's lock.

    A process that waits for the lock notices that its file is gone and makes another.
    """
    if {path.name for path in folder.iterdir()} <= set(FILES):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # stops at the first that is not empty
            for each in (folder, *folder.parents[:4]):
                each.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now; creates no file."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with locks.hold(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def holder_of(folder: Path) -> Holder | None:
    """Who took the folder last and did not release it; the process may have been killed since."""
    try:
        host, process = read_bytes(folder / ".holder", _MOST_BYTES).decode().split()
        return Holder(host, int(process), (folder / ".holder").stat().st_mtime)
    except (OSError, ValueError, UserError):
        return None
