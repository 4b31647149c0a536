"""``sweep`` and ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import Given, Settings, expanded, option
from ocr_eval.cli.sweep_work import Means, plan, run
from ocr_eval.common.errors import UserError
from ocr_eval.specs.settings import AXES, SETTINGS

if TYPE_CHECKING:
    from ocr_eval.specs.grid import Grid, SweepState

ALL_ASSOCS = "all"
DEFAULT_OUTPUT = Path("results/sweep")


_SWEPT = Settings(axes=["seed", *(setting.name for setting in AXES.values())], defaults={"seed": "0-2"})


@expanded
def sweep(
    *,
    models: o.ModelsOption = None,
    assocs: o.AssocsOption = None,
    settings: Annotated[Given, _SWEPT],
    score_every: Annotated[
        int | None, option("--score-every", min=1, help="Score every so many epochs (default: 1).")
    ] = None,
    measures: o.MeasuresOption = None,
    output_dir: o.OutputOption = DEFAULT_OUTPUT,
    jobs: o.Jobs,
    machine: o.Machine,
    report_to: o.ReportToOption = "none",
    force: o.ForceOption = False,
    dry_run: o.DryRunOption = False,
    worker: Annotated[
        int | None,
        option(
            "--worker",
            help="Run one pack of the folder's sweep, by its number from 1; 0: all that no other process runs.",
        ),
    ] = None,
    config: o.ConfigOption = None,
) -> None:
    """Run a grid of models x associations x methods x seeds.

    Values are comma-separated, ranges of whole numbers are '1-4,8', and entries of one value are joined by '+' (three
    choices of templates: '0,0+2,all'). Every combination is a run. Without flags: the default model, all associations,
    seeds 0-2. Runs that share a base are trained side by side. Rerunning resumes; in a folder that already contains a
    sweep no flags are needed. Several processes may work on one folder.
    """
    device = machine.begin()
    from ocr_eval.execution.jobs import Placement
    from ocr_eval.specs.grid import check_same, read_sweep

    # a worker does its pack here, whatever the variables of its parent say
    placement = Placement() if worker is not None else jobs.placement()
    held = read_sweep(output_dir)
    given: dict[str, Any] = {}
    if worker is not None:
        _check_worker(worker, held, output_dir)
    else:
        named = {"models": o.words("--models", models), "assocs": _assocs(assocs), "score_every": score_every}
        named["measures"] = o.measures(measures)
        axes = {SETTINGS[name].axis: value for name, value in settings.items()}
        given = axes | {name: value for name, value in named.items() if value is not None}
    grid = _grid(given, held.grid if held else None)
    check_same(grid, output_dir)
    means = Means(device, placement, jobs.workers, report_to, machine.offline, force, worker)
    means.check(plans=dry_run)
    if dry_run:
        typer.echo(plan(grid, output_dir, means), nl=False)
        return
    run(grid, output_dir, means)


def _check_worker(worker: int, held: SweepState | None, output: Path) -> None:
    """Raises UserError if a folder has no sweep to take part in, or one without this pack."""
    if held is None:
        raise UserError(f"'{output}' contains no sweep to take part in (no sweep.json).")
    if not 0 <= worker <= len(held.packs):
        raise UserError(f"--worker {worker}: this sweep has packs 1 to {len(held.packs)}; 0 means all of them.")


def _assocs(text: str | None) -> tuple[str, ...] | None:
    from ocr_eval.common import yaml_files

    return tuple(yaml_files.shipped_names("templates")) if text == ALL_ASSOCS else o.words("--assocs", text)


def _grid(given: dict[str, Any], held: Grid | None) -> Grid:
    """The grid that the flags describe; what they leave out is the folder's sweep's, or the default."""
    from ocr_eval.common import yaml_files
    from ocr_eval.records.select import column_order
    from ocr_eval.specs.grid import Grid

    paths: dict[str, Any] = {name: tuple(map(_absolute, given[name])) for name in ("models", "assocs") if name in given}
    defaults: dict[str, Any] = {
        "models": (o.DEFAULT_MODEL,),
        "assocs": tuple(column_order(yaml_files.shipped_names("templates"))),
        "seeds": (0, 1, 2),
    }
    return yaml_files.parse(Grid, {**(held.model_dump() if held else defaults), **given, **paths}, "sweep")


def _absolute(name: str) -> str:
    """A path of the user's as one that holds wherever a job starts; a name as it is, also where a folder is called so.

    ``org/name`` is a path only where something of that name is there.
    """
    from ocr_eval.common import yaml_files

    path = Path(name)
    return str(path.resolve()) if yaml_files.looks_like_path(name) and path.exists() else name


def status(
    context: typer.Context,
    runs: Annotated[
        Path | None,
        typer.Argument(
            metavar="SWEEP",
            help="Folder of the sweep (default: $OCR_EVAL_OUTPUT_DIR, else results/sweep).",
            envvar="OCR_EVAL_OUTPUT_DIR",
            show_envvar=False,
        ),
    ] = None,
    former: o.FormerOption = None,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Show the progress of a sweep, also while it runs.

    Every run's state, epoch, loss and OCR score.
    """
    from ocr_eval.execution.status import run_state, state_table, states_json
    from ocr_eval.specs.grid import read_sweep

    (folder,) = o.places(context, [runs or DEFAULT_OUTPUT], former)
    held = read_sweep(folder)
    if held is None:
        raise UserError(f"'{folder}' contains no sweep (no sweep.json). Name its folder: ocr-eval status FOLDER.")
    states = [run_state(folder, run) for pack in held.packs for run in pack]
    typer.echo(states_json(states) if as_json else state_table(states), nl=False)
    for state in states:
        if state.reason:
            typer.echo(f"{state.run}: {state.reason}", err=True)
