"""Writing results: folders tested before work starts, files that appear whole or not at all."""

import json
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocr_toy.errors import ToyError


def prepare_folder(folder: Path) -> Path:
    """Create the folder and try to write in it. Raises ToyError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ToyError(f"output = {folder}: cannot be written ({error.strerror}); name another folder") from error
    return folder


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`."""
    temporary = path.with_name(f".{secrets.token_hex(8)}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = to_json(value) + "\n"

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, fill)


def read_json(path: Path) -> Any:
    """Read JSON. Raises ToyError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToyError(f"file = {path}: cannot be read ({error.strerror}); name an existing file") from error
    except ValueError as error:
        raise ToyError(f"file = {path}: is not JSON; write it with --json") from error


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinities are refused, for they are not JSON."""
    return json.dumps(value, indent=1, allow_nan=False)
