"""``controls`` and ``curve``: studies that answer a question with several runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Means
from ocr_eval.cli.spec_flags import Given, Settings, expanded
from ocr_eval.common.errors import UserError
from ocr_eval.specs.run import RunSpec
from ocr_eval.specs.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocr_eval.analysis.controls import ConditionResult
    from ocr_eval.records.record import Record

_SEEDS = ("seed", "data_seed", "train_seed")
_OF_A_STUDY = Settings(without=["variant"], axes=_SEEDS, defaults={"seed": o.THREE_SEEDS})


@expanded
def controls(
    context: typer.Context,
    *,
    named: o.Assoc,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, _OF_A_STUDY],
    means: Means,
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT,
    scoring: o.ScoringOption = "first-token",
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Run the real data and its controls: does the finding hold up?

    Controls: the untouched base, no-entailment (nothing to infer from), and shuffled (nothing consistent to infer).
    They are compared subject by subject.
    """
    means.begin()
    from ocr_eval.analysis.controls import compare_conditions, condition_specs, verdict

    reals = _runs(context, model, named.one(context), settings)
    specs = [spec for real in reals for spec in condition_specs(real).values()]
    records = _study("controls", specs, output_dir, means, as_json)
    results = compare_conditions(records, scoring)
    if as_json:
        typer.echo(json.dumps({"verdict": verdict(results), "conditions": [asdict(r) for r in results]}, indent=2))
        return
    typer.echo(conditions_text(results))


def conditions_text(results: Sequence[ConditionResult]) -> str:
    """A line per condition, and the verdict."""
    from ocr_eval.analysis.controls import verdict

    rows = [
        [
            result.condition,
            f"{result.mean_rank:.2f}",
            f"{result.null_rank:.2f}",
            str(result.score),
            f"{result.p:.2g}",
            str(result.against.value) if result.against else "",
            {None: "-", True: "yes", False: "NO"}[result.premises_hold],
        ]
        for result in results
    ]
    header = ["condition", "mean rank", "null", "OCR score", "p", "real minus this", "learned"]
    return f"{o.grid(header, rows)}\n{verdict(results)}"


@expanded
def curve(
    context: typer.Context,
    *,
    named: o.Assoc,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, replace(_OF_A_STUDY, axes=[*_SEEDS, "m_train"], required=["m_train"])],
    means: Means,
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT,
    scoring: o.ScoringOption = "first-token",
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Measure how many examples it takes: OCR score by m_train.

    All points have the same test subjects. min(1, sqrt(m_train / m_test)), the held-out margin of the symbolic model
    (Theorem 2 of the paper), is printed for orientation; it does not predict this score.
    """
    means.begin()
    specs = _runs(context, model, named.one(context), settings, "m_train")
    m_test, seeds = specs[0].data.m_test, sorted({run.seed for run in specs})
    records = _study("curve", specs, output_dir, means, as_json)
    from ocr_eval.analysis.intervals import of_metric
    from ocr_eval.records.rows import ranks_by_seed

    points = []
    for m in settings["m_train"]:
        runs = [record for record in records if record.data.m_train == m]
        score = of_metric(list(ranks_by_seed(runs, scoring).values()))
        learned = all(run.premises_hold for run in runs)
        points.append((m, score, min(1.0, math.sqrt(m / m_test)), learned))
    one_seed = f"One seed has no interval. Give several, for example --seeds {o.THREE_SEEDS}."
    if as_json:
        keys = ("m_train", "ocr_score", "sqrt_m_train_over_m_test", "premises_hold")
        listed = [dict(zip(keys, (m, asdict(score), *rest), strict=True)) for m, score, *rest in points]
        about = {"assoc": specs[0].association.name, "m_test": m_test, "seeds": seeds}
        note = {"note": one_seed} if len(seeds) == 1 else {}
        typer.echo(json.dumps({**about, **note, "points": listed}, indent=2))
        return
    rows = [[str(m), str(score), f"{root:.2f}", "yes" if ok else "NO"] for m, score, root, ok in points]
    typer.echo(o.grid(["m_train", "OCR score", "min(1, sqrt(m_train/m_test))", "learned"], rows))
    if len(seeds) == 1:
        typer.echo(one_seed)


def _runs(context: typer.Context, model: str, assoc: str, settings: Given, *axes: str) -> list[RunSpec]:
    """The runs of a study on the real data, whatever the variant of --config's run; by default with three seeds."""
    seeds: Given = {}
    if not (context.meta.get(o.RUN) or "seed" in settings or {"data_seed", "train_seed"} <= settings.keys()):
        seeds = {"seed": SETTINGS["seed"].parse_axis(o.THREE_SEEDS)}
    given = {**seeds, **settings, "variant": "real"}
    varied = {axis: given[axis] for axis in (*axes, *_SEEDS) if axis in given}
    combinations = (dict(zip(varied, values, strict=True)) for values in product(*varied.values()))
    return [o.resolve(context, model, assoc, {**given, **each}) for each in combinations]


def _study(kind: str, specs: Sequence[RunSpec], output: Path, means: Means, as_json: bool) -> list[Record]:
    """Execute the runs of a study; returns their records, ordered by seed.

    Raises:
        UserError: bad input, found before any run.
        typer.Exit: a run is missing, or only the plan was requested.
    """
    if means.dry_run and as_json:
        raise UserError(
            "--json cannot be combined with --dry-run here: the plan of several runs is text. Drop one of them."
        )
    from ocr_eval.cli import sweep_work
    from ocr_eval.execution.sweep import study_name

    sweep_work.check(means, specs)
    name = study_name(f"{kind}-{specs[0].association.name}", specs)
    if means.dry_run:
        typer.echo("\n".join(sweep_work.plan(specs, output, means, name)))
        raise typer.Exit
    runs = sweep_work.carry_out(specs, output, means, name)
    sweep_work.report_missing(runs)
    return sorted((run.folder.record() for run in runs), key=lambda record: (record.seed, record.training_seed))
