"""``sweep`` and ``status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.injections import DEVICES
from ocr_eval.cli.sweep_work import Means, plan, run
from ocr_eval.common.errors import UserError

if TYPE_CHECKING:
    from ocr_eval.models.base import Device
    from ocr_eval.specs.grid import Grid, SweepState

ALL_ASSOCS = "all"
DEFAULT_OUTPUT = Path("results/sweep")


def sweep(
    models: o.ModelsOption = None,
    assocs: o.AssocsOption = None,
    seeds: o.SweepSeedsOption = None,
    methods: o.MethodsOption = None,
    lr: o.LrsOption = None,
    epochs: o.EpochsListOption = None,
    batch_size: o.BatchSizesOption = None,
    rank: o.RanksOption = None,
    alpha: o.AlphasOption = None,
    n: o.NsOption = None,
    m_train: o.MTrainsOption = None,
    variants: o.VariantsOption = None,
    m_test: o.SweepMTestOption = None,
    candidates: o.SweepCandidatesOption = None,
    dtype: o.DtypeOption = None,
    score_every: o.SweepScoreEveryOption = None,
    device: o.DeviceOption = "auto",
    offline: o.OfflineOption = False,
    output_dir: o.OutputOption = DEFAULT_OUTPUT,
    executor: o.ExecutorOption = "here",
    workers: o.WorkersOption = None,
    devices: o.DevicesOption = None,
    partition: o.PartitionOption = None,
    time_limit: o.TimeLimitOption = None,
    gpus_per_job: o.GpusPerJobOption = None,
    cpus_per_job: o.CpusPerJobOption = None,
    memory_gb: o.MemoryOption = None,
    parallel: o.ParallelOption = None,
    slurm: o.SlurmOption = None,
    report_to: o.ReportToOption = "none",
    force: o.ForceOption = False,
    dry_run: o.DryRunOption = False,
    quiet: o.QuietOption = False,
    worker: Annotated[
        int | None,
        typer.Option(
            help="Run one pack of the folder's sweep, by its number from 1; 0: all that no other process runs."
        ),
    ] = None,
    config: o.ConfigOption = None,
) -> None:
    """Run a grid of models x associations x methods x seeds.

    Lists are comma-separated. Without flags: the default model, all associations, seeds 0-2. Runs that share a base
    are trained side by side. Rerunning resumes; in a folder that already contains a sweep no flags are needed. Several
    processes may work on one folder.
    """
    o.begin(quiet, offline)
    o.choice("--device", device, DEVICES)
    from ocr_eval.execution.jobs import Placement
    from ocr_eval.specs.grid import check_same, read_sweep

    if worker is not None:  # it does its pack here, whatever the variables of its parent say
        placement = Placement()
    else:
        if workers is not None and executor != "here":
            raise UserError(f"--workers goes with --executor here, not with '{executor}'.")
        placement = o.placement(
            executor,
            devices=devices,
            partition=partition,
            time_limit=time_limit,
            gpus_per_job=gpus_per_job,
            cpus_per_job=cpus_per_job,
            memory_gb=memory_gb,
            parallel=parallel,
            slurm=slurm,
        )

    held = read_sweep(output_dir)
    if worker is not None:
        _check_worker(worker, held, output_dir)
    given = _given(
        {
            "models": o.words("--models", models),
            "assocs": _assocs(assocs),
            "seeds": None if seeds is None else tuple(o.integers("--seeds", seeds)),
            "methods": o.words("--methods", methods),
            "lr": o.numbers("--lr", lr),
            "epochs": o.whole_numbers("--epochs", epochs),
            "batch_size": o.whole_numbers("--batch-size", batch_size),
            "rank": o.whole_numbers("--rank", rank),
            "alpha": o.numbers("--alpha", alpha),
            "n": o.whole_numbers("--n", n),
            "m_train": None if m_train is None else tuple(o.integers("--m-train", m_train)),
            "variants": o.words("--variants", variants),
            "m_test": m_test,
            "candidates": candidates,
            "dtype": None if dtype is None else o.precision(dtype),
            "score_every": score_every,
        }
    )
    grid = _grid({} if worker is not None else given, held.grid if held else None)  # a worker's is the sweep's
    check_same(grid, output_dir)
    means = Means(cast("Device", device), placement, workers, report_to, offline, force, worker)
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


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _assocs(text: str | None) -> tuple[str, ...] | None:
    from ocr_eval.common import yaml_files

    return tuple(yaml_files.shipped_names("templates")) if text == ALL_ASSOCS else o.words("--assocs", text)


def _grid(given: dict[str, Any], held: Grid | None) -> Grid:
    """The grid that the flags describe; what they leave out is the folder's sweep's, or the default."""
    from ocr_eval.common import yaml_files
    from ocr_eval.records.select import column_order
    from ocr_eval.specs.grid import Grid

    given = dict(given)
    for name in ("models", "assocs"):
        if name in given:
            given[name] = tuple(map(_absolute, given[name]))
    defaults: dict[str, Any] = {
        "models": (o.DEFAULT_MODEL,),
        "assocs": tuple(column_order(yaml_files.shipped_names("templates"))),
        "seeds": (0, 1, 2),
    }
    return yaml_files.parse(Grid, {**(held.model_dump() if held else defaults), **given}, "sweep")


def _absolute(name: str) -> str:
    """A path of the user's as one that holds wherever a job starts; a name as it is, also where a folder is called so.

    ``org/name`` is a path only where something of that name is there.
    """
    from ocr_eval.common import yaml_files

    path = Path(name)
    return str(path.resolve()) if yaml_files.looks_like_path(name) and path.exists() else name


def status(
    output_dir: o.OutputOption = DEFAULT_OUTPUT,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Show the progress of a sweep, also while it runs.

    Every run's state, epoch, loss and OCR score.
    """
    from ocr_eval.execution.status import run_state, state_table, states_json
    from ocr_eval.specs.grid import read_sweep

    held = read_sweep(output_dir)
    if held is None:
        raise UserError(f"'{output_dir}' contains no sweep (no sweep.json). Name its folder with --output-dir.")
    states = [run_state(output_dir, run) for pack in held.packs for run in pack]
    typer.echo(states_json(states) if as_json else state_table(states), nl=False)
    for state in states:
        if state.reason:
            typer.echo(f"{state.run}: {state.reason}", err=True)
