"""The generated pages: every command's ``--help``, and every setting of a run.

``python tests/reference.py > ocr_eval/docs/commands.md``, and with ``settings`` for the other (``make docs``).
"""

from __future__ import annotations

import sys

import typer.main
from typer.testing import CliRunner

from ocr_eval.cli import variables
from ocr_eval.cli.spec_flags import flag_of, variable
from ocr_eval.specs.settings import SETTINGS, Setting

_COMMANDS = """# Commands

The `--help` of every command, written by `make docs`. [Settings](settings.md) says where values come from. Exit codes:
0 done, 1 failed or incomplete, 2 bad input, 130 interrupted.
"""

_SETTINGS = """# Settings

Every setting of a run, written by `make docs` from the fields of the specs.

A value comes from the first of these that states it:

1. the flag on the command line: `--epochs 8`
2. the flag's variable, `OCR_EVAL_` and its name: `OCR_EVAL_EPOCHS=8`. Every flag has one, except those of `toy`.
3. the file of `--config` (`-C`): flags by name, with `-` or `_` (`epochs: 8`). `finetune`, `score`, `controls`, `curve`
   and `data export` also take the `config.yaml` of a run, which states all of its settings.
4. for training, dtype and attention: the model's YAML ([model](model.md))
5. the default below

`sweep` takes several values of each setting, except of `--dtype`, and runs every combination. Values are
comma-separated; ranges of whole numbers are `1-4,8`. Entries of one value are joined by `+`: `--templates 0,0+2,all` is
three choices of templates, `--targets all-linear,q_proj+v_proj` two of modules. A command of one run takes `0,2` for
`0+2` too.

```sh
ocr-eval sweep --assocs country-code --seeds 0 --m-train 2,4 --schedule constant,cosine --dry-run
```
"""


def settings() -> str:
    """The page of settings."""
    sections = {"run": "Run", "data": "Data", "train": "Training", "model": "Model"}
    blocks = [_SETTINGS]
    for section, title in sections.items():
        rows = [_row(setting) for setting in SETTINGS.values() if setting.section == section]
        header = "| flag | variable | values | default | meaning |\n|---|---|---|---|---|\n"
        blocks.append(f"## {title}\n\n{header}{''.join(rows)}")
    return "\n".join(blocks)


def _row(setting: Setting) -> str:
    flag, axis = flag_of(setting.name), flag_of(setting.axis)
    named, set_by = (
        f"`{each(flag)}`" if axis == flag else f"`{each(flag)}`, in a sweep `{each(axis)}`" for each in (str, variable)
    )
    values = setting.limits or setting.form.replace("|", ", ")
    default = setting.default if setting.section in ("run", "data") else setting.text(setting.field.get_default())
    return f"| {named} | {set_by} | `{values}` | `{default}` | {setting.field.description} |\n"


def reference() -> str:
    """The page, the same on every machine."""
    from ocr_eval.cli.app import app

    blocks = [_COMMANDS]
    for words, _ in variables.commands(typer.main.get_command(app), "ocr-eval"):
        told = CliRunner().invoke(app, [*words.split()[1:], "--help"], prog_name="ocr-eval", terminal_width=78)
        lines = "\n".join(line.rstrip() for line in told.output.strip().splitlines())
        blocks.append(f"## {words}\n\n```text\n{lines}\n```\n")
    return "\n".join(blocks)


if __name__ == "__main__":
    print(settings() if sys.argv[1:] == ["settings"] else reference(), end="")
