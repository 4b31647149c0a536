"""Run folders: what a run leaves on disk, written so that nothing is ever half there.

    <output>/runs/<model>/<association>/<method>/seed<k>[-train<l>]-<fingerprint>/
        config.yaml    the resolved RunSpec
        env.json       versions, commit, device
        audit.json     what the tokenizer makes of the candidates
        metrics.jsonl  a line per epoch, from epoch 0 (the untouched base)
        probes.jsonl   a line per probe, for epoch 0 and the last epoch
        adapter/       PEFT format, with a card (README.md); in its place a run of all parameters has model/, in
                       Hugging Face layout, and one that learned no weights context.txt
        result.json    the record that tables are made from
        status.json    written last; without it the run is not finished
        failure.json   why the run failed, in place of a record
        answers.jsonl  what a server has answered, while the run is not finished
        checkpoint-<epoch>.pt      training state, while the run is not finished
        checkpoint-<epoch>.sha256  digest of all that resuming from it needs

The two files of lines may be packed (``gzip metrics.jsonl``) once a run is finished: they are read as before.

Every file, and adapter/ and model/ as a whole, is written beside its place, synced and renamed. Only metrics.jsonl
grows, and a last line without its end does not count yet. A lock on the folder (``.lock``, with ``.holder``, touched
every minute, to say whose) keeps a second process out.
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

#: The weights of an adapter in PEFT's format; what a run read that learned no weights.
_ADAPTER_WEIGHTS, _CONTEXT = "adapter_model.safetensors", "context.txt"
#: What makes a run count, written last and removed first.
_LAST = ("status.json", "result.json")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def of(cls, root: Path, spec: RunSpec, fingerprint: str, training: Training | None = None) -> RunFolder:
        """The folder that a run has below an output folder; ``training`` is what was done elsewhere in its place."""
        train = "" if spec.train_seed is None else f"-train{spec.train_seed}"
        names = spec.model.name, spec.association.name, (training or spec.train).method_name
        return cls(root.joinpath("runs", *names, f"seed{spec.seed}{train}-{fingerprint}"))

    def checkpoints(self) -> dict[int, Path]:
        """The training states that an unfinished run keeps, by the number of epochs they are after."""
        found = ((re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in self.path.iterdir())
        return {int(match[1]): path for match, path in found if match}

    @property
    def learned(self) -> Path:
        """What the run learned: its adapter or its model.

        Raises:
            UserError: it learned no weights.
        """
        if (self.path / _CONTEXT).is_file():
            raise UserError(f"{self.path} has no trained weights to score: it read {_CONTEXT}.")
        model = self.path / "model"
        return model if model.is_dir() else self.path / "adapter"

    @property
    def identity(self) -> str:
        """The folder's place below ``runs/``: model, association, method, seed and fingerprint."""
        return "/".join(self.path.parts[-4:])

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; see ``hold.hold``."""
        return hold.hold(self.path)

    def has_begun(self) -> bool:
        """Whether the run is finished or can be resumed."""
        return (self.path / "config.yaml").is_file() and self.failure() is None

    def is_done(self) -> bool:
        """Whether the run finished and its record is valid.

        Raises:
            UserError: the record is of another schema version, and so not to be replaced.
        """
        return (self.path / "status.json").is_file() and self._has_record()

    def _has_record(self) -> bool:
        path = self.path / "result.json"
        kept = files.stored(path)
        return kept.is_file() and _is_record(path, kept.stat().st_mtime_ns, kept.stat().st_size)

    def is_prepared(self) -> bool:
        """Whether all that a finished run leaves is there and agrees; it counts once the status says so."""
        if not self._has_record():
            return False
        try:
            record, epochs = self.record(), [line.epoch for line in self.metrics()]
            return epochs == list(record.epochs) and self.learned_sha256() == record.adapter_sha256
        except (OSError, UserError):
            return False

    def learned_sha256(self) -> str:
        """The digest of the weights of the adapter or model, as the record states it.

        Raises:
            OSError, UserError: there are none.
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
        """Remove what an earlier attempt left, so that the run starts from nothing; first what makes it count."""
        for mark in _LAST:
            files.remove(self.path / mark)
        files.sync(self.path)
        for entry in self.path.iterdir():
            if entry.name not in (*hold.FILES, self.answers.name):
                files.remove(entry)

    def begin(self, config: str, environment: dict[str, Any], audit: dict[str, Any]) -> None:
        """Write what the run is, where it runs and what the tokenizer makes of its candidates; it is now unfinished.

        A run that resumes under other versions or elsewhere keeps a note of where it was before.

        Raises:
            UserError: what a finished run writes last could not be written then.
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
        """The environments of this run until now that were others than the present one, the oldest first."""
        try:
            content = dict(files.read_json(self.path / "env.json"))
            before = [dict(each) for each in content.pop("earlier", [])]
        except (UserError, TypeError, ValueError):  # it is for the curious
            return []
        content.pop("schema_version", None)
        return before if content == now else [*before, content]

    def metrics(self) -> list[MetricsLine]:
        """The lines of metrics.jsonl, an empty list if there are none yet."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path, growing=True) if path.is_file() else []

    def add_metrics(self, line: MetricsLine) -> None:
        """Append a line to metrics.jsonl, on the disk when this returns; that of epoch 0 begins the file."""
        with (self.path / "metrics.jsonl").open("ab" if line.epoch else "wb") as file:
            file.write(metrics_text([line]).encode())
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, last: int) -> None:
        """Cut metrics.jsonl after an epoch."""
        write_atomic(self.path / "metrics.jsonl", self._metrics_until(last))

    def _metrics_until(self, epoch: int) -> bytes:
        path = self.path / "metrics.jsonl"
        return b"".join(files.read_lines(path)[: epoch + 1]) if path.is_file() else b""

    def probes(self) -> list[dict[str, Any]]:
        """The lines of probes.jsonl that belong to the untouched base.

        Raises:
            UserError: it is missing or damaged.
        """
        with files.whole(path := self.path / "probes.jsonl"):
            return [line for line in files.read_jsonl(path) if line["epoch"] == 0]

    def write_probes(self, lines: list[dict[str, Any]]) -> None:
        """Replace probes.jsonl."""
        write_atomic(self.path / "probes.jsonl", files.to_jsonl(lines))

    def write_checkpoint(self, epoch: int, write: Callable[[IO[bytes]], None]) -> None:
        """Keep a training state to resume from, sealed; earlier ones stay until ``drop_checkpoints``."""
        with files.replacing(self.path / f"checkpoint-{epoch}.pt") as file:
            write(file)
            file.flush()
            write_atomic(self.path / f"checkpoint-{epoch}.sha256", self._seal(epoch, Path(file.name)))

    def resumable(self) -> set[int]:
        """The epochs that the run can resume from: all that this needs is as it was when the state was kept."""
        whole = set()
        for epoch, state in self.checkpoints().items():
            with suppress(OSError, UserError, KeyError, TypeError):  # the state or the probes are gone or damaged
                if files.read_bytes(state.with_suffix(".sha256")) == self._seal(epoch, state).encode():
                    whole.add(epoch)
        return whole

    def _seal(self, epoch: int, state: Path) -> str:
        """Digest of a training state with the metrics until then and the base's probes, which the record will need."""
        with files.open_file(state) as file:
            digest = hashlib.file_digest(file, "sha256")
        probes = self.probes() if (self.path / "probes.jsonl").is_file() else []
        for content in (self._metrics_until(epoch), files.to_jsonl(probes).encode()):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def drop_checkpoints(self, before: float = math.inf, after: float = -math.inf) -> None:
        """Remove training states: all, or those before or after an epoch."""
        for epoch, path in self.checkpoints().items():
            if after < epoch < before:
                path.unlink(missing_ok=True)
        for path in (*self.path.glob("checkpoint-*.sha256"), *self.path.glob(".*.partial")):
            if not path.with_suffix(".pt").exists():  # just dropped, or of a process that was killed
                files.remove(path)

    def prepare(self, record: Record, probes: list[dict[str, Any]]) -> None:
        """Write what a finished run leaves; ``finish`` makes it count."""
        self.write_probes(probes)
        if (adapter := self.path / "adapter").is_dir():
            write_atomic(adapter / "README.md", adapter_card(record))
        write_atomic(self.path / "result.json", record.to_json())

    def finish(self) -> None:
        """Drop the training states of a prepared run, which needs none to resume, and make it count."""
        self.drop_checkpoints()
        self.answers.unlink(missing_ok=True)
        self._write("status.json", {"status": "done"})

    def fail(self, reason: str) -> None:
        """Note why the run failed, and drop its training states."""
        self._write("failure.json", {"reason": reason})
        self.drop_checkpoints()

    def record(self) -> Record:
        """The run's record.

        Raises:
            UserError: not readable, or not of this schema.
        """
        return read_record(self.path / "result.json")


