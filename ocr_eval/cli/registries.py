"""``methods``, ``preventions`` and ``measures``: list and show each registry, including entries of other packages."""

import inspect
import json
import re
from typing import Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import flag_of
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import NoSettings, Registry
from ocr_eval.methods.method import TRAINING, Method
from ocr_eval.specs.settings import SETTINGS


def door(registry: Registry[Any], help: str) -> typer.Typer:
    """The commands ``list`` and ``show`` of a registry."""
    app = typer.Typer(help=help, no_args_is_help=True)

    @app.command("list", help=f"List every {registry.noun}, including those of other packages.")
    def list_all(as_json: o.JsonOption = False) -> None:
        rows = [[name, _about(registry, name), registry.source(name)] for name in registry.names()]
        if as_json:
            typer.echo(json.dumps([dict(zip(("name", "about", "source"), row, strict=True)) for row in rows], indent=2))
        else:
            typer.echo(o.grid(["name", "about", "from"], rows))

    @app.command(help=f"Show a {registry.noun}: what it does and its settings.")
    def show(name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]) -> None:
        thing = registry.get(name)
        kind = thing if inspect.isclass(thing) else type(thing)
        about = inspect.cleandoc(inspect.getmodule(kind).__doc__ or kind.__doc__ or "")
        about = re.sub("``(.+?)``", r"'\1'", about)  # as the terminal shows a word
        typer.echo(f"{name}\n\n{about}\n")
        rows = [
            [key, "must be given" if field.is_required() else str(field.default), field.description or ""]
            for key, field in getattr(thing, "Settings", NoSettings).model_fields.items()
        ]
        if isinstance(thing, Method):
            taken = [each for each in SETTINGS.values() if each.name in TRAINING - thing.ignores]
            rows += [[flag_of(each.name), each.default, each.field.description or ""] for each in taken]
        typer.echo(o.grid(["setting", "default", "meaning"], rows) if rows else "It has no settings.")

    return app


def _about(registry: Registry[Any], name: str) -> str:
    """One line on an entry, or why that of another package cannot be imported."""
    try:
        return str(registry.get(name).about)
    except UserError as error:
        return str(error)
