"""A sweep by the means that the flags name: in this process, in several of this machine, or as jobs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from ocr_eval.common.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ocr_eval.execution.execute import Bases
    from ocr_eval.execution.jobs import JobResult, Placement
    from ocr_eval.execution.progress import SweepWatcher
    from ocr_eval.execution.sweep import Sweep
    from ocr_eval.models.base import Device
    from ocr_eval.specs.grid import Grid
    from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Means:
    """By what means a sweep is done; nothing of it changes what is learned."""

    device: Device
    placement: Placement
    workers: int | None
    report_to: str
    offline: bool
    force: bool
    worker: int | None

    @property
    def pack_device(self) -> str:
        """The type of device that packs should fill: on a cluster a GPU, unless told otherwise."""
        from ocr_eval.models.base import device_type

        if self.device == "auto" and self.placement.executor == "slurm":
            return "cpu" if self.placement.gpus_per_job == 0 else "cuda"
        return device_type(self.device)

    def flags(self) -> list[str]:
        """The same means as flags of a worker's command."""
        return ["--device", self.device, "--report-to", self.report_to, *(["--offline"] if self.offline else [])]

    def check(self, plans: bool) -> None:
        """Look, before anything is written, whether the means are there.

        Args:
            plans: whether the sweep is only planned, for which no cluster is needed.

        Raises:
            UserError: no such tracker, device or cluster, or several processes on a device other than a CPU.
            RunFailed: Slurm does not answer.
        """
        from ocr_eval.execution.jobs import check_placement
        from ocr_eval.execution.tracking import require_tracker

        require_tracker(self.report_to)
        if not (plans and self.placement.executor == "slurm"):
            check_placement(self.placement)
        if self.workers is not None and self.workers > 1 and self.pack_device != "cpu":
            raise UserError(f"--workers {self.workers}: several processes share the cores of a CPU; a GPU takes one.")

    @property
    def packs_at_once(self) -> int:
        """How many packs may be done at once on this machine, if there is enough to do."""
        from ocr_eval.execution.jobs.local import cores, resolve_devices

        if self.placement.executor == "here" and self.pack_device == "cpu":
            return self.workers or cores()
        return len(resolve_devices(self.placement.devices)) if self.placement.executor == "local" else 1

    def processes(self, packs: Sequence[Sequence[RunSpec]]) -> int:
        """How many processes of this machine do the packs of a sweep."""
        from ocr_eval.common.distributed import is_alone
        from ocr_eval.execution.workers import workers_that_pay

        if self.placement.executor != "here" or self.worker is not None or not is_alone():
            return 1
        if self.workers is None:
            return workers_that_pay(packs, self.pack_device)
        return min(self.workers, len(packs))


def run(grid: Grid, output: Path, means: Means) -> None:
    """Do what is left of a sweep, print its table, and leave with 1 if a run is missing.

    Raises:
        UserError: a name or a value that does not exist or fit, or a folder that cannot be written.
    """
    from ocr_eval.common.distributed import agreed
    from ocr_eval.common.files import prepare_output
    from ocr_eval.execution.execute import Bases
    from ocr_eval.execution.sweep import check_open, clear, join_sweep, plan_sweep
    from ocr_eval.execution.tracking import how_to_view, require_tracker

    grid.specs()  # what is wrong with it is said before a folder is made
    prepare_output(output)
    bases = Bases(means.device)
    if means.worker is None:
        sweep = plan_sweep(grid, output, means.pack_device, bases, means.packs_at_once)
        _say_what_is_left(sweep)
        check_open(sweep, bases, here=means.placement.executor != "slurm")
        sweep = sweep.stated()
        if means.force:
            agreed(clear, sweep)
    else:
        sweep = join_sweep(output, bases)
    if means.placement.executor == "here":
        _work_here(sweep, bases, means)
    else:
        _work_elsewhere(sweep, means)
    view = how_to_view(require_tracker(means.report_to), output)
    if view and means.worker is None:
        typer.echo(f"To view the runs: {view}", err=True)
    _conclude(sweep, means.worker)


def _work_here(sweep: Sweep, bases: Bases, means: Means) -> None:
    """Do the packs on this machine: in this process one after another, or in several that share its cores."""
    from ocr_eval.common.messages import say
    from ocr_eval.execution.execute import Execution
    from ocr_eval.execution.sweep import work
    from ocr_eval.execution.tracking import following, require_tracker
    from ocr_eval.execution.workers import work_side_by_side

    packs = [means.worker - 1] if means.worker else range(len(sweep.packs))
    todo = sum(run.is_open for index in packs for run in sweep.packs[index])
    processes = means.processes([[run.spec for run in pack] for pack in sweep.packs])
    beside = f" in {processes} processes" if processes > 1 and todo else ""
    _say_amount(sweep, f"{todo} to do{beside}")
    if processes > 1:
        _say_problems(sweep, work_side_by_side(sweep, processes, means.flags(), _watcher(sweep)))
        return
    report_to = require_tracker(means.report_to)
    with following(_watcher(sweep), report_to, sweep.output.resolve().name, sweep.output) as watch:
        how = Execution(means.device, every=sweep.grid.score_every, watch=watch, measures=sweep.grid.measures)
        work(sweep, bases, how, packs, lambda runs: say(f"Waiting for {runs} runs that another process is running"))


