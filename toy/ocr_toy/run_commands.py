"""``train`` and ``sweep``. torch is imported inside the commands, so that help is fast."""

from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_toy import options as o
from ocr_toy.console import app, emit, prepare, say, tenths
from ocr_toy.errors import require

if TYPE_CHECKING:
    from ocr_toy.runs import Record


def _row(record: "Record") -> str:
    names = ("train_fact", "train_entailment", "test_fact", "test_entailment")
    numbers = [*map(record.loss.get, names), record.accuracy["test_entailment"], record.margins.normalized]
    sizes = ["-"] * 3 if record.norms is None else [f"{size:.1f}" for size in astuple(record.norms)]
    cells = [str(record.step), *("-" if number is None else f"{number:.3f}" for number in numbers), *sizes]
    return " ".join(f"{cell:>10}" for cell in cells)


HEADINGS = (
    *("step", "train-fact", "train-ent", "test-fact", "test-ent", "test-acc", "margin"),
    *("nuclear", "frobenius", "eff-rank"),
)


def _preset(context: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with defaults replaced by the preset's values."""
    preset = options["preset"]
    require(preset in o.PRESETS, f"preset = {preset}: unknown; use {' or '.join(o.PRESETS)}")
    if preset != "official":
        return options
    sources = {name: context.get_parameter_source(name) for name in options}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    return options | {name: value for name, value in o.official(options["param"]).items() if name not in given}


@app.command()
@o.run_flags()
def train(context: typer.Context, run: dict[str, Any], as_json: o.AsJson = False, output: o.Output = None) -> None:
    """Train one model; the defaults are the published run.

    Prints, for each record, the four losses (nats), the accuracy on test entailments, the held-out margin over the
    train margin, and the norms of W_OV.
    """
    from ocr_toy.train import train_runs

    spec = o.run_spec(_preset(context, run))
    prepare(output)
    result = train_runs([spec], tenths())[0]
    document = {"spec": asdict(spec), "records": [asdict(r) for r in result.records]}
    lines = [" ".join(f"{h:>10}" for h in HEADINGS), *map(_row, result.records)]
    emit(document, as_json, output, lines)


@app.command()
@o.run_flags(without=["seed"], steps=20_000)
def sweep(
    context: typer.Context,
    *,
    over: Annotated[str, typer.Option(help="d_h, m_train, seed, decay or init (its scale).")] = "d_h",
    values: Annotated[str | None, typer.Option(help="Comma-separated values.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated seeds. [default: 0,1,2]")] = None,
    run: dict[str, Any],
    as_json: o.AsJson = False,
    output: o.Output = None,
) -> None:
    """Train the runs of a sweep as one batch.

    The defaults are the published rank sweep from a small start; --preset official is its exact start and loss.
    """
    from ocr_toy import sweep as sweeps
    from ocr_toy.train import train_runs

    axis = sweeps.axis(over)
    read = o.whole if axis in sweeps.WHOLE else o.numbers
    chosen = list(sweeps.DEFAULT_VALUES[axis]) if values is None else read(values, "values")
    varied = "seeds" if axis == "seed" else sweeps.FIELDS[axis][1]
    source = context.get_parameter_source(varied)
    require(
        source is None or source.name == "DEFAULT",
        f"{varied} = {context.params[varied]} with over = {axis}: give it as one of the values",
    )
    base = o.run_spec(_preset(context, {**run, "seed": 0}))
    specs = sweeps.sweep_specs(base, axis, chosen, o.whole("0,1,2" if seeds is None else seeds, "seeds"))
    prepare(output)
    say(f"{len(specs)} run{'s'[: len(specs) != 1]} of {base.train.steps} steps, as one batch")
    table = sweeps.rows(train_runs(specs, tenths()), axis)
    points = sweeps.points(table)
    listed = {"points": [asdict(p) for p in points], "rows": [asdict(r) for r in table]}
    document = {"over": axis, "base": asdict(base), **listed}
    lines = [f"{over:>10}  test loss: mean [95 % interval] over seeds; each seed"]
    for point in points:
        each = ", ".join(f"{loss:.3g}" for loss in point.test_losses)
        summary = "" if point.test_loss is None else f"{point.test_loss}; "
        lines.append(f"{point.value!s:>10}  {summary}{each}")
    emit(document, as_json, output, lines)
