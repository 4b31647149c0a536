"""The error of the package that a caller is expected to cause, and its interruption."""

_LONGEST = 600


class ToyError(ValueError):
    """A specification that cannot be run: one line naming the value, what is wrong and the fix.

    A long value is cut in the middle, and control characters are escaped.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} [...] {line[-_LONGEST // 2 :]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


class Stopped(Exception):
    """Ctrl-C as an exception that typer passes on with its text."""


def require(condition: bool, message: str) -> None:
    """Raise ToyError with `message` unless `condition` holds."""
    if not condition:
        raise ToyError(message)
