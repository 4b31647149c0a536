"""Warnings about unknown variables named OCR_EVAL_*: most likely typos, which would otherwise be silently ignored."""

import difflib
import os
from collections.abc import Iterator
from typing import Any

PREFIX = "OCR_EVAL_"
#: Variables without a flag; the prefix is omitted.
WITHOUT_FLAG = {"API_KEY", "CACHE"}


def warnings(root: Any) -> list[str]:
    """A line for each environment variable with our prefix that no command below ``root`` reads."""
    given = sorted(name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX))
    known = sorted(variables(root)) if given else []
    lines = []
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {PREFIX}{close[0]}?" if close else ""
            lines.append(f"{PREFIX}{name} is not a variable of ocr-eval.{hint}")
    return lines


def variables(root: Any) -> set[str]:
    """Every variable that a command reads, without the prefix."""
    found = (parameter.envvar for _, command in commands(root) for parameter in command.params)
    return WITHOUT_FLAG | {envvar.removeprefix(PREFIX) for envvar in found if envvar}


def commands(command: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    """A command and all commands below it, each with the words that call it."""
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, f"{words} {name}")
