"""Executing a sweep: runs are cut into packs, which one process or several carry out without losing work.

A sweep is a list of runs in a folder, with a file that states each run and which ones share a pack: ``sweep.json`` for
the sweep of a grid, ``studies/NAME.json`` for a study. Their runs are in ``runs/``, like those of ``finetune``; sweeps
and studies that need the same run share it. Each process takes packs that nobody holds, so that several share the work;
finished runs are not repeated, and interrupted ones resume.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from ocr_eval.common import provenance
from ocr_eval.common.distributed import agreed
from ocr_eval.common.errors import Busy, RunFailed, UserError
from ocr_eval.common.files import write_atomic
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say, warn
from ocr_eval.execution.execute import Bases, PlannedRun, do_pack
from ocr_eval.execution.jobs import Job
from ocr_eval.execution.live_run import check
from ocr_eval.execution.run_pack import Execution
from ocr_eval.planning.memory import refuse_impossible
from ocr_eval.planning.packs import cut
from ocr_eval.records.config import parse_run
from ocr_eval.specs.grid import Grid, SweepState, check_same, read_sweep, state_file
from ocr_eval.specs.run import RunSpec

#: Seconds between checks of packs that another process holds.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Sweep:
    """A sweep or study in its folder.

    Attributes:
        study: the study's name; empty for the folder's sweep.
        grid: the grid that its runs come from, if any.
        before: what the folder stated when this was planned.
    """

    output: Path
    packs: tuple[tuple[PlannedRun, ...], ...]
    study: str = ""
    grid: Grid | None = None
    before: SweepState | None = None

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run."""
        return [run for pack in self.packs for run in pack]

    @property
    def name(self) -> str:
        """The name that its runs are grouped under."""
        return self.study or self.output.resolve().name

    def stated(self) -> Sweep:
        """State the sweep in its folder, so that other processes can join or watch it.

        Returns:
            The sweep; if another process has stated it in the meantime, with that one's packs.

        Raises:
            UserError: another process has started a different sweep in the folder.
        """
        file = state_file(self.output, self.study)
        file.parent.mkdir(parents=True, exist_ok=True)
        with hold(self.output / ".sweep.lock"):
            held = read_sweep(self.output, self.study)
            if self.grid is not None:
                check_same(self.grid, held, self.output)
            packs = _as_held(held, {run.folder.identity: run for run in self.runs})
            if packs is None and held != self.before:
                raise UserError(f"Another process has just started a sweep in '{self.output}'. Rerun the command.")
            sweep = self if packs is None else replace(self, packs=packs)
            if packs is None or not (held and held.specs):
                state = SweepState(
                    code=provenance.code_digest(),
                    grid=self.grid,
                    packs=tuple(tuple(run.folder.identity for run in pack) for pack in sweep.packs),
                    specs={run.folder.identity: run.spec.model_dump(mode="json") for run in sweep.runs},
                )
                write_atomic(file, state.model_dump_json(indent=2) + "\n")
        return sweep

    def worker(self, pack: int, flags: Sequence[str]) -> tuple[str, ...]:
        """The command of a process that does one pack, numbered from 1, or with 0 all packs that nobody else does."""
        study = ["--study", self.study] if self.study else []
        output = str(self.output.resolve())
        return (sys.executable, "-m", "ocr_eval", "sweep", "-o", output, *study, "--worker", str(pack), *flags)


def study_name(kind: str, specs: Iterable[RunSpec]) -> str:
    """A name for a study of a kind with these runs, which does not depend on their precision."""
    parts = [
        (s.model.name, s.model.dtype, s.association.name, s.in_precision("float32").fingerprint("")) for s in specs
    ]
    return f"{kind}-{hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:8]}"


def plan_sweep(
    specs: Sequence[RunSpec],
    output: Path,
    device: str,
    bases: Bases,
    at_once: int = 1,
    study: str = "",
    grid: Grid | None = None,
) -> Sweep:
    """Assign runs to packs and folders; downloads missing weights.

    If the folder already states exactly these runs, their packs and precision are kept, whatever the device. New packs
    are sized for a type of ``device`` and for ``at_once`` packs at a time.

    Raises:
        UserError: weights are not available, or a model overflows in the device's only fast precision.
    """
    held = read_sweep(output, study)
    planned = _planned(bases.settle(specs, output, device, held.runs if held else ()), output, bases)
    packs = _as_held(held, planned)
    if packs is None:
        runs = {run.spec: run for run in planned.values()}
        packs = tuple(tuple(runs[spec] for spec in pack) for pack in cut(list(runs), device, at_once))
    return Sweep(output, packs, study, grid, held)


