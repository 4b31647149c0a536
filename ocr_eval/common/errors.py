"""Exceptions that the command line reports in one line, and helpers that word them."""

import difflib
import reprlib
from collections.abc import Iterable

#: Maximum length of an error. Longer ones are cut in the middle, because the fix is at the end.
_LONGEST = 1000
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


def one_line(text: str) -> str:
    """The text on one line that is safe to print: shortened if very long, control characters escaped."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """``repr`` of a value, abbreviated where it is long or deeply nested."""
    return _REPR.repr(value)


class UserError(Exception):
    """Bad input. The message is one line: the value, what is wrong, what is available, and the fix.

    The command line prints it without a traceback and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Busy(UserError):
    """Another process is using what this one would write."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during runs. The message is one line: where the same command would resume them."""


class RunFailed(Exception):
    """Work that started but could not be finished (exit code 1). The message is one line."""


class TooLarge(Exception):
    """Not even one example per lane fits into memory. The message is the library's."""


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


#: What else people call a device.
_MEANT = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"}


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that a user probably meant; None if none is close."""
    names, meant = list(names), _MEANT.get(name.lower())
    for word in (meant, name.lower()):
        if word in names:
            return word
    others = [each for each in names if meant is None or each != "cpu"]  # one letter from gpu
    return next(iter(difflib.get_close_matches(name, others, n=1)), None)


def unknown_name(kind: str, name: str, available: Iterable[str], fix: str = "") -> UserError:
    """The error for an unknown name of some kind ("model"): the closest name, what is available, and the fix."""
    names = sorted(available)
    close = closest(name, names)
    hint = f" Did you mean '{close}'?" if close else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}. {fix}")
