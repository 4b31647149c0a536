"""``models list``, ``models pull``, ``models check`` and ``models rehearse``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ocr_eval.cli import options as o

app = typer.Typer(help="List, fetch, check and rehearse models.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: o.JsonOption = False) -> None:
    """The shipped models: where they come from, how to get access, and whether they are on this disk."""
    from ocr_eval import weights
    from ocr_eval.resources import shipped_names
    from ocr_eval.specs import HubWeights, load_model_spec

    specs = [load_model_spec(name) for name in shipped_names("models")]
    here = {spec.name: weights.cached(spec) is not None for spec in specs}
    if as_json:
        rows = [{**spec.model_dump(mode="json", exclude={"train"}), "on_disk": here[spec.name]} for spec in specs]
        typer.echo(json.dumps(rows, indent=2))
        return
    for spec in specs:
        gated = isinstance(spec.weights, HubWeights) and spec.weights.gated
        where = "hub, gated" if gated else "hub, open" if isinstance(spec.weights, HubWeights) else "package"
        typer.echo(f"{spec.name:14} {where:11} {'on disk' if here[spec.name] else '-':8} {spec.description}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="A model's name or YAML file.")],
    force: o.ForceOption = False,
    offline: o.OfflineOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Fetch a model's weights now, so that later runs need no network; the folder goes to stdout."""
    o.begin(quiet, offline)
    from ocr_eval import weights
    from ocr_eval.specs import load_model_spec

    spec = load_model_spec(model)
    if force:
        weights.remove(spec)
    typer.echo(str(weights.locate(spec).path))


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A model's name, YAML file, folder (of a tokenizer too) or org/name.")],
    assoc: Annotated[list[str] | None, typer.Option(help="Associations; default: all that are shipped.")] = None,
    offline: o.OfflineOption = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """What a model is made of, and which associations can be scored with its tokenizer. Exit 1 if one cannot.

    Fetches no weights: only configuration and tokenizer are needed, and a folder with a tokenizer alone will do.
    """
    o.begin(quiet, offline)
    from ocr_eval.checking import check_model
    from ocr_eval.resources import shipped_names

    found = check_model(model, assoc or shipped_names("templates"))
    typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if as_json else found.as_text())
    if not found.scorable:
        raise typer.Exit(1)
