"""Finding the finished runs below a folder, with their records, and what could not be read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ocr_eval.common.errors import UserError
from ocr_eval.records.record import Record, read_record, to_plain
from ocr_eval.records.select import Condition, select
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class FinishedRun:
    """A finished run on disk."""

    folder: Path
    record: Record


class Repeated(UserError):
    """A run was found twice with different numbers. Unlike damage this may be intended, so it is only a warning."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        runs: finished runs with a valid record, ordered by path.
        complaints: one for each record or folder that cannot be read, and one if runs were found twice with different
            numbers; the others are not affected.
        unfinished: folders of runs that were started but not finished.
    """

    runs: list[FinishedRun]
    complaints: list[UserError]
    unfinished: list[Path]

    @property
    def records(self) -> list[Record]:
        """The records of the runs."""
        return [run.record for run in self.runs]

    def where(self, conditions: Sequence[Condition]) -> Found:
        """The same with only the runs that meet every condition.

        Raises:
            UserError: there are runs, but none that does.
        """
        chosen = {record.run for record in select(self.records, conditions)}
        return replace(self, runs=[run for run in self.runs if run.record.run in chosen])


def find_runs(*roots: Path, scoring: Scoring | None = None, measures: Collection[str] = ()) -> Found:
    """Every run in or below the folders. A run is finished if it has a status.json, which is written last.

    Copies of a run (with the same identity) count once, and the first one counts; a complaint says if another has
    different numbers. ``scoring`` and ``measures`` limit what ``read_record`` reads.

    Raises:
        UserError: a folder does not exist.
    """
    for root in roots:
        if root.is_file():
            raise UserError(f"'{root}' is a file. Give a folder that contains runs.")
        if not root.is_dir():
            raise UserError(f"There is no folder '{root}'. Run 'ocr-eval finetune' first, or name another.")
    found, first = Found([], [], []), dict[str, FinishedRun]()
    conflicts: list[tuple[Path, Path]] = []

    def unreadable(error: OSError) -> None:
        found.complaints.append(UserError(f"{error.filename} cannot be read ({error.strerror})."))

    for place, folders, names in chain.from_iterable(os.walk(root, onerror=unreadable) for root in roots):
        folders[:] = sorted(name for name in folders if name != "adapter")
        files = set(names)
        if "status.json" not in files or files.isdisjoint(("result.json", "result.json.gz")):
            if "status.json" in files and not files.isdisjoint(("config.yaml", "config.yaml.gz")):
                found.complaints.append(UserError(f"{place} is marked as finished, but has no result.json."))
            elif {"config.yaml", "metrics.jsonl"} <= files:
                found.unfinished.append(Path(place))
            continue
        folder = Path(place)
        try:
            record = read_record(folder / "result.json", scoring, measures)
        except UserError as error:
            found.complaints.append(error)
            continue
        earlier = first.setdefault(record.run, FinishedRun(folder, record))
        if earlier.folder != folder and _numbers(earlier.record) != _numbers(record):
            conflicts.append((folder, earlier.folder))
    found.runs.extend(first.values())
    if conflicts:
        (other, counted), more = conflicts[0], len(conflicts) - 1
        found.complaints.append(
            Repeated(
                f"{other} holds the same run as {counted}, which counts, but with different numbers"
                f"{f'; {more} more like this' if more else ''}."
            )
        )
    return found


def _numbers(record: Record) -> str:
    """What a record found, as text that is equal where the numbers are."""
    return json.dumps(to_plain((record.final, record.held_out, record.matched, record.measures)), sort_keys=True)
