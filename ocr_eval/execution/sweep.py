"""A sweep at work: its grid cut into packs, done by one process or many, never lost.

A sweep is a folder. ``sweep.json`` in it states the grid and the packs; the runs lie beside it as those of
``finetune`` do. Whoever works on the folder takes packs that nobody holds, so that several processes share the
work; what is finished is not repeated, and what was interrupted resumes.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from ocr_eval.common import provenance
from ocr_eval.common.distributed import agreed
from ocr_eval.common.errors import Busy, RunFailed, UserError
from ocr_eval.common.files import write_atomic
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say
from ocr_eval.execution.execute import Bases, Execution, do_pack
from ocr_eval.execution.jobs import Job
from ocr_eval.execution.run_pack import prepare
from ocr_eval.planning.pack_memory import lanes_that_fit
from ocr_eval.planning.packs import cut_into_packs, share_key
from ocr_eval.planning.workload import batch_nodes
from ocr_eval.records.folder import RunFolder
from ocr_eval.specs.grid import SWEEP_FILE, Grid, SweepState, check_same, read_sweep
from ocr_eval.specs.model import Precision
from ocr_eval.specs.run import RunSpec

#: Seconds between looks at packs that another process holds.
_PATIENCE = 2.0


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep and its folder."""

    spec: RunSpec
    folder: RunFolder

    @property
    def is_open(self) -> bool:
        """Whether it is still to be done: neither finished nor known to fail."""
        return not self.folder.is_done() and self.folder.failure() is None


