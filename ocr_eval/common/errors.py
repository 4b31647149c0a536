"""The one exception that means "the user can fix this", and the sentences it is made of."""

import difflib
import reprlib
from collections.abc import Iterable

#: The most characters of an error; the fix is at its end, so a longer one loses its middle.
_LONGEST = 1000
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100


def one_line(text: str) -> str:
    """A text as one line that a terminal shows as it is: of readable length and without control characters."""
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is long, many or deep."""
    return _REPR.repr(value)


class UserError(Exception):
    """Bad input. Its text is one line: the value, what is wrong, what exists, and the fix.

    The command line prints it without a traceback and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Busy(UserError):
    """What is to be written is held by another process."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, while runs were in work; the text is one line: from where the same command resumes them."""


class RunFailed(Exception):
    """Work that started and could not be finished (exit code 1); the text is one line."""


class TooLarge(Exception):
    """One example a lane does not fit into the memory; its text is the library's reason."""


def reason_of(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def unknown_name(kind: str, name: str, available: Iterable[str], fix: str = "") -> UserError:
    """The error for an unknown name of a kind ("model"): the name, the closest one, what exists, and a way out."""
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}. {fix}")
