"""Faults around every command that writes: a full disk, bad places, links, a clock that goes back, two at once."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accidents import as_a_pipe, in_time
from commands import COMMANDS, WRITING, World, make_world

from ocr_eval.cli.app import run

#: Those whose writing is a moment's work, and one of those that train: what carries out runs is one for all.
QUICK = [command for command in WRITING if command.words not in ("controls", "curve", "sweep")]


@pytest.fixture(scope="module")
def made(model_files, tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("faults") / "world", model_files["llama"])


@pytest.fixture
def world(made, tmp_path) -> World:
    return made.copy(tmp_path / "world")


def by_words(commands):
    return pytest.mark.parametrize("command", commands, ids=lambda command: command.words)


def refused(answer) -> bool:
    """Whether an answer is a refusal in a line."""
    lines = [line for line in answer.err.splitlines() if line]
    return answer.code == 2 and len(lines) <= 3 and "Traceback" not in answer.err


def whole(out: Path) -> bool:
    """Whether nothing half written is left."""
    return not [path for path in out.rglob("*") if path.name.endswith((".partial", ".tmp"))]


@by_words(QUICK)
def test_a_full_disk_is_said_and_leaves_nothing_half_written(command, world, ocr_eval, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(Path, "write_text", full)
        answer = ocr_eval(*command.line(world))
    assert answer.code == 1, answer.err
    assert "disk is full" in answer.err
    assert whole(world.root)
    assert ocr_eval(*command.line(world)).code == 0


@by_words(QUICK)
def test_a_file_system_that_is_read_only_is_said(command, world, ocr_eval, monkeypatch):
    def is_refused(path: Any) -> bool:
        return not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(world.root)

    def refusing(function: Any, writes: Any) -> Any:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if is_refused(path) and writes(*arguments, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refusing(io.open, lambda mode="r", *_, **__: not {*mode}.isdisjoint("wax+")))
        patch.setattr(os, "open", refusing(os.open, lambda flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR)))
        patch.setattr(os, "mkdir", refusing(os.mkdir, lambda *_, **__: True))
        answer = ocr_eval(*command.line(world))
    assert refused(answer), answer.err
    assert os.strerror(errno.EROFS) in answer.err
    assert not (world.root / "out").exists()


@by_words(QUICK)
@pytest.mark.parametrize("place", ["file", "below a file", "broken link", "circle", "fifo", "long", "NUL"])
def test_a_bad_place_for_output_is_refused(command, place, world, ocr_eval):
    out = world.root / "out"
    if place in ("file", "below a file"):
        out.write_text("a file")
    if place in ("broken link", "circle"):
        out.symlink_to("out" if place == "circle" else "nowhere/at/all")
    if place == "fifo":
        os.mkfifo(out)
    tail = {"below a file": "/below", "long": "n" * 300, "NUL": "\0"}.get(place, "")
    line = [word.replace(str(out), f"{out}{tail}") for word in command.line(world)]
    with in_time():
        assert refused(ocr_eval(*line))


def as_a_device(path: Path, monkeypatch) -> None:
    """What the system says of a file from now on; the file stays one, for a device would be replaced by a failure."""
    real = os.stat

    def stat_of(asked: Any, *arguments: Any, **named: Any) -> os.stat_result:
        found = real(asked, *arguments, **named)
        if str(asked) != str(path):
            return found
        made, (values, more) = found.__reduce__()
        return made((stat.S_IFCHR | 0o666, *values[1:]), more)

    monkeypatch.setattr(os, "stat", stat_of)


@by_words([command for command in QUICK if command.words != "demo"])
def test_what_is_no_file_is_not_replaced(command, world, ocr_eval, monkeypatch):
    line, out = command.line(world), world.root / "out"
    assert ocr_eval(*line).code == 0
    last = max(path for path in out.rglob("*") if path.is_file() and path.name not in (".lock", ".holder"))
    as_a_pipe(last)
    with in_time():
        answer = ocr_eval(*line)
    assert refused(answer), answer.err
    assert last.name in answer.err
    assert last.is_fifo()
    last.unlink()
    last.write_bytes(b"as it was")
    with monkeypatch.context() as patch, in_time():
        as_a_device(last, patch)
        assert refused(ocr_eval(*line))
    assert last.read_bytes() == b"as it was"


@by_words(QUICK)
def test_an_output_behind_a_link_is_written(command, world, ocr_eval):
    (world.root / "elsewhere").mkdir()
    (world.root / "out").symlink_to("elsewhere")
    assert ocr_eval(*command.line(world)).code == 0
    assert any((world.root / "elsewhere").iterdir())


@by_words(QUICK)
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_refused(command, world, ocr_eval):
    (world.root / "out").mkdir(mode=0o500)
    assert refused(ocr_eval(*command.line(world)))


@by_words([command for command in COMMANDS if "{grid}" in command.arguments])
def test_a_folder_that_cannot_be_read_is_named(command, world, ocr_eval, monkeypatch):
    """As for a user without permission, which root always has."""
    scan = os.scandir

    def denied(path: str | Path = "."):
        if Path(path).parent.parent.name == "own-pairs":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    answer = ocr_eval(*command.line(world))
    assert answer.code in (0, 1, 2)
    assert "Traceback" not in answer.err
    assert command.words == "status" or os.strerror(errno.EACCES) in answer.err


def test_a_lock_that_is_a_folder_is_named(world, ocr_eval):
    finetune = next(command for command in COMMANDS if command.words == "finetune").line(world)
    assert ocr_eval(*finetune).code == 0
    (lock,) = (world.root / "out").rglob(".lock")
    lock.unlink()
    lock.mkdir()
    answer = ocr_eval(*finetune, "--force")
    assert refused(answer)
    assert ".lock" in answer.err


@by_words(QUICK)
def test_a_clock_that_goes_back_changes_nothing(command, world, ocr_eval, monkeypatch):
    start = time.time()
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * next(ticks))
    monkeypatch.setattr(time, "time_ns", lambda: int((start - 3600.0 * next(ticks)) * 1e9))
    assert ocr_eval(*command.line(world)).code == 0


TWICE = """
import os, sys
from ocr_eval.cli.app import run
import ocr_eval.execution.execute, ocr_eval.execution.run_pack
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        os._exit(run(sys.argv[1:]))
    children.append(child)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@by_words(QUICK)
