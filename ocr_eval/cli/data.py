"""``data list``, ``data show``, ``data audit`` and ``data export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ocr_eval.cli import options as o

app = typer.Typer(help="List, show, audit and export associations.", no_args_is_help=True)


@app.command("list")
def list_associations(as_json: o.JsonOption = False) -> None:
    """The shipped associations: name, kind, pairs and what links them."""
    from ocr_eval.association import load_association
    from ocr_eval.resources import shipped_names

    associations = [load_association(name) for name in shipped_names("templates")]
    if as_json:
        rows = [{**a.model_dump(include={"name", "kind", "description"}), "pairs": len(a.pairs)} for a in associations]
        typer.echo(json.dumps(rows, indent=2))
        return
    for a in associations:
        typer.echo(f"{a.name:18} {a.kind:15} {len(a.pairs)} pairs  {a.description}")


@app.command()
def show(assoc: Annotated[str, typer.Argument(help="An association's name or YAML file.")]) -> None:
    """One association whole: templates and pairs."""
    from ocr_eval.association import load_association

    association = load_association(assoc)
    typer.echo(f"{association.name} ({association.kind})\n{association.description}\n")
    for name, relation in (("fact", association.fact), ("entailment", association.entailment)):
        for index, template in enumerate(relation.templates):
            typer.echo(f"{name:10} {index}  {template}")
    typer.echo("")
    width = max(len(b) for b, _ in association.pairs)
    for b, c in association.pairs:
        typer.echo(f"{b:{width}}  {c}")


@app.command()
def audit(
    assoc: o.AssocOption,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A model, or a folder with its tokenizer; may be repeated.")
    ] = None,
    offline: o.OfflineOption = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Can an association be scored first-token on a model? Exit 1 if not, on any of the models given.

    Tells what BOS does, how many tokens each answer has, which first tokens clash, where prompt and answer do
    not split cleanly, and which candidates begin with a generic piece. All answers and templates are tried.
    """
    o.begin(quiet, offline)
    from ocr_eval.association import load_association
    from ocr_eval.audit import audit_association
    from ocr_eval.models import load_tokenizer

    association = load_association(assoc)
    audits = {name: audit_association(load_tokenizer(name), association) for name in model or [o.DEFAULT_MODEL]}
    if as_json:
        typer.echo(json.dumps({name: found.as_json() for name, found in audits.items()}, indent=2, ensure_ascii=False))
    else:
        for name, found in audits.items():
            typer.echo(found.as_text(f"{association.name} on {name}"))
    if not all(found.first_token_scorable for found in audits.values()):
        raise typer.Exit(1)


@app.command()
def export(
    assoc: o.AssocOption,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the files.")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="jsonl, lm-eval, inspect or prompt-completion.")
    ] = "jsonl",
    seed: o.SeedOption = 0,
    n: o.NOption = 5,
    m_train: o.MTrainOption = 4,
    m_test: o.MTestOption = 16,
    candidates: o.CandidatesOption = "ten",
    templates: o.TemplatesOption = "0",
    probe_template: o.ProbeTemplateOption = 0,
    variant: o.VariantOption = "real",
    config: o.ConfigOption = None,
) -> None:
    """Write a run's training set and probes for other programs; the paths go to stdout."""
    from ocr_eval.dataset import build_dataset
    from ocr_eval.export import FORMATS, export_dataset

    o.choice("--format", format, tuple(FORMATS))
    spec = o.resolve(
        o.DEFAULT_MODEL,
        assoc,
        seed,
        n=n,
        m_train=m_train,
        m_test=m_test,
        candidates=candidates,
        templates=templates,
        probe_template=probe_template,
        variant=variant,
    )
    for path in export_dataset(build_dataset(spec), spec.association.name, format, output_dir):
        typer.echo(str(path))