@dataclass(frozen=True)
class Sweep:
    """A sweep in its folder.

    Attributes:
        output: the folder.
        grid: what it is.
        dtypes: the precision of each of its models.
        packs: its runs, cut into packs.
        before: what the folder stated when this was laid out.
    """

    output: Path
    grid: Grid
    dtypes: Mapping[str, Precision]
    packs: tuple[tuple[PlannedRun, ...], ...]
    before: SweepState | None = None

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run."""
        return [run for pack in self.packs for run in pack]

    def stated(self) -> Sweep:
        """State the sweep in its folder, so that others can take part and look on.

        Returns:
            The sweep, cut as another process has stated it meanwhile, if one has.

        Raises:
            UserError: another process has begun another sweep in the folder.
        """
        with hold(self.output / ".sweep.lock"):
            check_same(self.grid, self.output)
            held, runs = read_sweep(self.output), {run.folder.identity: run for run in self.runs}
            if held is not None and held != self.before and held.dtypes != self.dtypes:
                raise UserError(f"Another process has just begun the sweep in '{self.output}'. Repeat the command.")
            packs = _as_held(held, runs)
            if held is None or packs is None:
                names = tuple(tuple(run.folder.identity for run in pack) for pack in self.packs)
                state = SweepState(code=provenance.code_digest(), grid=self.grid, dtypes=dict(self.dtypes), packs=names)
                write_atomic(self.output / SWEEP_FILE, state.model_dump_json(indent=2) + "\n")
                return self
        return replace(self, packs=packs)


def _as_held(held: SweepState | None, runs: Mapping[str, PlannedRun]) -> tuple[tuple[PlannedRun, ...], ...] | None:
    """Runs in the packs that a folder states, None if it does not state just these."""
    if held is None or held.runs != set(runs):
        return None
    return tuple(tuple(runs[name] for name in pack) for pack in held.packs)


def plan_sweep(grid: Grid, output: Path, device: str, bases: Bases, at_once: int = 1) -> Sweep:
    """Lay a grid out as packs and folders; fetches weights that are not here.

    A folder that holds this very sweep keeps its packs, whatever device looks at it.

    Args:
        grid: what to sweep over.
        output: the folder.
        device: the type of device that a pack should fill.
        bases: where weights are found.
        at_once: how many packs are to be done at once.

    Raises:
        UserError: a name or a value that does not exist or fit, or weights that cannot be had.
    """
    held = read_sweep(output)
    dtypes = settled_dtypes(grid, held, output, device, bases)
    planned = _planned(grid.specs(dtypes), output, bases)
    packs = _as_held(held, planned)
    if packs is None:
        run_of = {id(run.spec): run for run in planned.values()}
        cuts = cut([run.spec for run in planned.values()], device, at_once)
        packs = tuple(tuple(run_of[id(spec)] for spec in pack) for pack in cuts)
    return Sweep(output, grid, dtypes, packs, held)


def settled_dtypes(
    grid: Grid, held: SweepState | None, output: Path, device: str, bases: Bases
) -> dict[str, Precision]:
    """The precision of each model of a grid, by its name there.

    Where neither grid nor model states one, it is that of the sweep that the folder holds, else as ``Bases.settle``.

    Raises:
        UserError: a model overflows in the only precision that the device computes fast.
    """
    kept = held.dtypes if held is not None and held.grid == grid else {}
    return {
        name: kept[name]
        if name in kept and model.dtype == "auto"
        else bases.settle(grid.model_copy(update={"models": (name,)}).specs(), output, device)[0].precision
        for name, model in grid.model_specs().items()
    }


def join_sweep(output: Path, bases: Bases) -> Sweep:
    """The sweep that a folder states, to take part in it.

    Raises:
        UserError: it states none, or its runs would now be others.
    """
    held = read_sweep(output)
    if held is None:
        raise UserError(f"'{output}' contains no sweep to take part in (no {SWEEP_FILE}).")
    runs = {} if not held.dtypes else _planned(held.grid.specs(held.dtypes), output, bases)
    packs = _as_held(held, runs)
    if packs is None:
        raise UserError(
            f"Since the sweep in '{output}' was stated, the results version or the weights have changed. "
            "Start the sweep's command again."
        )
    return Sweep(output, held.grid, held.dtypes, packs)


def _planned(specs: Sequence[RunSpec], output: Path, bases: Bases) -> dict[str, PlannedRun]:
    """Runs by the identity of their folders."""
    runs = [PlannedRun(spec, bases.folder(spec, output)) for spec in specs]
    return {run.folder.identity: run for run in runs}


def cut(specs: Sequence[RunSpec], device: str, at_once: int) -> list[list[RunSpec]]:
    """The packs of a sweep for a type of device, with as much to do for each of those that are done at once.

    Runs of a pack have batches of about as many nodes, so that few rows are padding.

    Raises:
        UserError: the tokenizer cannot do with the data of a run.
    """
    groups: list[list[RunSpec]] = []
    for spec in specs:
        kin = next((group for group in groups if share_key(group[0]) == share_key(spec)), None)
        if kin is None:
            groups.append([spec])
        else:
            kin.append(spec)
    ordered = [spec for group in groups for spec in sorted(group, key=batch_nodes)]
    return cut_into_packs(ordered, device, lanes_that_fit(device), at_once)


def pack_jobs(sweep: Sweep, flags: Sequence[str]) -> list[Job]:
    """A job for every pack with an open run: the command that does this pack and nothing else.

    Args:
        sweep: the sweep, stated in its folder.
        flags: further flags of the command.
    """
    output = sweep.output.resolve()
    jobs = []
    for number, pack in enumerate(sweep.packs, start=1):
        if any(run.is_open for run in pack):
            content = hashlib.sha256("".join(run.folder.identity for run in pack).encode()).hexdigest()[:6]
            command = (sys.executable, "-m", "ocr_eval", "sweep", "-o", str(output), "--worker", str(number), *flags)
            jobs.append(Job(f"pack{number}-{content}", command))
    return jobs


def clear(sweep: Sweep) -> None:
    """Remove every run, so that all of them start from nothing; or none.

    Raises:
        Busy: another process works on one of them.
    """
    with ExitStack() as held:
        for run in sweep.runs:
            held.enter_context(run.folder.lock())
        for run in sweep.runs:
            run.folder.clear()


def check_open(sweep: Sweep, bases: Bases, here: bool) -> None:
    """Look, before any run starts, whether every open one can be done.

    Args:
        sweep: the sweep.
        bases: where weights and tokenizers are found.
        here: whether they are done on this machine.

    Raises:
        UserError: the tokenizer cannot do with the data of a run, or it is too large for this machine.
    """
    for run in sweep.runs:
        if run.is_open:
            prepare(bases.tokenizer(run.spec.model), run.spec)
            if here:
                bases.refuse_impossible(run.spec)


def work(sweep: Sweep, bases: Bases, how: Execution, packs: Sequence[int], say_waiting: Callable[[int], Any]) -> None:
    """Do packs of a sweep until none of them is left open; those that another process holds are waited for.

    A pack that cannot go on is left, its reason said, and the others are done.

    Args:
        sweep: the sweep.
        bases: where bases are loaded.
        how: device, repetition, scoring.
        packs: which packs.
        say_waiting: told once the number of runs that another process holds, when only such are left.
    """
    left, waiting = list(packs), False
    while left:
        held = []
        for index in left:
            pack = sweep.packs[index]
            is_open = agreed(lambda runs: [run.is_open for run in runs], pack)
            todo = [(run.spec, run.folder) for run in compress(pack, is_open)]
            try:
                do_pack(bases, todo, how)
            except Busy:
                held.append(index)
            except (RunFailed, UserError) as error:
                say(f"Pack {index + 1} cannot go on: {error}")
        if held == left:
            if not waiting:
                say_waiting(sum(run.is_open for index in held for run in sweep.packs[index]))
                waiting = True
            time.sleep(_PATIENCE)
        left = held
