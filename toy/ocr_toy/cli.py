"""The command line: all commands, and exit codes."""

import sys

from typer.exceptions import TyperException

from ocr_toy import run_commands, study_commands
from ocr_toy.console import app, say

__all__ = ["app", "main", "run_commands", "study_commands"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a mistyped option is one line, like all bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given or ["--help"], prog_name="python -m ocr_toy", standalone_mode=False)
    except TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        say(f"error: {message}; see python -m ocr_toy --help")
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        say(f"error: {error.filename}: {error.strerror}; choose another path")
        return 2
    return code or (0 if given else 2)
