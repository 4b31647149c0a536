"""Run folders: what a run leaves on disk, written so that nothing is ever half written.

    <output>/runs/<model>/<association>/<method>/seed<k>[-train<l>]-<fingerprint>/
        config.yaml    the resolved RunSpec
        env.json       versions, commit, device
        audit.json     how the tokenizer splits the candidates
        metrics.jsonl  a line per epoch, from epoch 0 (the untouched base)
        probes.jsonl   a line per probe, for epoch 0 and the last epoch
        adapter/       PEFT format, with a card (README.md); instead, full fine-tuning leaves model/, in Hugging Face
                       layout, and a method that trains no weights context.txt
        result.json    the record that tables are made from
        status.json    written last; without it the run is not finished
        failure.json   why the run failed, in place of a record
        answers.jsonl  what a server has answered so far, while the run is unfinished
        checkpoint-<epoch>.pt      training state, while the run is unfinished
        checkpoint-<epoch>.sha256  digest of everything needed to resume from it

Files of a finished run, but for status.json and env.json, may be compressed (``gzip metrics.jsonl``).

Every file, and adapter/ and model/ as a whole, is written to a temporary path, synced and renamed. Only metrics.jsonl
grows; a last line without a newline is ignored. A lock on the folder (``.lock``) keeps a second process out;
``.holder``, touched every minute, says who holds it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

from ocr_eval.common import files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import write_atomic
from ocr_eval.models.weights import file_sha256, folder_digest
from ocr_eval.records import hold
from ocr_eval.records.card import adapter_card
from ocr_eval.records.metrics import MetricsLine, metrics_text, read_metrics
from ocr_eval.records.record import OtherVersion, Record, read_record
from ocr_eval.specs.model import Training
from ocr_eval.specs.run import RunSpec
from ocr_eval.specs.strict import SCHEMA_VERSION

#: The weights of an adapter in PEFT's format; the prompt of an in-context run, which trains no weights.
_ADAPTER_WEIGHTS, _CONTEXT = "adapter_model.safetensors", "context.txt"
#: The files that mark a run as finished, written last and removed first.
_LAST = ("status.json", "result.json")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def of(cls, root: Path, spec: RunSpec, fingerprint: str, training: Training | None = None) -> RunFolder:
        """A run's folder below an output folder; an external ``training`` replaces the spec's."""
        train = "" if spec.train_seed is None else f"-train{spec.train_seed}"
        names = spec.model.name, spec.association.name, (training or spec.train).method_name
        return cls(root.joinpath("runs", *names, f"seed{spec.seed}{train}-{fingerprint}"))

    def checkpoints(self) -> dict[int, Path]:
        """The training states that an unfinished run keeps, by the number of epochs done."""
        found = ((re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in self.path.iterdir())
        return {int(match[1]): path for match, path in found if match}

    @property
    def learned(self) -> Path:
        """The folder with what the run learned: its adapter or its model.

        Raises:
            UserError: the run trained no weights.
        """
        if (self.path / _CONTEXT).is_file():
            raise UserError(f"{self.path} has no trained weights to score: the model only read {_CONTEXT}.")
        model = self.path / "model"
        return model if model.is_dir() else self.path / "adapter"

    @property
    def identity(self) -> str:
        """The folder's path below ``runs/``: model, association, method, seed and fingerprint."""
        return "/".join(self.path.parts[-4:])

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; see ``hold.hold``."""
        return hold.hold(self.path)

    def has_begun(self) -> bool:
        """Whether the run is finished or can be resumed."""
        return files.stored(self.path / "config.yaml").is_file() and self.failure() is None

    def is_done(self) -> bool:
        """Whether the run finished and its record is valid.

        Raises:
            UserError: the record has another schema version, so it must not be replaced.
        """
        return (self.path / "status.json").is_file() and self._has_record()

    def _has_record(self) -> bool:
        path = self.path / "result.json"
        kept = files.stored(path)
        return kept.is_file() and _is_record(path, kept.stat().st_mtime_ns, kept.stat().st_size)

    def is_prepared(self) -> bool:
        """Whether all that a finished run leaves is present and consistent; status.json may still be missing."""
        if not self._has_record():
            return False
        try:
            record, epochs = self.record(), [line.epoch for line in self.metrics()]
            return epochs == list(record.epochs) and self.learned_sha256() == record.adapter_sha256
        except (OSError, UserError):
            return False

    def learned_sha256(self) -> str:
        """The digest of the adapter's or model's weights, as stated in records.

        Raises:
            OSError, UserError: there are no weights.
        """
        if (self.path / _CONTEXT).is_file():
            return file_sha256(self.path / _CONTEXT)
        learned = self.learned
        return folder_digest(learned) if learned.name == "model" else file_sha256(learned / _ADAPTER_WEIGHTS)

    def failure(self) -> str | None:
        """Why the run failed, if it did.

        Raises:
            UserError: its file is damaged.
        """
        if not (path := self.path / "failure.json").is_file():
            return None
        with files.whole(path):
            return str(files.read_json(path)["reason"])

    @property
    def answers(self) -> Path:
        """What a server has answered so far, while the run is not finished."""
        return self.path / "answers.jsonl"

    def clear(self) -> None:
        """Remove everything an earlier attempt left, first the files that mark it as finished."""
        for mark in _LAST:
            files.remove(self.path / mark)
        files.sync(self.path)
        for entry in self.path.iterdir():
            if entry.name not in (*hold.FILES, self.answers.name):
                files.remove(entry)

    def begin(self, config: str, environment: dict[str, Any], audit: dict[str, Any]) -> None:
        """Write config.yaml, env.json and audit.json; the run then counts as unfinished.

        If it resumes with other versions or on another machine, env.json keeps the earlier environments.

        Raises:
            UserError: the path of result.json or status.json is taken by something that is not a file.
        """
        for mark in _LAST:
            files.refuse_irregular(self.path / mark)
            files.remove(self.path / mark)
        earlier = {"earlier": self._environments(environment)} if self.checkpoints() else {}
        write_atomic(self.path / "config.yaml", config)
        self._write("env.json", environment | earlier)
        self._write("audit.json", audit)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, ensure_ascii=False)
        write_atomic(self.path / name, text + "\n")

    def _environments(self, now: dict[str, Any]) -> list[dict[str, Any]]:
        """The earlier environments of this run that differ from the present one, oldest first."""
        try:
            content = dict(files.read_json(self.path / "env.json"))
            before = [dict(each) for each in content.pop("earlier", [])]
        except (UserError, TypeError, ValueError):  # informative only, so damage does not matter
            return []
        content.pop("schema_version", None)
        return before if content == now else [*before, content]

    def metrics(self) -> list[MetricsLine]:
        """The lines of metrics.jsonl, an empty list if there are none yet."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path, growing=True) if path.is_file() else []

    def add_metrics(self, line: MetricsLine) -> None:
        """Append a line to metrics.jsonl and sync it to disk; the line of epoch 0 starts a new file."""
        with (self.path / "metrics.jsonl").open("ab" if line.epoch else "wb") as file:
            file.write(metrics_text([line]).encode())
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, last: int) -> None:
        """Truncate metrics.jsonl after an epoch."""
        write_atomic(self.path / "metrics.jsonl", self._metrics_until(last))

    def _metrics_until(self, epoch: int) -> bytes:
        path = self.path / "metrics.jsonl"
        return b"".join(files.read_lines(path)[: epoch + 1]) if path.is_file() else b""

    def probes(self) -> list[dict[str, Any]]:
        """The lines of probes.jsonl for the untouched base.

        Raises:
            UserError: the file is missing or damaged.
        """
        with files.whole(path := self.path / "probes.jsonl"):
            return [line for line in files.read_jsonl(path) if line["epoch"] == 0]

    def write_probes(self, lines: list[dict[str, Any]]) -> None:
        """Replace probes.jsonl."""
        write_atomic(self.path / "probes.jsonl", files.to_jsonl(lines))

    def write_checkpoint(self, epoch: int, write: Callable[[IO[bytes]], None]) -> None:
        """Save a training state to resume from, with its digest; earlier ones stay until ``drop_checkpoints``."""
        with files.replacing(self.path / f"checkpoint-{epoch}.pt") as file:
            write(file)
            file.flush()
            write_atomic(self.path / f"checkpoint-{epoch}.sha256", self._seal(epoch, Path(file.name)))

    def resumable(self) -> set[int]:
        """The epochs that the run can resume from: everything needed is unchanged since the state was saved."""
        whole = set()
        for epoch, state in self.checkpoints().items():
            with suppress(OSError, UserError, KeyError, TypeError):  # the state or the probes are gone or damaged
                if files.read_bytes(state.with_suffix(".sha256")) == self._seal(epoch, state).encode():
                    whole.add(epoch)
        return whole

    def _seal(self, epoch: int, state: Path) -> str:
        """Digest of a training state, the metrics until then, and the base's probes, which the record will need."""
        with files.open_file(state) as file:
            digest = hashlib.file_digest(file, "sha256")
        probes = self.probes() if (self.path / "probes.jsonl").is_file() else []
        for content in (self._metrics_until(epoch), files.to_jsonl(probes).encode()):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def drop_checkpoints(self, before: float = math.inf, after: float = -math.inf) -> None:
        """Remove training states: all, or those with ``after < epoch < before``."""
        for epoch, path in self.checkpoints().items():
            if after < epoch < before:
                path.unlink(missing_ok=True)
        for path in (*self.path.glob("checkpoint-*.sha256"), *self.path.glob(".*.partial")):
            if not path.with_suffix(".pt").exists():  # just dropped, or left by a killed process
                files.remove(path)

    def prepare(self, record: Record, probes: list[dict[str, Any]]) -> None:
        """Write everything a finished run leaves except status.json, which ``finish`` adds."""
        self.write_probes(probes)
        if (adapter := self.path / "adapter").is_dir():
            write_atomic(adapter / "README.md", adapter_card(record))
        write_atomic(self.path / "result.json", record.to_json())

    def finish(self) -> None:
        """Mark a prepared run as finished, and drop its training states."""
        self.drop_checkpoints()
        self.answers.unlink(missing_ok=True)
        self._write("status.json", {"status": "done"})

    def fail(self, reason: str) -> None:
        """Record why the run failed, and drop its training states."""
        self._write("failure.json", {"reason": reason})
        self.drop_checkpoints()

    def record(self) -> Record:
        """The run's record.

        Raises:
            UserError: it cannot be read, or has another schema version.
        """
        return read_record(self.path / "result.json")


