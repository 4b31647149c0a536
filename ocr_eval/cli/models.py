"""``models list``, ``show``, ``pull``, ``check`` and ``rehearse``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Machine
from ocr_eval.cli.spec_flags import Given, Settings, expanded, option
from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.methods.method import method_of
from ocr_eval.models import hub
from ocr_eval.specs.model import HubWeights, load_model_spec
from ocr_eval.specs.published import published_associations

app = typer.Typer(help="List, show, fetch, check and rehearse models.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: o.JsonOption = False) -> None:
    """List the shipped models: source, access, and whether on disk."""
    from ocr_eval.models import weights

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
def show(model: o.ModelArgument, as_json: o.JsonOption = False) -> None:
    """Show a model's definition: weights, defaults, and why.

    Prints where the weights are, the training defaults, and the model's YAML with the reasons for them. --json prints
    the resolved definition.
    """
    import yaml

    from ocr_eval.models import weights

    spec = load_model_spec(model)
    if as_json:
        typer.echo(json.dumps(spec.model_dump(mode="json"), indent=2))
        return
    is_shipped = model in shipped_names("models")
    file = yaml_files.find_yaml("model", "models", model) if is_shipped else yaml_files.expand(model)
    where, train = weights.cached(spec), spec.train
    settings = f"lr {train.lr:g}, {train.epochs} epochs, batches of {train.batch_size}"
    method = method_of(train)
    adapter = "" if "rank" in method.ignores else f", rank {train.rank}, alpha {train.alpha:g}"
    fetch = f"not on disk; 'ocr-eval models pull {model}' fetches them"
    lines = [
        f"weights: {f'on disk in {where}' if where else fetch}",
        f"dtype {spec.dtype}, attention {spec.attention}",
        f"method {train.method} (default): {settings}{adapter}",
    ]
    if not method.needs.whole:
        full = spec.full
        lines.append(f"method full: lr {full.lr:g}, {train.epochs} epochs, batches of {full.batch_size}")
    lines.append(f"from {file}" if file.is_file() else "this model has no YAML file; its definition:")
    text = file.read_text(encoding="utf-8") if file.is_file() else yaml.safe_dump(spec.model_dump(), sort_keys=False)
    typer.echo("".join(f"# {line}\n" for line in lines) + f"\n{text}", nl=False)


@app.command()
def pull(
    model: o.ModelArgument,
    force: Annotated[bool, option("--force", help="Fetch a packaged model again, even if it is on disk.")] = False,
    offline: o.OfflineOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Fetch a model's weights for offline use.

    Prints the folder of the weights.
    """
    o.begin(quiet, offline)
    from ocr_eval.models import weights

    spec = load_model_spec(model)
    if force and hub.offline():
        raise UserError("--force fetches the weights again, which needs the network. Go online, or drop --force.")
    if force:
        weights.remove(spec)
    typer.echo(str(weights.locate(spec).path))


@app.command()
def check(
    model: o.ModelArgument,
    assoc: Annotated[
        list[str] | None,
        option("--assoc", help="Association; repeatable (default: the paper's five).", autocompletion=o.assoc_names),
    ] = None,
    offline: o.OfflineOption = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Check a model's architecture and which associations fit it.

    Fetches no weights: the configuration and tokenizer are enough, and so is a folder with only a tokenizer. Exits
    with 1 if an association cannot be scored with the tokenizer.
    """
    o.begin(quiet, offline)
    from ocr_eval.planning.check import check_model

    found = check_model(model, assoc or published_associations())
    typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if as_json else found.as_text())
    if not found.scorable:
        raise typer.Exit(1)


@app.command()
@expanded
def rehearse(
    context: typer.Context,
    *,
    model: o.ModelArgument,
    assoc: Annotated[
        str, option("--assoc", help="Association to train on.", autocompletion=o.assoc_names)
    ] = "country-code",
    settings: Annotated[Given, Settings(["method", "batch_size", "dtype", "attention"])],
    layers: Annotated[int | None, option("--layers", min=1, help="Build only this many layers (default: all).")] = None,
    steps: Annotated[int, option("--steps", min=2, help="Training steps.")] = 3,
    probes: Annotated[int, option("--probes", min=1, help="Probes to score.")] = 40,
    tokenizer: Annotated[Path | None, option("--tokenizer", help="Folder with the model's tokenizer.")] = None,
    machine: Machine,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Test a model's plan at full size, with random weights.

    Trains a few steps, scores, and compares memory and time with the plan. Nothing is fetched: the configuration is
    shipped, and without the model's tokenizer (on disk, or in --tokenizer) a stand-in with the same vocabulary size
    produces about the same number of tokens.
    """
    machine.begin()
    from ocr_eval.planning.rehearsal import rehearse as run

    rehearsal = run(o.resolve(context, model, assoc, settings), machine.device, layers, steps, probes, tokenizer)
    typer.echo(json.dumps(rehearsal.as_json(), indent=2) if as_json else rehearsal.as_text())
