"""The command line: all commands, and exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

import sys

from typer.exceptions import TyperException

from ocr_toy import run_commands, study_commands
from ocr_toy.console import app, say
from ocr_toy.errors import Stopped, ToyError

__all__ = ["app", "main", "run_commands", "study_commands"]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; bad input is one line."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given or ["--help"], prog_name="python -m ocr_toy", standalone_mode=False)
    except TyperException as error:
        return _fail(f"{' '.join(error.format_message().split()).rstrip('.')}; see python -m ocr_toy --help", 2)
    except ToyError as error:
        return _fail(str(error), 2)
    except Stopped as error:
        return _fail(str(error), 130)
    except MemoryError:
        return _fail("not enough memory for a study of this size; use smaller numbers", 1)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}; choose another path", 2)
    return code or (0 if given else 2)


def _fail(message: str, code: int) -> int:
    say(f"ocr_toy: {message}")
    return code