@lru_cache(maxsize=65536)
def _is_record(path: Path, changed: int, size: int) -> bool:
    """Whether a file is a valid record; cached by its modification time and size."""
    try:
        read_record(path)
    except OtherVersion:
        raise
    except UserError:
        return False
    return True


def _nothing(self: RunFolder, *given: Any, **named: Any) -> None:
    """The first process does it."""


class OnlookersFolder(RunFolder):
    """A run's folder for the other processes of a distributed run, which only read what the first wrote."""

    clear = begin = add_metrics = keep_metrics = write_probes = write_checkpoint = _nothing
    drop_checkpoints = prepare = finish = fail = _nothing

    def lock(self) -> AbstractContextManager[None]:
        """The first process holds the lock for all."""
        return nullcontext()


def kind_of(folder: Path) -> Literal["adapter", "model"]:
    """Whether a folder given as ``--adapter`` holds a PEFT adapter or a whole model, judging by its file names.

    Raises:
        UserError: neither, both, or a run's folder.
    """
    adapter, model = ((folder / name).is_file() for name in ("adapter_config.json", "config.json"))
    if adapter and model:  # trainers save the base's configuration with an adapter
        adapter, model = (any(folder.glob(name)) for name in ("adapter_model*", "model*.safetensors"))
        if adapter == model:
            has = "the weights of both an adapter and a whole model" if model else "no weights"
            raise UserError(f"--adapter {folder} holds {has}. Give a folder with one of the two.")
    if adapter or model:
        return "adapter" if adapter else "model"
    if (folder / "config.yaml").is_file():
        raise UserError(f"--adapter {folder} is a run's folder. Give it without --adapter: ocr-eval score {folder}")
    raise UserError(f"--adapter {folder} contains no adapter (adapter_config.json). Give a PEFT adapter's folder.")
