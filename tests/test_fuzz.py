"""Bad input to every command: one of the exit codes, a line or three on stderr, no traceback, nothing half written.

``make test`` tries what fits into a minute, always the same; ``make fuzz`` runs for an hour (``FUZZ_SECONDS``), and
tries others each time.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
from accidents import (
    IRREGULAR,
    TooLong,
    as_a_bomb,
    as_a_link,
    as_a_pipe,
    as_endless,
    as_lines_without_end,
    in_time,
)
from commands import COMMANDS, Command, World, make_world, of_the_program, parameters
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from served_stand_in import Served, serving

from ocr_eval.cli.app import run

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
CODES = {0, 1, 2, 130}

WORDS = [
    *("", " ", "-", "--", "-1", "0", "1.5", "1e400", "-1e400", "nan", "inf", "1_0", "0x10", "1e-400", "null", "true"),
    *("1,2", "1-", "3-1", "0-99999999999", ",", "+", "a=b", "=", "seed=", "a:b=c", "lora:x=1", "every:0", "every:-1"),
    *("{name}", "{answer}", "[]", "{}", "%s%n", "$HOME", "~nobody-of-this-name/x", "../../..", "/proc", ".", "pipe"),
    *("pipe/x", "/proc/self/mem", "a" * 300, "./" + "a" * 300, "a/" * 3000, "a--b/c", "a/b..c", "a/b.git"),
    *("org/" + "n" * 120, "org/name@", "org/name@../../x", "\0", "a\0b", "\udcff", "é", "💥", "\u202e", "\x1b[31m"),
    *("a\nb", "\n", "9" * 30, "9" * 5000, "☃.yaml", "http://x/y", "file:///etc/passwd", "model", "all", "none"),
]
LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CONTENTS = [
    *(
        "",
        "\n",
        "{}",
        "[]",
        "null",
        "0",
        '"text"',
        "text",
        "a: b",
        "- a",
        "\ufeff{}",
        "\0\0\0",
        "{",
        '{"a":',
        "[1,",
        "---",
    ),
    *(
        "[" * 5000,
        '{"a":' * 5000,
        "- " * 3000,
        "9" * 5000,
        "a: " + "9" * 5000,
        "a: 0x" + "f" * 5000,
        "a: 1:1" + ":1" * 99,
    ),
    *(
        "a: 2021-13-45",
        "a: 0x_",
        "a: 0b2",
        "a: 1_",
        "a: .inf",
        "a: =",
        "a: <<",
        "<<: {a: b}",
        "a: !!int x",
        "a: !!float x",
    ),
    *(
        "a: !!binary '*'",
        "a: !!python/object/apply:os.system [id]",
        "!!set {a}",
        "!!omap [a: b]",
        "a: !x y",
        "a: !!bool x",
    ),
    *(
        "? [a]\n: b",
        "? {a: b}\n: c",
        "a: b\na: c",
        "a: *b",
        "a: &a [*a]",
        "%YAML 9.9\n---\na: b",
        "a: b\n---\nc: d",
        LAUGHS,
    ),
    *(
        '{"a": 1e400}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '"\\ud800"',
        '{"a": "\\u0000"}',
        '{"schema_version": 9}',
        "a: '",
    ),
    *('{"reason": 1}', '{"epoch": 0}', '{"epoch": [], "scores": 1}\n', '{"packs": 1, "schema_version": 1}', "\x1b[31m"),
]
LITERALS = [
    *(
        "null",
        "true",
        "-1",
        "0",
        "0.5",
        "1e400",
        "-1e400",
        "1e308",
        "9" * 30,
        "9" * 400,
        '"x"',
        '""',
        "[]",
        "{}",
        "[[]]",
    ),
    *(
        '"\\u0000"',
        '"\\ud800"',
        "NaN",
        "[" * 2000 + "]" * 2000,
        '{"a": 1}',
        '"' + "n" * 3000 + '"',
        "2021-13-45",
        "*a",
        "!!x y",
    ),
]
VALUE = re.compile(rb'(?<=[:\s\[,])("[^"\n]{0,60}"|-?\d[\d.e+-]*|true|false|null|[a-z-]{2,20})(?=[\s,\]}])')


def replaced(content: bytes, where: float, literal: str) -> bytes:
    """A file's content with one of its values replaced."""
    values = list(VALUE.finditer(content[:1_000_000]))
    if not values:
        return literal.encode("utf-8", "surrogateescape")
    value = values[int(where * len(values))]
    return content[: value.start()] + literal.encode("utf-8", "surrogateescape") + content[value.end() :]


fraction = st.floats(0, 1, exclude_max=True)
#: What may happen to a file.
accidents: st.SearchStrategy[Callable[[Path], object]] = st.one_of(
    st.builds(lambda text: lambda path: path.write_text(text, "utf-8"), st.sampled_from(CONTENTS)),
    st.builds(
        lambda where, text: lambda path: path.write_bytes(replaced(path.read_bytes(), where, text)),
        fraction,
        st.sampled_from(LITERALS),
    ),
    st.builds(lambda where: lambda p: p.write_bytes(p.read_bytes()[: int(where * p.stat().st_size)]), fraction),
    st.builds(lambda noise: lambda path: path.write_bytes(noise), st.binary(max_size=200)),
    st.just(lambda path: path.unlink()),
    st.sampled_from(IRREGULAR),
    st.builds(lambda to: lambda path: as_a_link(path, to), st.sampled_from(["nowhere", "../out", "."])),
)


