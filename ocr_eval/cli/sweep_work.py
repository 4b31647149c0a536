"""Executing runs as the flags say: in this process, in several on this machine, or as jobs elsewhere.

Commands import this module only when they run, because it imports the training code.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Means
from ocr_eval.common.distributed import agreed, is_alone
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output
from ocr_eval.common.messages import say
from ocr_eval.common.registry import DEFAULT_MEASURES
from ocr_eval.execution import live_run
from ocr_eval.execution.execute import Bases, PlannedRun
from ocr_eval.execution.jobs import JobEvent, Placement, run_jobs
from ocr_eval.execution.jobs.local import cores, resolve_devices
from ocr_eval.execution.jobs.slurm import sbatch_flags
from ocr_eval.execution.progress import SweepWatcher
from ocr_eval.execution.run_pack import Execution
from ocr_eval.execution.sweep import Sweep, check_open, clear, join_sweep, pack_jobs, plan_sweep, work, worker_jobs
from ocr_eval.execution.tracking import following, how_to_view, require_tracker
from ocr_eval.execution.workers import Follower, workers_that_pay
from ocr_eval.models.base import device_type
from ocr_eval.models.weights import cached
from ocr_eval.planning.packs import cut, describe_packs
from ocr_eval.planning.workload import tokenizer_at_hand
from ocr_eval.specs import schedule
from ocr_eval.specs.grid import Grid
from ocr_eval.specs.run import RunSpec


def pack_device(means: Means) -> str:
    """The type of device that packs should fill: on a cluster a GPU, unless told otherwise."""
    if means.device == "auto" and means.executor == "slurm":
        return "cpu" if means.gpus_per_job == 0 else "cuda"
    return device_type(means.device)


def check(means: Means, specs: Sequence[RunSpec]) -> None:
    """Check, before anything is written, that the runs can be executed this way; a plan needs no cluster.

    Raises:
        UserError: there is no such epoch, measure or device, no tracker or cluster here, flags conflict, or several
            processes would share a device other than a CPU.
        RunFailed: Slurm does not respond.
    """
    schedule.checked(means.scored_at, "--score-at", max(spec.train.epochs for spec in specs))
    require_tracker(means.report_to)
    o.measures(means.measures)
    placement = means.placement()
    if means.executor == "local":
        resolve_devices(placement.devices)
    if means.executor == "slurm" and not means.dry_run:
        sbatch_flags(placement)
    if means.workers is not None and means.workers > 1 and pack_device(means) != "cpu":
        raise UserError(f"--workers {means.workers}: only a CPU can be shared by several processes. Use 1 on a GPU.")


def packs_at_once(means: Means) -> int:
    """How many packs may run at once on this machine, if there is enough work."""
    if means.executor == "here" and pack_device(means) == "cpu":
        return means.workers or cores()
    return len(resolve_devices(means.placement().devices)) if means.executor == "local" else 1


def _processes(means: Means, packs: Sequence[Sequence[RunSpec]]) -> int:
    """How many processes on this machine share the packs."""
    if means.executor != "here" or not is_alone():
        return 1
    if means.workers is None:
        return workers_that_pay(packs, pack_device(means))
    return min(means.workers, len(packs))


def carry_out(
    specs: Sequence[RunSpec], output: Path, means: Means, study: str = "", grid: Grid | None = None
) -> list[PlannedRun]:
    """Execute the unfinished ones of some runs, as the sweep of a folder or as a study there.

    Returns:
        All runs; those that could not continue are unfinished.

    Raises:
        UserError: a tokenizer cannot handle the data, weights are not available, or the folder cannot be written or
            holds another sweep.
    """
    prepare_output(output)
    bases = Bases(means.device)
    sweep = plan_sweep(specs, output, pack_device(means), bases, packs_at_once(means), study, grid)
    check_open(sweep, bases, here=means.executor != "slurm", all_again=means.force)
    sweep = sweep.stated()
    if means.force:
        agreed(clear, sweep)
    processes = _processes(means, [[run.spec for run in pack] for pack in sweep.packs])
    if means.executor == "here" and processes == 1:
        _work_here(sweep, bases, means, range(len(sweep.packs)))
    else:
        _work_in_jobs(sweep, means, processes)
    view = how_to_view(means.report_to, output)
    if view:
        typer.echo(f"To view the runs: {view}", err=True)
    done = [run.folder.record() for run in sweep.runs if run.folder.is_done()]
    for name in o.measures(means.measures) or ():
        without = sum(name not in record.measures for record in done)
        if without and name != DEFAULT_MEASURES:
            runs = "1 finished run lacks" if without == 1 else f"{without} finished runs lack"
            o.warn(f"{runs} the measure '{name}'. Rerun with --force to take it.")
    return sweep.runs


def take_part(output: Path, study: str, pack: int, means: Means) -> None:
    """Do one pack of a folder's sweep, numbered from 1, or with 0 all packs that no other process does.

    Raises:
        UserError: there is no such pack, or the identity of its runs has changed since.
    """
    require_tracker(means.report_to)
    bases = Bases(means.device)
    sweep = join_sweep(output, study, bases)
    if not 0 <= pack <= len(sweep.packs):
        raise UserError(f"--worker {pack}: this sweep has packs 1 to {len(sweep.packs)}; 0 means all of them.")
    means = means if sweep.grid is None else means.of(sweep.grid)
    packs = [pack - 1] if pack else range(len(sweep.packs))
    _work_here(sweep, bases, means, packs)
    report_missing([run for index in packs for run in sweep.packs[index]], resumes=False)


def _work_here(sweep: Sweep, bases: Bases, means: Means, packs: Sequence[int]) -> None:
    """Do packs in this process, one after another."""
    _say_amount(sweep, packs)
    with following(SweepWatcher(sweep.packs), means.report_to, sweep.name, sweep.output) as watch:
        how = Execution(means.device, score_at=means.scored_at, watch=watch, measures=o.measures(means.measures))
        work(sweep, bases, how, packs)


def _work_in_jobs(sweep: Sweep, means: Means, processes: int) -> None:
    """Do the packs in this number of ``processes`` on this CPU, or each as a job of the executor."""
    here = means.executor == "here"
    jobs = worker_jobs(sweep, processes, means.flags()) if here else pack_jobs(sweep, means.flags())
    placement = Placement(executor="local", devices=("cpu",) * processes) if here else means.placement()
    how = f" in {len(jobs)} {'processes' if here else 'jobs'}" if len(jobs) > 1 else ""
    _say_amount(sweep, range(len(sweep.packs)), how)
    follower = Follower(sweep.packs, SweepWatcher(sweep.packs))

    def tell(event: JobEvent) -> None:
        if not here:
            say(" ".join(filter(None, [event.job.name, event.state, event.place, event.reason])))

    results = run_jobs(jobs, placement, sweep.output / "logs", tell, follower.look)
    follower.look(closely=True)
    explained = all(run.folder.is_done() or run.folder.failure() for run in sweep.runs)
    for result in results:
        if result.end != "done" and not (explained and result.returncode == 1):  # its runs have said why
            o.warn(result.problem())


def _say_amount(sweep: Sweep, packs: Sequence[int], how: str = "") -> None:
    """Say how much there is to do, and how many of the folder's earlier runs no longer belong to it."""
    others = len(sweep.before.runs - {run.folder.identity for run in sweep.runs}) if sweep.before else 0
    if others:
        say(
            f"{others} run{'s' * (others > 1)} in this folder came from another results version, other weights, or an "
            "older model or association file. They are kept; the requested runs are added."
        )
    count, todo = len(sweep.packs), sum(run.is_open for index in packs for run in sweep.packs[index])
    say(f"{len(sweep.runs)} runs in {count} pack{'s' * (count > 1)}, {todo} to do{how}, in {sweep.output}")