@lru_cache(maxsize=65536)
def _is_record(path: Path, changed: int, size: int) -> bool:
    """Whether a file, as it was when it had this time and size, is a valid record."""
    try:
        read_record(path)
    except OtherVersion:
        raise
    except UserError:
        return False
    return True


def _nothing(self: RunFolder, *given: Any, **named: Any) -> None:
    """Left to the first process."""


class OnlookersFolder(RunFolder):
    """A run's folder in the hands of a process that trains along: it reads what the first wrote, and writes none."""

    clear = begin = add_metrics = keep_metrics = write_probes = write_checkpoint = _nothing
    drop_checkpoints = prepare = finish = fail = _nothing

    def lock(self) -> AbstractContextManager[None]:
        """The first process holds the folder for all."""
        return nullcontext()


def kind_of(folder: Path) -> Literal["adapter", "model"]:
    """Whether a folder given as ``--adapter`` holds a PEFT adapter or a whole model, told by its files' names.

    Raises:
        UserError: neither, both, or a run's folder.
    """
    adapter, model = ((folder / name).is_file() for name in ("adapter_config.json", "config.json"))
    if adapter and model:  # trainers write the base's configuration beside an adapter
        adapter, model = (any(folder.glob(name)) for name in ("adapter_model*", "model*.safetensors"))
        if adapter == model:
            has = "the weights of both an adapter and a whole model" if model else "no weights"
            raise UserError(f"--adapter {folder} holds {has}. Give a folder with one of the two.")
    if adapter or model:
        return "adapter" if adapter else "model"
    if (folder / "config.yaml").is_file():
        raise UserError(f"--adapter {folder} is a run's folder. Give it without --adapter: ocr-eval score {folder}")
    raise UserError(f"--adapter {folder} contains no adapter (adapter_config.json). Give a PEFT adapter's folder.")
