"""Files and folders that are written whole or not at all, also where the power goes, and read within bounds.

Only regular files are read and replaced: a pipe never ends, a device has no end, and neither is to become a file. A
link counts as what it leads to; one to a regular file is read through and replaced itself.
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
#: The most bytes of a file that is read, weights aside; of a packed one, of what it holds.
MOST_BYTES = 256 << 20
#: The most lines of a file of lines.
MOST_LINES = 1_000_000


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it holds the old content or the new, never a part, also after a power cut."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes a file's place at the end, whole, also after a power cut.

    Raises:
        UserError: its place is taken by something else than a regular file.
    """
    refuse_irregular(path)
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


def refuse_irregular(path: Path) -> None:
    """Raises UserError where a folder, a pipe, a device or the like takes the place of a file to be written."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or a link to nothing; writing shows all else
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"'{path}' is a folder, but a file must be written there. Remove it and start again.")
    if not stat.S_ISREG(mode):
        raise UserError(f"'{path}' is {_what(mode)}, which a file would replace. Name another place for the output.")


def _what(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for is_one, name in kinds if is_one(mode)), "a device")


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
    """Remove a file, or a folder whole; nothing if there is neither.

    Raises:
        UserError: it is a pipe, a socket or a device.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        refuse_irregular(path)
        path.unlink(missing_ok=True)


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
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}.gz is damaged ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} is not valid ({type(error).__name__}: {error}).") from error


def open_file(path: Path) -> io.BufferedReader:
    """A regular file to read; anything else is refused before it is opened, for that may wait, or start something.

    Raises:
        UserError: it is a pipe, a socket or a device.
        OSError: it cannot be opened, or is a folder.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is {_what(mode)} and no regular file, so it is not read. Is it the right one?")
    return path.open("rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file, as long as it is now.

    Raises:
        UserError: not a regular file, or more than ``most`` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise _too_large(path, most)
        return file.read(size)


def _too_large(path: Path, most: int) -> UserError:
    return UserError(f"{path} has more than {most >> 20} MB, too much for a file of its kind. Is it the right one?")


def stored(path: Path) -> Path:
    """Where a file of a run is: at its place, or as the ``.gz`` that ``gzip`` made of it."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.is_file() else path


def read_stored(path: Path) -> bytes:
    """What a file of a run holds, at its place or packed.

    Raises:
        UserError: not a regular file, or more than ``MOST_BYTES`` bytes.
        EOFError, zlib.error: its packed form is damaged.
    """
    found = stored(path)
    content = read_bytes(found)
    if found == path:
        return content
    inflate = zlib.decompressobj(wbits=31)  # one stream, as gzip makes it
    unpacked = inflate.decompress(content, MOST_BYTES + 1)
    if len(unpacked) > MOST_BYTES:
        raise _too_large(found, MOST_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise EOFError("it ends too early" if not inflate.eof else "something follows its end")
    return unpacked


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file of a run, with their ends; only ``\\n`` ends a line, for JSON may hold others as they are.

    Raises:
        UserError: as for ``read_stored``, or there are more than ``MOST_LINES``.
    """
    content = read_stored(path)
    if content.count(b"\n") > MOST_LINES:
        raise UserError(f"{path} has more than {MOST_LINES:,} lines, too many for a file of its kind.")
    return io.BytesIO(content).readlines()


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
        UserError: as for ``read_lines``, or a line that is not a JSON object (names it).
    """
    return decoded(path, read_lines(path), _LINE.decode, "a JSON object")


def decoded(path: Path, lines: Iterable[bytes], decode: Callable[[bytes], T], what: str) -> list[T]:
    """What the lines of a file hold.

    Raises:
        UserError: a line that is not ``what`` it should be (names it).
    """
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


def to_jsonl(lines: list[dict[str, Any]]) -> str:
    """Objects as JSON lines."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
