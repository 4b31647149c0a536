"""``manifest.json``: what an exported training set was drawn from, so that scoring asks only about people in it.

It contains the whole association (or table), including held-out answers, with the data protocol and the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes, read_json, to_jsonl, write_atomic
from ocr_eval.data.export import FORMATS, TRAINING_FILES, probe_rows
from ocr_eval.data.task import Task, task_of
from ocr_eval.specs.model import Sha256
from ocr_eval.specs.run import AnyAssociation, DataSpec, RunSpec
from ocr_eval.specs.strict import SCHEMA_VERSION, Strict

FILE = "manifest.json"


class Manifest(Strict):
    """What a run's exported data was drawn from.

    Attributes:
        training: the sha256 of the training set in each format that has one, by file name.
        probes: the sha256 of the probes in the form of ``probes.jsonl``.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    association: AnyAssociation
    data: DataSpec
    seed: int = Field(ge=0)
    training: dict[str, Sha256]
    probes: Sha256

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        self.association.check(self.data)
        return self

    @classmethod
    def of(cls, spec: RunSpec, task: Task) -> Manifest:
        """The manifest of a run's task."""
        files = {file: FORMATS[name](task, spec.association.name)[file] for name, file in TRAINING_FILES.items()}
        training = {file: _sha256(content.encode()) for file, content in files.items()}
        drawn = {"association": spec.association, "data": spec.data, "seed": spec.seed}
        return cls.model_validate({**drawn, "training": training, "probes": _probes_digest(task)})

    def check_beside(self, folder: Path, written: str = "") -> None:
        """Check that the folder's training sets, except the file ``written``, are of this run.

        Raises:
            UserError: one is not.
        """
        for name in TRAINING_FILES.values():
            file = folder / name
            if name != written and file.is_file() and _sha256(read_bytes(file)) != self.training.get(name):
                fix = "Export into another folder" if written else "Export into an empty folder, and train on that"
                raise UserError(f"{file} is not what {FILE} describes. {fix}.")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of a run that it determines, by name."""
        return {"seed": self.seed, **dict(self.data)}


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write the manifest into an existing folder."""
    content = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomic(folder / FILE, content + "\n")
    return folder / FILE


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder, checked against the training set there and the probes that it gives now.

    Raises:
        UserError: it is missing, damaged or of another version, a training file is not what was exported, or this
            version of the program draws other people or questions.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"'{folder}' has no {FILE}. Give a folder to which 'data export' wrote a training set.")
    content = read_json(path)
    if isinstance(content, dict):
        if (version := content.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(f"{path} has schema version {version!r}; this version of ocr-eval reads {SCHEMA_VERSION}.")
        if isinstance(content.get("data"), dict):
            content["data"] = DataSpec.legacy() | content["data"]
    manifest = yaml_files.parse(Manifest, content, str(path))
    manifest.check_beside(folder)
    if _probes_digest(task_of(manifest.association, manifest.data, f"{manifest.seed}/data")) != manifest.probes:
        raise UserError(f"{path} is from a version of ocr-eval that draws other people. Use that, or export again.")
    return manifest


def _probes_digest(task: Task) -> str:
    return _sha256(to_jsonl(probe_rows(task)).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
