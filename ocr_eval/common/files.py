"""Files and folders that are written whole or not at all, also where the power goes."""

import gzip
import json
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from ocr_eval.common.errors import UserError

#: The most bytes of a file that is read at once, weights aside.
MOST_BYTES = 256 << 20


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it holds the old content or the new, never a part, also after a power cut."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes a file's place at the end, whole, also after a power cut.

    Raises:
        UserError: a folder is in its place.
    """
    refuse_folder(path)
    beside = _beside(path)
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a part of a file would keep a full disk full
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)
    sync(path.parent)


def _beside(path: Path) -> Path:
    """A name in a path's folder that nobody else can have taken or foreseen; who makes it follows no link."""
    return path.with_name(f".{secrets.token_hex(8)}.partial")


def refuse_folder(path: Path) -> None:
    """Raises UserError if a folder is where a file is to be written."""
    if path.is_dir():
        raise UserError(f"'{path}' is a folder, but a file must be written there. Remove it and start again.")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which is there at the end, whole, also after a power cut; an old one goes first."""
    beside = _beside(folder)
    shutil.rmtree(folder, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for path in (*beside.rglob("*"), beside):
            if path.is_file():  # safetensors lets nobody else read what it writes
                path.chmod(beside.stat().st_mode & 0o666)
            sync(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    beside.rename(folder)
    sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder whole; nothing if there is neither."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prepare_output(root: Path, flag: str = "--output-dir") -> None:
    """Make the output folder, which the user chose with ``flag``, and try to write into it before any work starts.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"The output folder '{root}' cannot be written ({error.strerror}). Choose another with {flag}."
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Reading a file of ours.

    Raises:
        UserError: the file is missing, cannot be read, or does not hold what it should.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}.gz is damaged ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} is not valid ({type(error).__name__}: {error}).") from error


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Raises:
        UserError: it has more than ``most`` bytes.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most >> 20} MB, too much for a file of its kind. Is it the right one?")
    return content


def stored(path: Path) -> Path:
    """Where a file of a run is: at its place, or as the ``.gz`` that ``gzip`` made of it."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.is_file() else path


def open_stored(path: Path) -> IO[bytes] | gzip.GzipFile:
    """A file of a run to read, at its place or as the ``.gz`` that ``gzip`` made of it."""
    found = stored(path)
    return found.open("rb") if found == path else gzip.open(found)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: missing, not readable, not JSON, nested too deeply or too large.
    """
    with whole(path):
        return json.loads(read_bytes(path))


_LINE = msgspec.json.Decoder(dict[str, Any])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        UserError: a line that is not a JSON object (names it).
    """
    lines: list[dict[str, Any]] = []
    with open_stored(path) as file:  # not splitlines of its text, which parts U+2028 too, and JSON holds that as it is
        try:
            lines.extend(map(_LINE.decode, file))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {len(lines) + 1}: is not a JSON object ({error}).") from error
    return lines


def to_jsonl(lines: list[dict[str, Any]]) -> str:
    """Objects as JSON lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
