"""Shared by all commands: the application, progress and errors on stderr, results on stdout and in a file.

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from ocr_toy.errors import ToyError

if TYPE_CHECKING:
    from ocr_toy.train import Progress

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="Run the symbolic study: factorized against merged models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn bad input into one line on stderr and exit code 2, and Ctrl-C into 130, wherever the app is mounted."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ToyError as error:
            say(f"error: {error}")
            raise typer.Exit(2) from error
        except MemoryError as error:
            say("error: not enough memory for a study of this size; use smaller numbers")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            say("interrupted")
            raise typer.Exit(130) from error

    return run


def tenths() -> "Progress":
    """Progress that prints one line per tenth of the steps."""
    said = 0

    def progress(step: int, steps: int) -> None:
        nonlocal said
        if step * 10 // steps > said:
            said = step * 10 // steps
            say(f"step {step} of {steps}")

    return progress


def emit(document: Any, as_json: bool, output: Path | None, lines: list[str]) -> None:
    """Print a document, as JSON or as lines, and write it to the output if there is one."""
    from ocr_toy.files import to_json, write_json

    if output is not None:
        write_json(output, document)
    if as_json or lines:
        print(to_json(document) if as_json else "\n".join(lines))


def prepare(output: Path | None, figures: Path | None = None) -> None:
    """Create the folders for the output. Raises ToyError if a file cannot be written."""
    from ocr_toy.files import prepare_folder, require_file

    if output is not None:
        require_file(output)
        prepare_folder(output.parent)
    if figures is not None:
        prepare_folder(figures)
