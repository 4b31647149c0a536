"""What the user sees while work runs: lines on stderr, bars only on a terminal."""

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


def progress_bar(total: int, label: str) -> tqdm[NoReturn]:
    """A bar for a ``with``, to ``update()`` once a unit of work: on a terminal only, and gone afterwards."""
    from tqdm import tqdm

    hidden = _quiet or not sys.stderr.isatty()
    return tqdm(total=total, desc=label, file=sys.stderr, disable=hidden, leave=False)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else f"{seconds:.2f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
