"""Variables named OCR_EVAL_* that are not ours: most likely a typo, which would otherwise have no effect in silence."""

import difflib
import os
from collections.abc import Iterator
from typing import Any

PREFIX = "OCR_EVAL_"
#: Variables that belong to no flag, without the prefix.
WITHOUT_FLAG = {"API_KEY", "CACHE"}


def warnings(root: Any) -> list[str]:
    """A line for each variable in the environment that has our prefix and that no command below ``root`` reads."""
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
    """A command and all commands below it, each after the words that call it."""
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, f"{words} {name}")
