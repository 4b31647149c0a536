"""Atomic writes that survive a power failure, and reads of limited size.

Only regular files are read or replaced: a pipe or device may never end, and must not be turned into a file. A symbolic
link counts as its target; if that is a regular file, reads follow the link and writes replace the link itself.
"""

import csv
import io
import json
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from ocr_eval.common.errors import UserError

T = TypeVar("T")
#: Maximum bytes of any file read, except weights; for a gzipped file, after decompression.
MOST_BYTES = 256 << 20
#: Maximum lines of a file that is read by lines.
MOST_LINES = 1_000_000


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: even after a power failure it holds either the old content or the new."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file to write, which atomically replaces ``path`` at the end.

    Raises:
        UserError: something other than a regular file is at ``path``.
    """
    refuse_irregular(path)
    scratch = _scratch(path)
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a partial file would keep a full disk full
        scratch.unlink(missing_ok=True)
        raise
    scratch.replace(path)
    sync(path.parent)


def _scratch(path: Path) -> Path:
    """An unpredictable new path in the same folder, so that no planted link is followed."""
    return path.with_name(f".{secrets.token_hex(8)}.partial")


def refuse_irregular(path: Path) -> None:
    """Raises UserError if something other than a regular file is where a file should be written."""
    try:
        mode = path.stat().st_mode
    except OSError:  # missing, or a dangling link; other problems show when writing
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"'{path}' is a folder, but a file must be written there. Remove it and start again.")
    if not stat.S_ISREG(mode):
        raise UserError(f"'{path}' is {_what(mode)}, which the output would replace. Choose another path for it.")


def _what(mode: int) -> str:
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``folder`` at the end; only then an old one is deleted."""
    scratch, old = _scratch(folder), _scratch(folder)
    scratch.mkdir()
    try:
        yield scratch
        for path in (*scratch.rglob("*"), scratch):
            if path.is_file():  # safetensors makes its files readable by their owner only
                path.chmod(scratch.stat().st_mode & 0o666)
            sync(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if folder.is_dir() and not folder.is_symlink():
        folder.rename(old)
    scratch.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file, or a folder with everything in it, if it exists.

    Raises:
        UserError: it is a pipe, a socket or a device.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        refuse_irregular(path)
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prepare_output(root: Path, flag: str = "--output-dir") -> None:
    """Create the output folder, chosen with ``flag``, and check that it is writable before any work starts.

    Raises:
        UserError: it cannot be created or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        problem = "is a file" if isinstance(error, FileExistsError) else f"cannot be written ({error.strerror})"
        raise UserError(f"The output folder '{root}' {problem}. Choose another with {flag}.") from error


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn any failure to read one of our own files into a UserError.

    Raises:
        UserError: the file is missing, unreadable or invalid.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}.gz is damaged ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} is not valid ({type(error).__name__}: {error}).") from error


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Anything else is rejected unopened: opening it may block or have side effects.

    Raises:
        UserError: it is a pipe, a socket or a device.
        OSError: it cannot be opened, or is a folder.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is {_what(mode)}, not a regular file, so it is not read. Is it the right one?")
    return path.open("rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file, without anything appended while it is read.

    Raises:
        UserError: not a regular file, or larger than ``most`` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise _too_large(path, most)
        return file.read(size)


def _too_large(path: Path, most: int) -> UserError:
    return UserError(f"{path} is larger than {most >> 20} MB, too large for a file of its kind. Is it the right one?")


def stored(path: Path) -> Path:
    """The path where a run's file is stored: ``path`` itself, or its gzipped form, ``path`` + ``.gz``."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.is_file() else path


def read_stored(path: Path) -> bytes:
    """The content of a run's file, plain or gzipped.

    Raises:
        UserError: not a regular file, or larger than ``MOST_BYTES``.
        EOFError, zlib.error: the gzipped file is damaged.
    """
    found = stored(path)
    content = read_bytes(found)
    if found == path:
        return content
    inflate = zlib.decompressobj(wbits=31)  # a single gzip stream
    unpacked = inflate.decompress(content, MOST_BYTES + 1)
    if len(unpacked) > MOST_BYTES:
        raise _too_large(found, MOST_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise EOFError("it ends too early" if not inflate.eof else "more data follows its end")
    return unpacked


def read_lines(path: Path) -> list[bytes]:
    """The lines of a run's file, with their ends. Only ``\\n`` ends a line: JSON may contain other line breaks as is.

    Raises:
        UserError: as for ``read_stored``, or more than ``MOST_LINES`` lines.
    """
    content = read_stored(path)
    if content.count(b"\n") > MOST_LINES:
        raise UserError(f"{path} has more than {MOST_LINES:,} lines, too many for a file of its kind.")
    return io.BytesIO(content).readlines()


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UserError: missing, unreadable, not JSON, nested too deeply or too large."""
    with whole(path):
        return json.loads(read_bytes(path))


_LINE = msgspec.json.Decoder(dict[str, Any])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        UserError: as for ``read_lines``, or a line is not a JSON object (names it).
    """
    return decoded(path, read_lines(path), _LINE.decode, "a JSON object")


def decoded(path: Path, lines: Iterable[bytes], decode: Callable[[bytes], T], what: str) -> list[T]:
    """Decode each line of a file. Raises UserError: a line is not ``what`` it should be (names it)."""
    found: list[T] = []
    try:
        found.extend(map(decode, lines))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}, line {len(found) + 1}: is not {what} ({error}).") from error
    return found


def to_csv(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A header and rows as csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def spreadsheet_text(value: Any) -> Any:
    """A csv value; text that a spreadsheet would read as a formula is prefixed with an apostrophe."""
    if not isinstance(value, str):
        return value
    formula = value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return "'" * formula + value.replace("\r", " ")  # the csv module does not quote it, and it would end the row


def to_jsonl(lines: list[dict[str, Any]]) -> str:
    """Objects as JSON lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
