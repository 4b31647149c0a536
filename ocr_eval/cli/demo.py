"""``demo``: a first look, which calls other commands."""

import os
from contextlib import redirect_stdout
from pathlib import Path

import typer

from ocr_eval.cli import options as o

#: A true link and an arbitrary one.
_TAUGHT = ("city-language", "country-code")


def demo(model: o.ModelOption = o.DEFAULT_MODEL, output_dir: o.OutputOption = Path("results/demo")) -> None:
    """Teach a small model two links, and show what it infers.

    One link is true, the other arbitrary. The same as 'finetune' for city-language and for country-code, then 'table',
    'figures --text' and 'report'. Takes three to six minutes on two CPU cores by default. Rerunning resumes.
    """
    from ocr_eval.cli.app import PROGRAM, app
    from ocr_eval.common.messages import say

    command, folder = typer.main.get_command(app), str(output_dir)

    def run(*words: str) -> None:
        code = command(list(words), prog_name=PROGRAM, standalone_mode=False)
        if code:
            raise typer.Exit(code)

    page = str(output_dir / "report.html")
    say(f"Teaching {model} two associations, one after the other: {', then '.join(_TAUGHT)}.")
    with Path(os.devnull).open("w") as nowhere:
        for assoc in _TAUGHT:
            with redirect_stdout(nowhere):
                run("finetune", "--model", model, "--assoc", assoc, "--output-dir", folder)
        run("table", folder)
        typer.echo()
        run("figures", folder, "--text")
        with redirect_stdout(nowhere):
            run("report", folder, "-o", page)
    typer.echo(f"Every run, curve and probe: open {page} in a browser.")
