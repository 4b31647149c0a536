"""Shared by all commands: the application, progress on stderr, results on stdout and in a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from ocr_toy.errors import Stopped

if TYPE_CHECKING:
    from ocr_toy.train import Progress


class _Commands(TyperGroup):
    """All commands. None of them resumes, which an interruption would otherwise promise as a part of ocr-eval."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped("Interrupted.") from error


app = typer.Typer(
    cls=_Commands,
    help="Run the symbolic study: factorized against merged models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


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
    """Raise ToyError if the output cannot be written. Folders are created with their files, so none for bad input."""
    from ocr_toy.files import require_file, require_folder

    if output is not None:
        require_file(output)
        require_folder(output.parent)
    if figures is not None:
        require_folder(figures)
