"""The record of a finished run: what tables, comparisons and pages are made from."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ocr_eval.association import Kind
from ocr_eval.intervals import SubjectRanks
from ocr_eval.specs import SCHEMA_VERSION, DataSpec, Scoring, TrainSpec

#: The four quantities by name, as they stand in files: split of the subject, relation.
Quantity = Literal["train_fact", "train_entailment", "test_fact", "test_entailment"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Frozen):
    """``stats.Summary`` of one quantity under one scoring."""

    probes: int
    mean_rank: float
    null_rank: float
    ocr_score: float
    top1: float
    mrr: float
    margin: float
    ties: int


Scores = dict[Scoring, dict[Quantity, Score]]


class HeldOut(_Frozen):
    """Ranks of the held-out entailments, subject by subject: what intervals and tests are computed from.

    Attributes:
        subject: the test subjects.
        target: index of each one's right answer among the in-use answers.
        ranks: midrank, among all candidates, of each in-use answer; a row a subject.
    """

    subject: list[str]
    target: list[int]
    ranks: list[list[float]]

    def subject_ranks(self) -> SubjectRanks:
        """The same as arrays, for intervals and tests."""
        return SubjectRanks(self.subject, np.array(self.target), np.array(self.ranks))


class Record(_Frozen):
    """One finished run.

    Attributes:
        run: its folder below ``runs/``, which also identifies it.
        published_as: the model's row in the published table.
        facts_learned: whether top-1 on the facts of train and of test subjects reached 95 %; if not, the
            ranks say nothing of out-of-context reasoning.
        base: scores of the untouched base (epoch 0).
        final: scores after the last epoch.
        base_held_out: ranks of the held-out entailments at epoch 0.
        held_out: the same after the last epoch.
        train_loss: mean loss of the last epoch, nats an answer token.
        seconds: wall time of training and of scoring, over all attempts.
        base_identity: identity of the base weights.
        adapter_sha256: content of the adapter's weights.
        code: digest of the code that made it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    model: str
    published_as: str | None
    association: str
    kind: Kind
    seed: int
    dtype: str
    data: DataSpec
    train: TrainSpec
    facts_learned: bool
    base: Scores
    final: Scores
    base_held_out: dict[Scoring, HeldOut]
    held_out: dict[Scoring, HeldOut]
    train_loss: float
    seconds: dict[Literal["train", "score"], float]
    base_identity: str
    adapter_sha256: str
    code: str

    def to_json(self) -> str:
        """The record as JSON, a line a field."""
        fields = self.model_dump(mode="json").items()
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields) + "\n}\n"
