"""``data list``, ``data show``, ``data candidates`` and ``data export``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.facts import OwnFacts
from ocr_eval.cli.spec_flags import Given, Settings, expanded, option
from ocr_eval.common.registry import STRUCTURES
from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.specs.association import load_association
from ocr_eval.specs.run import DataSpec

app = typer.Typer(help="List, show, check and export associations.", no_args_is_help=True)


@app.command("list")
def list_associations(as_json: o.JsonOption = False) -> None:
    """List the shipped associations, and structures of facts.

    For each association: name, kind, size, link. Structures of other packages are listed too.
    """
    associations = [load_association(name) for name in shipped_names("templates")]
    if as_json:
        rows = [{**a.model_dump(include={"name", "kind", "description"}), **a.size()} for a in associations]
        typer.echo(json.dumps(rows, indent=2))
        return
    for a in associations:
        size = ", ".join(f"{count} {what}" for what, count in a.size().items())
        typer.echo(f"{a.name:18} {a.kind:15} {size}  {a.description}")
    structures = ", ".join(f"{name} ({STRUCTURES.source(name)})" for name in STRUCTURES.names())
    typer.echo(f"\nStructures that 'structure:' in a file may name: {structures}")


@app.command()
def show(
    assoc: Annotated[
        str, typer.Argument(metavar="ASSOC", help="Association: a name or YAML file.", autocompletion=o.assoc_names)
    ],
) -> None:
    """Show what an association contains."""
    association = load_association(assoc)
    typer.echo(f"{association.name} ({association.kind})\n{association.description}\n")
    typer.echo(association.as_text())


@app.command()
@expanded
def candidates(
    context: typer.Context,
    *,
    named: o.Assoc,
    model: Annotated[
        list[str] | None,
        option("--model", help="Model, or a folder with its tokenizer; repeatable.", autocompletion=o.model_names),
    ] = None,
    offline: o.OfflineOption = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Check whether a tokenizer can rank an association's answers.

    Reports what BOS does, how many tokens each answer has, which first tokens clash, where prompt and answer do
    not split cleanly, and which candidates begin with a generic piece, over all answers and templates. Exits with 1
    if an association cannot be scored first-token on one of the models.
    """
    o.begin(quiet, offline)
    from ocr_eval.data.candidate_tokens import audit_association
    from ocr_eval.models.base import load_tokenizer

    audited = load_association(named.one(context))
    audits = {name: audit_association(load_tokenizer(name), audited) for name in model or [o.DEFAULT_MODEL]}
    if as_json:
        typer.echo(json.dumps({name: found.as_json() for name, found in audits.items()}, indent=2, ensure_ascii=False))
    else:
        for name, found in audits.items():
            typer.echo(found.as_text(f"{audited.name} on {name}"))
    if not all(found.scorable for found in audits.values()):
        raise typer.Exit(1)


@app.command()
@expanded
def export(
    context: typer.Context,
    *,
    output_dir: Annotated[Path, option("--output-dir", "-o", help="Folder for the files.")],
    named: o.Assoc,
    own: OwnFacts,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, Settings(["seed", *DataSpec.model_fields])],
    format: Annotated[
        Literal["jsonl", "lm-eval", "inspect", "prompt-completion", "hub"],
        option("--format", "-f", help="Format of the files."),
    ] = "jsonl",
    config: o.ConfigOption = None,
) -> None:
    """Write a run's training set and probes for other programs.

    A training set comes with manifest.json, which tells 'score --data' what was taught and contains the whole
    association or table. --model is used only by --chat, for its tokenizer. The paths of the files go to stdout.
    """
    from ocr_eval.data.export import TRAINING_FILES, export_task
    from ocr_eval.data.manifest import Manifest, write_manifest
    from ocr_eval.methods.prevention import task_of_run

    spec = o.resolve(context, model, own.association(model, named.given) or named.one(context), settings)
    task = task_of_run(spec)
    manifest = Manifest.of(spec, task)
    if format in TRAINING_FILES:
        manifest.check_beside(output_dir, TRAINING_FILES[format])
    paths = export_task(task, spec.association.name, format, output_dir)
    if format in TRAINING_FILES:
        paths.append(write_manifest(manifest, output_dir))
    typer.echo("\n".join(map(str, paths)))
