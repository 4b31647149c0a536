"""``models list``, ``models pull``, ``models check`` and ``models rehearse``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ocr_eval.cli import options as o

if TYPE_CHECKING:
    from ocr_eval.models import Device

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


@app.command()
def rehearse(
    model: Annotated[str, typer.Argument(help="A model's name, YAML file, folder or org/name.")],
    assoc: o.AssocOption = "country-code",
    method: o.MethodOption = None,
    dtype: o.DtypeOption = None,
    batch_size: o.BatchSizeOption = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Only so many layers; default: all.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps.")] = 3,
    probes: Annotated[int, typer.Option(min=1, help="Probes to score.")] = 40,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with the model's tokenizer.")] = None,
    device: o.DeviceOption = "auto",
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Folder for the record.")] = None,
    offline: o.OfflineOption = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Build a model at its true size with random weights, train a few steps, score, and compare with the plan.

    Nothing is fetched: the configuration is shipped, and without the model's tokenizer (on this disk, or in the
    folder --tokenizer) a stand-in of the same vocabulary size makes about as many tokens. With --output-dir the
    record is written and the table renewed.
    """
    o.begin(quiet, offline)
    from ocr_eval.rehearsal import rehearse as run
    from ocr_eval.rehearsal_table import write

    o.choice("--device", device, ("auto", "cpu", "cuda", "mps"))
    spec = o.resolve(
        model,
        assoc,
        0,
        n=5,
        m_train=4,
        m_test=16,
        candidates="ten",
        dtype=dtype,
        method=method,
        batch_size=batch_size,
    )
    rehearsal = run(spec, cast("Device", device), layers, steps, probes, tokenizer)
    if output_dir is not None:
        write(rehearsal, output_dir)
    typer.echo(json.dumps(rehearsal.as_json(), indent=2) if as_json else rehearsal.as_text())
