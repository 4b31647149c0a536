"""Writing results: folders are tested before work starts, and files appear complete or not at all."""

import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocr_toy.errors import ToyError, require

#: The largest file that is read, in bytes.
MOST_BYTES = 64 << 20


def require_folder(folder: Path) -> None:
    """Raise ToyError unless the folder is writable, or can be created."""
    try:
        with tempfile.TemporaryFile(dir=next(each for each in (folder, *folder.parents) if os.path.lexists(each))):
            pass
    except OSError as error:
        raise ToyError(f"output = {folder}: cannot be written ({error.strerror}); name another folder") from error


def require_file(path: Path) -> None:
    """Raise ToyError unless the path is free or a plain file; links are followed."""
    require(path.is_file() or not path.exists(), f"output = {path}: is not a plain file; name a file")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it. Raises ToyError as `require_file` does."""
    require_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = to_json(value) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON. Raises ToyError if the file is missing, not a plain file, too large, or not JSON."""
    require(path.is_file() or not path.exists(), f"file = {path}: is not a plain file; name a file of JSON")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        value = json.loads(content) if len(content) <= MOST_BYTES else None
    except OSError as error:
        raise ToyError(f"file = {path}: cannot be read ({error.strerror}); name an existing file") from error
    except (ValueError, RecursionError) as error:
        raise ToyError(f"file = {path}: is not JSON; write it with --json") from error
    require(len(content) <= MOST_BYTES, f"file = {path}: has more than {MOST_BYTES >> 20} MB; name a file of JSON")
    return value


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinities are rejected, because they are not JSON."""
    return json.dumps(value, indent=1, allow_nan=False)