def test_two_at_once_end_whole(command, world, ocr_eval):
    """One may be told that the other is at work; afterwards all is there."""
    line = command.line(world)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *line], capture_output=True, text=True, env=environment, check=True
    )
    codes = [int(code) for code in done.stdout.splitlines()[-1].split()]
    assert sorted(codes) in ([0, 0], [0, 2]), done.stderr
    assert "Traceback" not in done.stderr
    assert whole(world.root)
    assert ocr_eval(*line).code == 0


@by_words(QUICK)
@pytest.mark.parametrize(("umask", "others"), [(0o022, 0o044), (0o077, 0)])
def test_files_have_the_permissions_of_the_umask(command, umask, others, world):
    before = os.umask(umask)
    try:
        assert run(command.line(world)) == 0
    finally:
        os.umask(before)
    files = [path for path in (world.root / "out").rglob("*") if path.is_file() and path.name != ".lock"]
    assert files
    assert {path.stat().st_mode & 0o077 for path in files} == {others}


@pytest.mark.parametrize("words", ["finetune", "sweep", "report"])
def test_nothing_secret_is_written_or_said(words, world, ocr_eval):
    command = next(command for command in COMMANDS if command.words == words)
    secrets = {"HF_TOKEN": "hf_verysecretvalue", "WANDB_API_KEY": "wandb-verysecretvalue"}
    answer = ocr_eval(*command.line(world), **secrets)
    assert answer.code == 0, answer.err
    assert "verysecretvalue" not in answer.out + answer.err
    for path in world.root.rglob("*"):
        assert not path.is_file() or b"verysecretvalue" not in path.read_bytes(), path
    shutil.rmtree(world.root)
