"""A sweep at work: its grid cut into packs, done by one process or many, never lost.

A sweep is a folder. ``sweep.json`` in it states the grid and the packs; the runs lie beside it as those of
``finetune`` do. Whoever works on the folder takes packs that nobody holds, so that several processes share the
work; what is finished is not repeated, and what was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ocr_eval import provenance
from ocr_eval.errors import Busy
from ocr_eval.executor import Job
from ocr_eval.grid import SWEEP_FILE, Grid, read_sweep
from ocr_eval.inject import prepare
from ocr_eval.packs import cut_into_packs, share_key
from ocr_eval.run import Bases, Execution, do_pack
from ocr_eval.runs import RunFolder, write_atomic
from ocr_eval.specs import SCHEMA_VERSION, RunSpec
from ocr_eval.sweep_plan import lanes_that_fit
from ocr_eval.workload import batch_nodes

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
        packs: its runs, cut into packs.
    """

    output: Path
    grid: Grid
    packs: tuple[tuple[PlannedRun, ...], ...]

    @property
    def runs(self) -> list[PlannedRun]:
        """Every run."""
        return [run for pack in self.packs for run in pack]

    def write(self) -> None:
        """State the sweep in its folder, so that others can take part and look on."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "code": provenance.code_digest(),
            "grid": self.grid.model_dump(mode="json"),
            "packs": [[run.folder.identity for run in pack] for pack in self.packs],
        }
        text = json.dumps(content, indent=2) + "\n"
        path = self.output / SWEEP_FILE
        with FileLock(self.output / ".sweep.lock"):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_atomic(path, text)


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
    specs, held = grid.specs(), read_sweep(output)
    planned = {(run := PlannedRun(spec, bases.folder(spec, output))).folder.identity: run for spec in specs}
    if held is not None and {name for pack in held.packs for name in pack} == set(planned):
        packs = tuple(tuple(planned[name] for name in pack) for pack in held.packs)
    else:
        run_of = {id(run.spec): run for run in planned.values()}
        cuts = cut([run.spec for run in planned.values()], device, at_once)
        packs = tuple(tuple(run_of[id(spec)] for spec in pack) for pack in cuts)
    return Sweep(output, grid, packs)


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
    return cut_into_packs(ordered, device, lanes_that_fit(device), at_once, batch_nodes)


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
    """Remove every run, so that all of them start from nothing.

    Raises:
        Busy: another process works on one of them.
    """
    for run in sweep.runs:
        with run.folder.lock():
            run.folder.clear()


def check_data(sweep: Sweep, bases: Bases) -> None:
    """Make the data of every open run with its model's tokenizer, before any run starts.

    Raises:
        UserError: the tokenizer cannot do with the data of a run.
    """
    for run in sweep.runs:
        if run.is_open:
            prepare(bases.tokenizer(run.spec.model), run.spec)


def work(sweep: Sweep, bases: Bases, how: Execution, packs: Sequence[int], say_waiting: Callable[[int], Any]) -> None:
    """Do packs of a sweep until none of them is left open; those that another process holds are waited for.

    Args:
        sweep: the sweep.
        bases: where bases are loaded.
        how: device, repetition, scoring.
        packs: which packs.
        say_waiting: told once the number of runs that another process holds, when only such are left.

    Raises:
        UserError: the tokenizer cannot do with the data of a run.
        RunFailed: a checkpoint is damaged, or no gradient reaches an adapter.
    """
    left, waiting = list(packs), False
    while left:
        held = []
        for index in left:
            todo = [(run.spec, run.folder) for run in sweep.packs[index] if run.is_open]
            try:
                do_pack(bases, todo, how)
            except Busy:
                held.append(index)
        if held == left:
            if not waiting:
                say_waiting(sum(run.is_open for index in held for run in sweep.packs[index]))
                waiting = True
            time.sleep(_PATIENCE)
        left = held