@pytest.fixture(scope="module")
def world(model_files, tmp_path_factory) -> Iterator[World]:
    deep = tmp_path_factory.mktemp("fuzz") / "a" / "b" / "c"  # "../../.." leads to nothing of other tests
    deep.mkdir(parents=True)
    with serving(Served(model_files["llama"].with_suffix(""))) as served:
        yield replace(make_world(deep / "world", model_files["llama"]), server=served.url)


def test_every_command_of_the_program_is_in_the_table():
    assert sorted(of_the_program()) == sorted({command.words for command in COMMANDS})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_the_call_of_the_table_works(command, world, ocr_eval):
    answer = ocr_eval(*command.line(world))
    assert answer.code == (2 if command.refused else 0), answer.err
    shutil.rmtree(world.root / "out", ignore_errors=True)


def check(line: list[str], world: World, capfd) -> None:
    """Run one command and hold it to the rule."""

    capfd.readouterr()
    with in_time(), chdir(world.root):  # a relative path of an accident stays in there
        code = run(line)
    err = capfd.readouterr().err
    lines = [text for text in err.splitlines() if text.strip() and not text.startswith("Finding:")]
    assert code in CODES, err
    assert "Traceback" not in err
    assert code == 0 or len(lines) <= 3, err
    assert all(len(text) < 1200 for text in lines)
    left = [path for path in world.root.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    assert not left


#: The files of a finished run, and what reads them.
READ = {
    "result.json": "table {grid}",
    "status.json": "status {grid}",
    "metrics.jsonl": "report {grid} -o {out}/report.html",
    "probes.jsonl": "report {grid} -o {out}/report.html",
    "env.json": "report {grid} -o {out}/report.html",
    "config.yaml": "score {run}",
    "adapter/adapter_config.json": "explain {run} --measure known",
    "adapter/adapter_model.safetensors": "score {run}",
}
PACKED = ("result.json", "metrics.jsonl", "probes.jsonl")
ENDLESS = [(name, each) for name in READ for each in (as_a_pipe, as_endless)]
BOMBS = [(name, each) for name in PACKED for each in (as_a_bomb, as_lines_without_end)]


@pytest.mark.parametrize(("name", "accident"), ENDLESS + BOMBS)
def test_what_a_run_holds_is_read_within_bounds(name, accident, world, capfd):
    here = world.copy(world.root.parent / "bounds")
    try:
        accident(here.places["run"] / name)
        check([word.format(**here.places) for word in READ[name].split()], here, capfd)
    finally:
        shutil.rmtree(here.root)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("accident", [as_a_pipe, as_endless])
def test_so_is_a_model(name, accident, world, capfd):
    here = world.copy(world.root.parent / "bounds")
    try:
        accident(here.root / "tiny" / name)
        check(["models", "check", str(here.root / "tiny.yaml"), "--assoc", str(here.root / "pairs.yaml")], here, capfd)
    finally:
        shutil.rmtree(here.root)


@settings(
    max_examples=1_000_000,
    deadline=None,
    derandomize="FUZZ_SECONDS" not in os.environ,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    command=st.sampled_from(COMMANDS),
    flag=st.integers(0, 200),
    word=st.one_of(st.sampled_from(WORDS), st.text(max_size=20)),
    accident=accidents,
    where=fraction,
    kind=st.sampled_from(["flag", "argument", "file", "variable", "config"]),
)
def _fuzz(command: Command, flag: int, word: str, accident, where: float, kind: str, world: World, capfd, ends) -> None:
    if time.monotonic() > ends:
        raise TooLong
    here = world.copy(world.root.parent / "here")
    try:
        os.mkfifo(here.root / "pipe")
        line = command.line(here)
        flags = [name for name in parameters(command.words) if name not in ("--serve", "--help")]
        if kind == "flag" and flags:
            line += [flags[flag % len(flags)], word]
        elif kind == "argument" and len(line) > len(command.words.split()):
            place = len(command.words.split()) + flag % (len(line) - len(command.words.split()))
            line[place] = word
        elif kind == "config" and "--config" in flags:
            accident(here.root / "flags.yaml")
            line += ["--config", str(here.root / "flags.yaml")]
        else:
            files = here.files()
            accident(here.root / files[int(where * len(files))])
        check(line, here, capfd)
    except TooLong:
        if not word.strip().isdecimal():
            raise  # a large number is good input, and long work
    finally:
        shutil.rmtree(here.root)


def test_bad_input_is_a_line(world, capfd):
    ends = time.monotonic() + SECONDS
    try:
        _fuzz(world=world, capfd=capfd, ends=ends)
    except TooLong:
        assert time.monotonic() > ends, "a command takes too long"
