"""The state of a sweep's runs, read from its folder at any time. Imports nothing heavy and takes no lock."""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from tabulate import tabulate

from ocr_eval.common.errors import UserError
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.hold import HEARTBEAT, holder_of
from ocr_eval.specs.grid import read_all, state_file

#: Seconds without a heartbeat after which a run on another host counts as interrupted.
_SILENT = 5 * HEARTBEAT

State = Literal["done", "failed", "running", "interrupted", "waiting"]


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        study: the study that needs it; empty for the folder's sweep.
        state: an ``interrupted`` run resumes when the sweep does; a ``waiting`` one has not started.
        epoch: finished epochs; None before the first scoring.
        train_loss: of the last epoch, in nats per answer token.
        ocr_score: first-token score of the last scoring; None before it.
    """

    run: str
    study: str
    state: State
    epoch: int | None
    train_loss: float | None
    ocr_score: float | None
    reason: str = ""


def run_states(root: Path) -> list[RunState]:
    """The state of every run in a folder's sweep and studies; a run that several need appears in each.

    Raises:
        UserError: there is no sweep or study, or a file is damaged or has another version.
    """
    stated = read_all(root)
    if not stated:
        raise _no_sweep(root)
    return [run_state(root, run, study) for study, held in stated.items() for pack in held.packs for run in pack]


def _no_sweep(root: Path) -> UserError:
    """The error for a folder without a sweep, with the command that the user probably meant."""
    problem = f"'{root}' contains no sweep or study" if root.is_dir() else f"There is no folder '{root}'"
    around = root if root.is_dir() else root.parent
    near = [*root.parents[:5], *sorted(around.glob("*/"))]  # a run's folder is five below its sweep's
    sweeps = [each for each in near if state_file(each).is_file() or any(each.glob("studies/*.json"))]
    if sweeps:
        there = ", ".join(f"'{each}'" for each in sweeps[:3])
        return UserError(f"{problem}, but there is a sweep in {there}. Run: ocr-eval status {sweeps[0]}")
    if any(around.glob("runs/*/*/*/*")):
        return UserError(f"{problem}. '{around}' contains single runs; to see their results: ocr-eval table {around}")
    return UserError(f"{problem}. Name a sweep's folder, or start one: ocr-eval sweep -o {root}")


def run_state(root: Path, run: str, study: str = "") -> RunState:
    """Read the state of a run of a sweep or study; takes no lock and changes nothing."""
    folder = RunFolder(root / "runs" / run)
    lines = folder.metrics() if folder.path.is_dir() else []
    held_out = [line.held_out for line in lines if line.held_out is not None]
    failure = folder.failure()
    state: State = "interrupted" if lines else "waiting"
    if folder.is_done():
        state = "done"
    elif failure:
        state = "failed"
    elif _is_held(folder):
        state = "running"
    return RunState(
        run=run,
        study=study,
        state=state,
        epoch=lines[-1].epoch if lines else None,
        train_loss=lines[-1].train_loss if lines else None,
        ocr_score=held_out[-1]["first-token"].ocr_score if held_out else None,
        reason=failure or "",
    )


def _is_held(folder: RunFolder) -> bool:
    holder = holder_of(folder.path)
    if holder is None:
        return False
    if holder.host != socket.gethostname():
        return time.time() - holder.seen < _SILENT
    try:  # a process id may have been reused
        return bool(psutil.Process(holder.process).create_time() <= holder.seen + 1)
    except psutil.Error:
        return False


def state_table(states: Sequence[RunState]) -> str:
    """A table for the sweep, and one under the name of each study."""
    studies = dict.fromkeys(state.study for state in states)
    tables = {study: _table([state for state in states if state.study == study]) for study in studies}
    return "\n".join((f"{study}\n" if study else "") + table for study, table in tables.items())


def _table(states: Sequence[RunState]) -> str:
    """The states as aligned text, and a line with their counts."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    short = [s.run.rpartition("-")[0] for s in states]  # without the fingerprint, if that is unique
    times = Counter(short)
    rows = [
        [
            s.run if times[name] > 1 else name,
            *(s.state, shown(s.epoch, "d"), shown(s.train_loss, ".4f"), shown(s.ocr_score, "+.2f")),
        ]
        for s, name in zip(states, short, strict=True)
    ]
    header = ["run", "state", "epoch", "loss", "OCR score"]
    align = ("left", "left", "right", "right", "right")
    body = tabulate(rows, header, tablefmt="simple", colalign=align, disable_numparse=True)
    counts = Counter(s.state for s in states)
    return f"{body}\n\n{len(states)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + "\n"
