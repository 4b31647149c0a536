"""Every command's ``--help`` in one page: ``python -m ocr_eval.cli.reference > ocr_eval/docs/commands.md``."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import typer.main

_HEAD = """# Commands

The `--help` of every command, written by `make docs`. Every flag except those of `toy` has a variable: `--epochs` is
`OCR_EVAL_EPOCHS`. `--config file.yaml` reads flags by name, with `-` or `_`; `finetune`, `score`, `controls`, `curve`
and `data export` also take the `config.yaml` of a run. The command line wins over variables, and these over the file.
Exit codes: 0 done, 1 failed or incomplete, 2 bad input, 130 interrupted.
"""


def reference() -> str:
    """The page, the same on every machine."""
    from ocr_eval.cli.app import app

    root = typer.main.get_command(app)
    blocks = [_HEAD]
    for words, command in _commands(("ocr-eval",), root):
        blocks.append(f"## {' '.join(words)}\n\n```text\n{_help(words, command)}\n```\n")
    return "\n".join(blocks)


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from _commands((*words, name), sub)


def _help(words: tuple[str, ...], command: Any) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            command.main(["--help"], prog_name=" ".join(words), standalone_mode=False)
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    print(reference(), end="")
