"""Several processes that share one machine's CPU: each takes packs of a sweep that no other process holds.

A step of a small model consists largely of short operations between matrix products, which keep only one core busy.
Processes with one thread each keep all cores busy: on two cores they are a quarter faster than one process with two.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ocr_eval.execution.execute import PlannedRun
from ocr_eval.execution.jobs.local import cores
from ocr_eval.execution.progress import Step, Watcher
from ocr_eval.methods.method import method_of
from ocr_eval.models.architecture import examine
from ocr_eval.planning import memory, workload
from ocr_eval.planning.packs import pack_memory, room, widest
from ocr_eval.specs.run import RunSpec

#: Floating-point operations of training below which more processes do not pay off: each takes seconds to start.
_LEAST_FLOP = 1e13
_LOOK_SECONDS = 1.0


def workers_that_pay(packs: Sequence[Sequence[RunSpec]], device: str) -> int:
    """How many processes should share the packs: one per CPU core, if memory allows and there is enough work.

    ``packs`` includes finished ones, so that a resumed sweep has the same number of threads per process as before; the
    last bits of results may depend on it.
    """
    most = min(cores(), len(packs))
    if device != "cpu" or most < 2:
        return 1
    flop, needed = 0.0, 0
    for _, alike in itertools.groupby(packs, key=lambda pack: (pack[0].model, pack[0].train.method)):
        group = list(alike)
        runs = [run for pack in group for run in pack]
        spec = widest(runs)
        work = workload.measure(spec)
        times = sum(run.train.epochs * method_of(run.train).passes(run.train) for run in runs)
        flop += 4.0 * examine(spec.model).linear_parameters * work.nodes * times
        needed = max(needed, pack_memory(spec, work, max(map(len, group)), device).total)
    if flop < _LEAST_FLOP:
        return 1
    return max(1, min(most, int(memory.USABLE * room(device) / needed)))


class Follower:
    """Passes the progress of other processes to a watcher, read from the runs' folders, one epoch of a pack at a time.

    What the folders contain at the start is not reported.
    """

    def __init__(self, packs: Sequence[Sequence[PlannedRun]], watch: Watcher) -> None:
        self._watch = watch
        self._packs = [_PackFollower([run for run in pack if run.is_open]) for pack in packs]
        self._looked = time.monotonic()

    def look(self, closely: bool = False) -> None:
        """Report what is new, at most once a second unless ``closely``."""
        if not closely and time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        for pack in self._packs:
            for steps in pack.new_epochs():
                self._watch(steps)
        self._looked = time.monotonic()


class _PackFollower:
    """The runs of a pack that are not fully reported, and the next epoch to report."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._epoch = min((len(run.folder.metrics()) for run in runs), default=0)  # epoch 0 has a line too
        self._runs = [run for run in runs if run.spec.train.epochs >= self._epoch]
        self._seen: list[tuple[tuple[int, int], bool]] = []

    def new_epochs(self) -> Iterator[list[Step]]:
        """The new epochs that all runs have finished, except runs that failed before."""
        try:
            now = [(_written(run.folder.path), run.folder.failure() is not None) for run in self._runs]
            if now == self._seen:
                return
            lines = [run.folder.metrics() for run in self._runs]
        except OSError:  # another process is just removing or replacing a file
            return
        self._seen = now
        failed = [has_failed for _, has_failed in now]
        there = list(zip(self._runs, lines, failed, strict=True))
        while there and all(len(own) > self._epoch or has_failed for _, own, has_failed in there):
            there = [one for one in there if len(one[1]) > self._epoch]
            yield [Step(run.spec, run.folder, own[self._epoch]) for run, own, _ in there]
            there = [one for one in there if one[0].spec.train.epochs > self._epoch]
            self._epoch += 1
        self._runs = [run for run, _, _ in there]


def _written(run: Path) -> tuple[int, int]:
    """Modification time and size of a run's metrics.jsonl, to detect changes; zeros if there is none."""
    path = run / "metrics.jsonl"
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else (0, 0)