def report_missing(runs: Sequence[PlannedRun], resumes: bool = True) -> None:
    """Say why runs are missing and, if ``resumes``, that rerunning the command resumes them; exit with 1 if any is."""
    missing = [run for run in runs if not run.folder.is_done()]
    for run in missing:
        if reason := run.folder.failure():
            o.warn(f"{run.folder.identity}: {reason}")
    unexplained = sum(run.is_open for run in missing)
    if unexplained and resumes:
        o.warn(f"{unexplained} runs are not finished. Rerun the command to resume them.")
    if missing:
        raise typer.Exit(1)


def plan(specs: Sequence[RunSpec], output: Path, means: Means, study: str = "") -> list[str]:
    """The plan of some runs: packs, what is already finished, memory and time; fetches and writes nothing.

    Raises:
        UserError: a run would be rejected.
    """
    bases, device = Bases(means.device), pack_device(means)
    say(f"Planning {len(specs)} runs")
    if all(cached(spec.model) for spec in specs):
        sweep = plan_sweep(specs, output, device, bases, packs_at_once(means), study)
        packs = [[run.spec for run in pack] for pack in sweep.packs]
    else:  # without the weights' digest, earlier runs cannot be found
        packs = cut(bases.settle(specs, None, device), device, packs_at_once(means))
    done = [[bool(cached(spec.model)) and bases.folder(spec, output).is_done() for spec in pack] for pack in packs]
    todo = [spec for spec, is_done in zip(chain(*packs), chain(*done), strict=True) if not is_done]
    tokenizers = {model: tokenizer_at_hand(model) for model in {spec.model for spec in todo}}
    for spec in todo:
        tokenizer, is_real = tokenizers[spec.model]
        live_run.check(spec, tokenizer if is_real else None)
    described = describe_packs(packs, done, device, _processes(means, packs), means.scored_at)
    return [f"output: {output}", *described, *_power(specs)]


def _power(specs: Sequence[RunSpec]) -> list[str]:
    """What comparisons the seeds can decide; empty if runs differ only in model or association."""
    from ocr_eval.analysis.difference import power
    from ocr_eval.analysis.significance import seeds_needed

    conditions = {(spec.model.name, spec.association.name, spec.data, spec.train) for spec in specs}
    compared = Counter((model, association) for model, association, *_ in conditions)
    comparisons = sum(count > 1 for count in compared.values())
    if not comparisons:
        return []
    seeds, needed = len({spec.seed for spec in specs}), seeds_needed(comparisons)
    if seeds < needed:
        of = f"{comparisons} comparisons of OCR scores take" if comparisons > 1 else "a comparison of OCR scores takes"
        return [f"comparing: no verdict from {seeds} seed{'s' * (seeds > 1)}; {of} {needed} or more"]
    return [f"comparing: {power(seeds, comparisons)}"]
