"""What may be in the place of a file without being one, and a limit on how long a call may take."""

from __future__ import annotations

import os
import signal
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

#: Seconds of a processor that a call may take, and seconds in all: a call that waits forever uses no processor.
LONGEST, LONGEST_WAIT = 30, 120


class TooLong(BaseException):
    """A call that does not end."""


@contextmanager
def in_time(longest: float = LONGEST) -> Iterator[None]:
    """Raises TooLong where a call takes more than ``longest`` seconds of a processor, or waits forever."""

    def too_long(*_: object) -> None:
        raise TooLong

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, longest), signal.ITIMER_REAL: (signal.SIGALRM, LONGEST_WAIT)}
    before = {number: signal.signal(number, too_long) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@cache
def _bomb(part: bytes, times: int) -> bytes:
    deflate = zlib.compressobj(1, wbits=31)
    return b"".join([*(deflate.compress(part) for _ in range(times)), deflate.flush()])


def as_a_folder(path: Path) -> None:
    """A folder."""
    path.unlink()
    path.mkdir()


def as_a_pipe(path: Path) -> None:
    """A pipe that nobody writes into."""
    path.unlink()
    os.mkfifo(path)


def as_a_socket(path: Path) -> None:
    """A socket, bound by its name alone, for a path may be longer than the address of one can be."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        folder = os.open(path.parent, os.O_DIRECTORY)
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def as_endless(path: Path) -> None:
    """A link to a device that has no end."""
    path.unlink()
    path.symlink_to("/dev/zero")


def as_a_bomb(path: Path) -> None:
    """The packed form of a file, a megabyte that holds 300 MB."""
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(_bomb(bytes(1 << 20), 300))


def as_lines_without_end(path: Path) -> None:
    """The packed form of a file, 300 kB that hold twenty million objects."""
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(_bomb(b"{}\n" * 1_000_000, 20))


def as_a_link(path: Path, to: str) -> None:
    """A link."""
    path.unlink()
    path.symlink_to(to)


#: What a file that is read may turn into.
IRREGULAR: list[Callable[[Path], None]] = [
    *(as_a_folder, as_a_pipe, as_a_socket, as_endless, as_a_bomb, as_lines_without_end)
]