def join_sweep(output: Path, study: str, bases: Bases) -> Sweep:
    """The sweep or study that a folder states, to join it.

    Raises:
        UserError: it states none, or the identity of its runs has changed since.
    """
    held = read_sweep(output, study)
    if held is None:
        raise UserError(f"There is no sweep to work on: {state_file(output, study)} is missing. Start it first.")
    specs = [parse_run(content, state_file(output, study)) for content in held.specs.values()]
    if not specs and held.grid is not None:  # an old file, which does not state each run
        specs = bases.settle(held.grid.specs(), output, stated=held.runs)
    packs = _as_held(held, _planned(specs, output, bases))
    if packs is None:
        raise UserError(
            f"The results version or the weights have changed since the sweep in '{output}' started. "
            "Rerun the sweep's command."
        )
    return Sweep(output, packs, study, held.grid, held)


def _as_held(held: SweepState | None, runs: Mapping[str, PlannedRun]) -> tuple[tuple[PlannedRun, ...], ...] | None:
    """Runs in the packs that a folder states; None unless it states exactly these runs."""
    if held is None or held.runs != set(runs):
        return None
    return tuple(tuple(runs[name] for name in pack) for pack in held.packs)


def _planned(specs: Sequence[RunSpec], output: Path, bases: Bases) -> dict[str, PlannedRun]:
    """Runs by the identity of their folders."""
    runs = [PlannedRun(spec, bases.folder(spec, output)) for spec in specs]
    return {run.folder.identity: run for run in runs}


def pack_jobs(sweep: Sweep, flags: Sequence[str]) -> list[Job]:
    """A job per pack with an open run: the command, plus ``flags``, that does this pack and nothing else."""
    jobs = []
    for number, pack in enumerate(sweep.packs, start=1):
        if any(run.is_open for run in pack):
            content = hashlib.sha256("".join(run.folder.identity for run in pack).encode()).hexdigest()[:6]
            jobs.append(Job(f"pack{number}-{content}", sweep.worker(number, flags)))
    return jobs


def worker_jobs(sweep: Sweep, workers: int, flags: Sequence[str]) -> list[Job]:
    """Jobs that take packs until none is left; at most one per pack with an open run.

    If one dies, the others resume its pack.
    """
    needed = min(workers, sum(any(run.is_open for run in pack) for pack in sweep.packs))
    return [Job(f"worker{number}", sweep.worker(0, flags)) for number in range(1, needed + 1)]


def clear(sweep: Sweep) -> None:
    """Clear every run's folder, or none of them.

    Raises:
        Busy: another process is working on one of them.
    """
    with ExitStack() as held:
        for run in sweep.runs:
            held.enter_context(run.folder.lock())
        for run in sweep.runs:
            run.folder.clear()


def check_open(sweep: Sweep, bases: Bases, here: bool, all_again: bool = False) -> None:
    """Check, before any run starts or is removed, that every open run (``all_again``: every run) can be done.

    Raises:
        UserError: the tokenizer or the method cannot handle a run's data, or a run is too large for this machine.
    """
    for run in sweep.runs:
        if all_again or run.is_open:
            check(run.spec, bases.tokenizer(run.spec.model))
            if here:
                refuse_impossible(run.spec.model, run.spec.train, bases.device)


def work(sweep: Sweep, bases: Bases, how: Execution, packs: Sequence[int]) -> None:
    """Do packs of a sweep until none of them is open; waits for those that another process holds.

    A pack that cannot continue is skipped with a warning.
    """
    left, waiting = list(packs), False
    while left:
        held = []
        for index in left:
            pack = sweep.packs[index]
            is_open = agreed(lambda runs: [run.is_open for run in runs], pack)
            try:
                do_pack(bases, list(compress(pack, is_open)), how)
            except Busy:
                held.append(index)
            except (RunFailed, UserError) as error:
                warn(f"Pack {index + 1} cannot continue: {error}")
        if held == left:
            if not waiting:
                count = sum(run.is_open for index in held for run in sweep.packs[index])
                say(f"Waiting for {count} runs in another process")
                waiting = True
            time.sleep(_PATIENCE)
        left = held
