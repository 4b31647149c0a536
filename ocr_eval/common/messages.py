"""What the user sees while work runs: lines on stderr, bars only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Switch progress lines off or on for the whole process (``--quiet``)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress is switched off."""
    return _quiet


def say(line: str) -> None:
    """One line of progress on stderr."""
    if not _quiet:
        print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """One line on stderr that ``--quiet`` does not silence: a result may not be what the user takes it for."""
    print(f"ocr-eval: warning: {line}", file=sys.stderr, flush=True)


class Ticker:
    """A counter that a terminal shows as a bar; elsewhere it is silent."""

    def __init__(self, total: int, label: str) -> None:
        from tqdm import tqdm

        hidden = _quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=label, file=sys.stderr, disable=hidden, leave=False)

    def tick(self) -> None:
        """One unit of work is done."""
        self._bar.update(1)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@contextmanager
def ticking(total: int, label: str) -> Iterator[Ticker]:
    """A ticker that is gone afterwards, whatever happens."""
    ticker = Ticker(total, label)
    try:
        yield ticker
    finally:
        ticker.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else f"{seconds:.2f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
