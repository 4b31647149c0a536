"""``sweep`` and ``status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Means
from ocr_eval.cli.spec_flags import Given, Settings, expanded, option
from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.specs.published import published_associations, published_mean_ranks
from ocr_eval.specs.settings import AXES, SETTINGS

if TYPE_CHECKING:
    from ocr_eval.specs.grid import Grid

ALL_ASSOCS = "all"
DEFAULT_OUTPUT = Path("results/sweep")


_SWEPT = Settings(axes=[setting.name for setting in AXES.values()], defaults={"seed": o.THREE_SEEDS})


@expanded
def sweep(
    *,
    models: o.ModelsOption = None,
    assocs: o.AssocsOption = None,
    settings: Annotated[Given, _SWEPT],
    output_dir: o.OutputOption = DEFAULT_OUTPUT,
    means: Means,
    worker: Annotated[
        int | None,
        option(
            "--worker",
            help="Run one pack of the folder's sweep, by number from 1; 0: every pack that no other process runs.",
        ),
    ] = None,
    study: Annotated[
        str | None, option("--study", help="With --worker: work on this study of the folder, not on its sweep.")
    ] = None,
    config: o.ConfigOption = None,
) -> None:
    """Run a grid of models x associations x methods x seeds.

    Every combination of values is a run. Values are comma-separated; '1-4,8' is a range of integers; '+' joins the
    entries of one value (three choices of templates: '0,0+2,all'). Without flags: the default model, the paper's
    associations, seeds 0-2. Runs that share a base train side by side. Rerunning resumes, and then needs no flags.
    Several processes may work on one folder.
    """
    means.begin()
    import yaml

    from ocr_eval.specs.grid import check_same, read_sweep

    if worker is not None:
        if means.dry_run:
            raise UserError("--dry-run cannot be combined with --worker, which runs an existing plan. Drop one.")
        from ocr_eval.cli.sweep_work import take_part

        take_part(output_dir, study or "", worker, means)
        return
    if study is not None:
        raise UserError("--study needs --worker. To run a study, use its own command.")
    held = read_sweep(output_dir)
    every = tuple(shipped_names("templates")) if assocs == ALL_ASSOCS else o.words("--assocs", assocs)
    given: dict[str, Any] = {"models": o.words("--models", models), "assocs": every}
    given |= {"score_at": means.score_at, "measures": o.measures(means.measures)}
    given |= {SETTINGS[name].axis: value for name, value in settings.items()}
    given = {name: value for name, value in given.items() if value is not None}
    grid = _grid(given, held.grid if held else None)
    check_same(grid, held, output_dir)
    from ocr_eval.cli import sweep_work

    specs = grid.specs()
    sweep_work.check(means, specs)
    means = means.of(grid)
    if means.dry_run:
        comments = "".join(f"# {line}\n" for line in sweep_work.plan(specs, output_dir, means))
        flags = yaml.safe_dump(grid.flags(), sort_keys=False, default_flow_style=None, width=110)
        typer.echo(comments + flags, nl=False)
        return
    from ocr_eval.analysis.table import build_table
    from ocr_eval.report.tables import to_markdown

    runs = sweep_work.carry_out(specs, output_dir, means, grid=grid)
    records = [run.folder.record() for run in runs if run.folder.is_done()]
    if records:
        typer.echo(to_markdown(build_table(records, "first-token", published_mean_ranks())), nl=False)
    sweep_work.report_missing(runs)


def _grid(given: dict[str, Any], held: Grid | None) -> Grid:
    """The grid that the flags describe; the rest comes from the folder's sweep, or else from the defaults."""
    from ocr_eval.specs.grid import Grid

    paths: dict[str, Any] = {name: tuple(map(_absolute, given[name])) for name in ("models", "assocs") if name in given}
    defaults: dict[str, Any] = {
        "models": (o.DEFAULT_MODEL,),
        "assocs": tuple(published_associations()),
        "seeds": SETTINGS["seed"].parse_axis(o.THREE_SEEDS),
    }
    left_out = held.model_dump() if held else defaults
    if given.keys() >= {"data_seed", "train_seed"}:
        del left_out["seeds"]
    return yaml_files.parse(Grid, {**left_out, **given, **paths}, "sweep")


def _absolute(name: str) -> str:
    """A path made absolute, because jobs may start elsewhere; a name stays as it is, even if a folder has that name.

    ``org/name`` is a path only if it exists.
    """
    path = Path(name)
    return str(path.resolve()) if yaml_files.looks_like_path(name) and path.exists() else name


def status(
    runs: Annotated[
        Path | None,
        typer.Argument(
            metavar="SWEEP",
            help="Folder of the sweep or studies (default: $OCR_EVAL_OUTPUT_DIR, else results/sweep).",
            envvar="OCR_EVAL_OUTPUT_DIR",
            show_envvar=False,
        ),
    ] = None,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Show the progress of a folder's sweep and studies.

    Lists every run's state, epoch, loss and OCR score, also during the sweep.
    """
    from dataclasses import asdict

    from ocr_eval.execution.status import run_states, state_table

    states = run_states(runs or DEFAULT_OUTPUT)
    typer.echo(json.dumps(list(map(asdict, states)), indent=2) + "\n" if as_json else state_table(states), nl=False)
    for run, reason in {state.run: state.reason for state in states if state.reason}.items():
        typer.echo(f"{run}: {reason}", err=True)
