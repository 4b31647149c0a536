"""A run in training: its data as its pack uses them, its folder, its metrics so far, and where it can resume."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ocr_eval.common.messages import warn
from ocr_eval.data.candidate_tokens import Audit, audit_task, refuse_known_words
from ocr_eval.data.task import Task
from ocr_eval.data.tokenize import Continuation, ProbeTokens, probe_tokens, training_tokens
from ocr_eval.measures.measure import Trained
from ocr_eval.methods.method import Pack, method_of
from ocr_eval.methods.prevention import end_differs, stops_when_learned, task_of_run
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.scoring.candidates import CandidateScores, for_first_token
from ocr_eval.scoring.ranks import premises_hold
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Material:
    """What a run is taught and asked, also as tokens, and the audit of its candidates.

    Attributes:
        premises: the probes of the premises, with only what first-token scoring reads of their candidates.
    """

    task: Task
    examples: Sequence[Continuation]
    probes: Sequence[ProbeTokens]
    premises: Sequence[ProbeTokens]
    audit: Audit


def prepare(tokenizer: Any, spec: RunSpec) -> Material:
    """Build a run's data.

    Raises:
        UserError: the tokenizer cannot handle the data, or has an invented word as a token.
    """
    refuse_known_words(tokenizer, spec.association)
    task = task_of_run(spec)
    probes, premises = probe_tokens(tokenizer, task), [q.name for q in task.quantities if q.role == "premise"]
    return Material(
        task=task,
        examples=training_tokens(tokenizer, task),
        probes=probes,
        premises=[for_first_token(each) for each in probes if each.probe.quantity in premises],
        audit=audit_task(tokenizer, task),
    )


def check(spec: RunSpec, tokenizer: Any | None) -> None:
    """Refuse what a run would refuse of its data; ``tokenizer`` is None where it is not on this disk.

    Raises:
        UserError: as of ``prepare``, or the method cannot teach this.
    """
    if tokenizer is not None:
        prepare(tokenizer, spec)
    method_of(spec.train).check(spec, tokenizer)


@dataclass
class LiveRun:
    """A run whose folder this process holds, with its metrics.jsonl so far."""

    spec: RunSpec
    folder: RunFolder
    material: Material
    lines: list[MetricsLine] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Number of epochs to train."""
        return self.spec.train.epochs

    @property
    def has_learned(self) -> bool:
        """Whether all premises held after an epoch of training."""
        asked = self.material.task.quantities
        return any(line.epoch and line.scores and premises_hold(asked, line.scores) for line in self.lines)

    @property
    def has_stopped(self) -> bool:
        """Whether a prevention has stopped it because it learned what it is taught."""
        return stops_when_learned(self.spec.train) and self.has_learned

    @property
    def is_learning(self) -> bool:
        """Whether its premises have not held yet, and the epoch at which they first do matters."""
        train = self.spec.train
        return not self.has_learned and (stops_when_learned(train) or not end_differs(train))

    def trained(self, pack: Pack, lane: int, scores: CandidateScores) -> Trained:
        """The run as measures see it."""
        return Trained(self.spec, pack, lane, self.material.task.quantities, self.material.probes, scores)


def first_epoch(folders: Sequence[RunFolder], epochs: Sequence[int]) -> int:
    """The epoch after which a pack resumes, 0 for the start; warns about damaged files."""
    epoch = common_epoch(folders, epochs)
    then = f"training resumes after epoch {epoch}" if epoch else "training starts over"
    for folder in folders:
        whole = folder.resumable()
        for later, path in folder.checkpoints().items():
            if later > epoch and later not in whole:
                warn(f"{path}, or the metrics or probes in its folder, is damaged: {then}.")
        if (folder.path / "result.json").is_file() and not folder.is_prepared():
            warn(f"{folder.path}: result.json, or what it describes, is damaged: {then}.")
    return epoch


def common_epoch(folders: Sequence[RunFolder], epochs: Sequence[int]) -> int:
    """The last epoch that every run of a pack can resume from, 0 for the start.

    A run can resume from an epoch with a saved state and, once its record is written, from its end or later.
    """
    kept = [folder.resumable() for folder in folders]
    ends = [last if folder.is_prepared() else math.inf for folder, last in zip(folders, epochs, strict=True)]
    candidates = set().union(*kept, {int(end) for end in ends if end < math.inf})
    possible = [e for e in candidates if all(e in own or e >= end for own, end in zip(kept, ends, strict=True))]
    return max(possible, default=0)
