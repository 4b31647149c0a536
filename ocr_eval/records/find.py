"""Finished runs below a folder: where each lies, its record, and what could not be read."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ocr_eval.common.errors import UserError
from ocr_eval.records.record import Record, read_record
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        runs: finished runs with a whole record, ordered by path.
        complaints: one for each record that cannot be used; the others are not affected.
        unfinished: folders of runs that have begun and not finished.
    """

    runs: list[Run]
    complaints: list[UserError]
    unfinished: list[Path]

    @property
    def records(self) -> list[Record]:
        """The records of the runs."""
        return [run.record for run in self.runs]


def find_runs(*roots: Path, scoring: Scoring | None = None, measure: str | None = None) -> Found:
    """Every run in or below the folders. A run is finished when its status.json, written last, is there.

    A copy of a run (the same identity, found again further on) counts once.

    Args:
        roots: the folders.
        scoring: read only what the final models have under this scoring; None for all.
        measure: of the measures, read this one, if a scoring is named.

    Raises:
        UserError: a folder does not exist.
    """
    for root in roots:
        if root.is_file():
            raise UserError(f"'{root}' is a file. Give a folder that holds runs.")
        if not root.is_dir():
            raise UserError(f"There is no folder '{root}'. Run 'ocr-eval finetune' first, or name another.")
    with collector_at_rest():
        return _find(roots, scoring, measure)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Ten thousand records are millions of objects without a cycle, which the collector would walk again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _find(roots: Sequence[Path], scoring: Scoring | None, measure: str | None) -> Found:
    found, seen = Found([], [], []), set()
    for place, files in chain.from_iterable(map(_folders, roots)):
        if "status.json" not in files or "result.json" not in files:
            if {"config.yaml", "metrics.jsonl"} <= files:
                found.unfinished.append(Path(place))
            continue
        folder = Path(place)
        try:
            record = read_record(folder / "result.json", scoring, measure)
        except UserError as error:
            found.complaints.append(error)
            continue
        if record.run not in seen:
            seen.add(record.run)
            found.runs.append(Run(folder, record))
    return found


def _folders(root: Path) -> Iterator[tuple[str, set[str]]]:
    """Every folder below one, in a fixed order, with the names of its files; links are not followed.

    As os.walk, in half the time.
    """
    left = [str(root)]
    while left:
        place = left.pop()
        try:
            with os.scandir(place) as entries:
                kinds = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:
            continue
        yield place, {name for name, is_folder in kinds if not is_folder}
        folders = sorted((name for name, is_folder in kinds if is_folder and name != "adapter"), reverse=True)
        left += [os.path.join(place, name) for name in folders]  # noqa: PTH118 - ten thousand Paths take a while
