"""Which jobs were submitted to Slurm from a folder, so that a second start finds them and submits nothing twice.

A submission is written down before sbatch is called, under a name that no other has, and again with the ids that
Slurm gave. A process that died between the two leaves a submission without ids: its jobs are found by the name.
What was submitted from another folder, of which this one is a copy, is none of its business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from filelock import Timeout

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import write_atomic
from ocr_eval.common.locks import hold

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Submission:
    """One call of sbatch.

    Attributes:
        name: the name that its jobs have in Slurm, and of the folder with their files.
        jobs: our names of the jobs, in the order of the array.
        ids: their ids in Slurm; empty until Slurm has given them.
    """

    name: str
    jobs: tuple[str, ...]
    ids: tuple[str, ...] = ()


class Ledger:
    """The submissions of one folder that may still have jobs in Slurm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "submissions.json"
        self.submissions: list[Submission] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Read what is written down, and keep other processes from submitting meanwhile.

        Raises:
            UserError: another has been at it for two minutes.
        """
        try:
            with hold(self._folder / ".lock", timeout=120):
                self.submissions = self._read()
                yield
        except Timeout as error:
            raise UserError(f"Another process is submitting the jobs of '{self._folder}'. Try again later.") from error

    def begin(self, jobs: Sequence[str]) -> Submission:
        """Write down that jobs are about to be submitted."""
        submission = Submission(f"ocr-eval-{uuid4().hex[:12]}", tuple(jobs))
        self._write([*self.submissions, submission])
        return submission

    def complete(self, submission: Submission, ids: Sequence[str]) -> Submission:
        """Write down the ids that Slurm gave."""
        completed = replace(submission, ids=tuple(ids))
        self._write([completed if other == submission else other for other in self.submissions])
        return completed

    def forget(self, names: Sequence[str]) -> None:
        """Strike submissions out, by name."""
        self._write([submission for submission in self.submissions if submission.name not in names])

    def _read(self) -> list[Submission]:
        if not self._path.is_file():
            return []
        content = json.loads(self._path.read_text(encoding="utf-8"))
        if content.get("folder") != str(self._folder.resolve()):
            return []
        entries = content["submissions"]
        return [Submission(entry["name"], tuple(entry["jobs"]), tuple(entry["ids"])) for entry in entries]

    def _write(self, submissions: list[Submission]) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "folder": str(self._folder.resolve()),
            "submissions": [asdict(submission) for submission in submissions],
        }
        write_atomic(self._path, json.dumps(content, indent=2) + "\n")
        self.submissions = submissions