def _work_elsewhere(sweep: Sweep, means: Means) -> None:
    """Give every pack to the executor as a job, and wait for them all."""
    from ocr_eval.common.messages import say
    from ocr_eval.execution.jobs import run_jobs
    from ocr_eval.execution.sweep import pack_jobs
    from ocr_eval.execution.workers import Follower

    jobs = pack_jobs(sweep, means.flags())
    _say_amount(sweep, f"{len(jobs)} packs to do")
    follower = Follower(sweep.packs, _watcher(sweep))
    results = run_jobs(
        jobs,
        means.placement,
        sweep.output / "logs",
        lambda event: say(" ".join(filter(None, [event.job.name, event.state, event.place, event.reason]))),
        follower.look,
    )
    follower.look_closely()
    _say_problems(sweep, results)


def _say_what_is_left(sweep: Sweep) -> None:
    """Say how many runs of the folder's sweep no longer count: those of another results version or other weights."""
    from ocr_eval.common.messages import say
    from ocr_eval.specs.grid import read_sweep

    held = read_sweep(sweep.output)
    others = len(held.runs - {run.folder.identity for run in sweep.runs}) if held else 0
    if others:
        say(
            f"{others} run{'s' * (others > 1)} in this folder came from another results version, other weights, or a "
            "model or association file as it was before. They stay; what is asked for now is done beside them."
        )


def _say_amount(sweep: Sweep, todo: str) -> None:
    from ocr_eval.common.messages import say

    count = len(sweep.packs)
    say(f"{len(sweep.runs)} runs in {count} pack{'s' * (count > 1)}, {todo}, in {sweep.output}")


def _watcher(sweep: Sweep) -> SweepWatcher:
    """What says how far the sweep is, from what is still to be done."""
    from ocr_eval.execution.progress import SweepWatcher

    numbered = [(index, run) for index, pack in enumerate(sweep.packs) for run in pack if run.is_open]
    pack_of = {run.folder.identity: index for index, run in numbered}
    epochs = {run.folder.identity: run.spec.train.epochs for _, run in numbered}
    return SweepWatcher(epochs, pack_of, len(sweep.packs))


def _say_problems(sweep: Sweep, results: Sequence[JobResult]) -> None:
    """Name the jobs that failed, but for a job whose runs themselves say why they could not go on."""
    explained = all(run.folder.is_done() or run.folder.failure() for run in sweep.runs)
    for result in results:
        if result.end != "done" and not (explained and result.returncode == 1):
            typer.echo(f"ocr-eval: {result.problem()}", err=True)


def _conclude(sweep: Sweep, worker: int | None) -> None:
    """Print the table of what is finished, name what failed, and leave with 1 if a run is missing."""
    from ocr_eval.analysis.table import build_table
    from ocr_eval.report.tables import to_markdown
    from ocr_eval.specs.published import published_mean_ranks

    records = [run.folder.record() for run in sweep.runs if run.folder.is_done()]
    if worker is None and records:
        table = build_table(records, "first-token", published_mean_ranks())
        typer.echo(to_markdown(table), nl=False)
    missing = [run for run in (sweep.packs[worker - 1] if worker else sweep.runs) if not run.folder.is_done()]
    unexplained = 0
    for run in missing:
        reason = run.folder.failure()
        if reason:
            typer.echo(f"ocr-eval: {run.folder.identity}: {reason}", err=True)
        unexplained += reason is None
    if unexplained and worker is None:
        typer.echo(f"ocr-eval: {unexplained} runs are not finished. The same command resumes them.", err=True)
    if missing:
        raise typer.Exit(1)


def plan(grid: Grid, output: Path, means: Means) -> str:
    """The grid, what is done already, packs, memory and time; fetches nothing and writes nothing."""
    import yaml

    from ocr_eval.common.messages import say
    from ocr_eval.execution.execute import Bases
    from ocr_eval.execution.sweep import cut, plan_sweep, settled_dtypes
    from ocr_eval.models.weights import cached
    from ocr_eval.planning.pack_memory import describe_packs
    from ocr_eval.specs.grid import read_sweep

    bases, device = Bases(means.device), means.pack_device
    specs = grid.specs(settled_dtypes(grid, read_sweep(output), output, device, bases))
    say(f"Planning {len(specs)} runs")
    if all(cached(spec.model) for spec in specs):
        sweep = plan_sweep(grid, output, device, bases, means.packs_at_once)
        packs = [[run.spec for run in pack] for pack in sweep.packs]
    else:
        packs = cut(specs, device, means.packs_at_once)
    packed = describe_packs(packs, _done(packs, output, bases), device, means.processes(packs), grid.score_every)
    lines = [f"output: {output}", *packed]
    comments = "".join(f"# {line}\n" for line in lines)
    return comments + yaml.safe_dump(grid.flags(), sort_keys=False, default_flow_style=None, width=110)


def plan_together(specs: Sequence[RunSpec], output: Path, device: Device) -> str:
    """The runs of one command of this process: what is done, packs, memory and time; fetches and writes nothing."""
    from ocr_eval.execution.execute import Bases
    from ocr_eval.models.base import device_type
    from ocr_eval.planning.pack_memory import describe_packs, lanes_that_fit
    from ocr_eval.planning.packs import cut_into_packs

    kind, bases = device_type(device), Bases(device)
    packs = cut_into_packs(bases.settle(specs, output), kind, lanes_that_fit(kind))
    lines = [f"output: {output}", *describe_packs(packs, _done(packs, output, bases), kind, workers=1)]
    return "".join(f"{line}\n" for line in lines)


def _done(packs: Sequence[Sequence[RunSpec]], output: Path, bases: Bases) -> list[list[bool]]:
    """Which runs are finished; none of a model not on this disk, as the content of its weights names the folders."""
    from ocr_eval.models.weights import cached

    return [[bool(cached(spec.model)) and bases.folder(spec, output).is_done() for spec in pack] for pack in packs]
