"""Progress output on stderr: lines, and on a terminal also bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm

_quiet = False


def in_a_row(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def be_quiet(quiet: bool) -> None:
    """Turn progress output off or on for the whole process (``--quiet``)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress output is off."""
    return _quiet


def say(line: str) -> None:
    """Print a line of progress, unless quiet."""
    if not _quiet:
        print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning, even with ``--quiet``: a result may not mean what the user expects."""
    print(f"ocr-eval: warning: {line}", file=sys.stderr, flush=True)


def progress_bar(total: int, label: str) -> tqdm[NoReturn]:
    """A progress bar for a ``with`` block; ``update()`` it per unit of work. Only on a terminal, cleared at the end."""
    from tqdm import tqdm

    hidden = _quiet or not sys.stderr.isatty()
    return tqdm(total=total, desc=label, file=sys.stderr, disable=hidden, leave=False)


def duration(seconds: float) -> str:
    """A readable duration: ``0.35 s``, ``12 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else f"{seconds:.2f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
