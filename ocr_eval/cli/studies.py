"""``controls`` and ``curve``: several runs that answer one question."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import Given, Settings, expanded
from ocr_eval.cli.sweep_work import plan_together
from ocr_eval.common.errors import UserError

if TYPE_CHECKING:
    from ocr_eval.specs.run import RunSpec

_ONE_SEED = "One seed: intervals are over subjects only."


_OF_A_STUDY = Settings(without=["variant"], axes=["seed"])


@expanded
def controls(
    context: typer.Context,
    *,
    association: o.AssocArgument = None,
    assoc: o.AssocOption = None,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, _OF_A_STUDY],
    machine: o.Machine,
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT,
    scoring: o.ScoringOption = "first-token",
    dry_run: o.DryRunOption = False,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Run the real data and its controls: does the finding stand?

    Controls: the untouched base, no-entailment (nothing to infer from), shuffled (nothing consistent to infer). They
    are compared subject by subject.
    """
    device, chosen = machine.begin(), o.scoring(scoring)
    _refuse_json_plan(dry_run, as_json)
    from ocr_eval.analysis.controls import Condition, compare_conditions, condition_specs, verdict

    reals = _runs(context, model, o.one_assoc(context, association, assoc), settings, "seed")
    plan = [(condition, spec) for real in reals for condition, spec in condition_specs(real).items()]
    if dry_run:
        typer.echo(plan_together([spec for _, spec in plan], output_dir, device), nl=False)
        return
    from ocr_eval.execution.execute import Execution, finetune_all

    records: dict[Condition, list[Any]] = {}
    outcomes = finetune_all([spec for _, spec in plan], output_dir, Execution(device))
    for (condition, _), outcome in zip(plan, outcomes, strict=True):
        records.setdefault(condition, []).append(outcome.record)
    results = compare_conditions(records, chosen)
    if as_json:
        typer.echo(json.dumps({"verdict": verdict(results), "conditions": [asdict(r) for r in results]}, indent=2))
        return
    rows = [
        [
            result.condition,
            f"{result.mean_rank:.2f}",
            f"{result.null_rank:.2f}",
            o.interval_text(result.score),
            f"{result.p:.2g}",
            o.interval_text(result.against.difference) if result.against else "",
            {None: "-", True: "yes", False: "NO"}[result.facts_learned],
        ]
        for result in results
    ]
    header = ["condition", "mean rank", "null", "OCR score", "p", "real minus this", "facts learned"]
    typer.echo(o.grid(header, rows))
    typer.echo(f"{verdict(results)}{f' {_ONE_SEED}' if len(reals) == 1 else ''}")


@expanded
def curve(
    context: typer.Context,
    *,
    association: o.AssocArgument = None,
    assoc: o.AssocOption = None,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, replace(_OF_A_STUDY, axes=["seed", "m_train"], required=["m_train"])],
    machine: o.Machine,
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT,
    scoring: o.ScoringOption = "first-token",
    dry_run: o.DryRunOption = False,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Measure how many examples it takes: OCR score by m_train.

    All points have the same test subjects. min(1, sqrt(m_train / m_test)), the held-out margin of the symbolic model
    (Theorem 2 of the paper), is printed for orientation; it does not predict this score.
    """
    device, chosen = machine.begin(), o.scoring(scoring)
    _refuse_json_plan(dry_run, as_json)
    plan = _runs(context, model, o.one_assoc(context, association, assoc), settings, "m_train", "seed")
    m_test, seeds = plan[0].data.m_test, sorted({run.seed for run in plan})
    if dry_run:
        typer.echo(plan_together(plan, output_dir, device), nl=False)
        return
    from ocr_eval.analysis.bootstrap import ocr_score
    from ocr_eval.execution.execute import Execution, finetune_all

    records = [outcome.record for outcome in finetune_all(plan, output_dir, Execution(device))]
    points = []
    for m in settings["m_train"]:
        runs = [record for record in records if record.data.m_train == m]
        score = ocr_score([run.held_out[chosen] for run in runs])
        learned = all(run.facts_learned for run in runs)
        points.append((m, score, min(1.0, math.sqrt(m / m_test)), learned))
    if as_json:
        keys = ("m_train", "ocr_score", "sqrt_m_train_over_m_test", "facts_learned")
        listed = [dict(zip(keys, (m, asdict(score), root, learned), strict=True)) for m, score, root, learned in points]
        about = {"assoc": plan[0].association.name, "m_test": m_test, "seeds": seeds}
        typer.echo(json.dumps({**about, "points": listed}, indent=2))
        return
    rows = [[str(m), o.interval_text(score), f"{root:.2f}", "yes" if ok else "NO"] for m, score, root, ok in points]
    typer.echo(o.grid(["m_train", "OCR score", "min(1, sqrt(m_train/m_test))", "facts learned"], rows))
    if len(seeds) == 1:
        typer.echo(_ONE_SEED)


def _runs(context: typer.Context, model: str, assoc: str, settings: Given, *axes: str) -> list[RunSpec]:
    """The runs of a study on the real data, whatever the run of --config had."""
    return o.resolve_each(context, model, assoc, {**settings, "variant": "real"}, *axes)


def _refuse_json_plan(dry_run: bool, as_json: bool) -> None:
    """Raises UserError where a plan is asked for as JSON."""
    if dry_run and as_json:
        raise UserError("--json does not go with --dry-run here: the plan of several runs is text. Drop one of them.")
