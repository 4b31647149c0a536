"""The record of a finished run, which tables, comparisons and pages are made from, and how it is read.

Records are msgspec structs, so that ten thousand of them can be read and validated in a second. They outlive the
program that wrote them: a missing field gets its legacy value, and an unknown one is ignored, except in the settings of
a run, where it still tells runs apart.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import numpy as np
from msgspec import structs
from pydantic import ConfigDict

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_stored
from ocr_eval.data import pairs
from ocr_eval.data.task import Quantity, the_finding
from ocr_eval.records.contradiction import contradiction
from ocr_eval.scoring.ranks import Floats, HeldOut, Score, Scores, premises, premises_hold
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import Training, TrainSpec
from ocr_eval.specs.run import DataSpec, Scoring, seeds_text
from ocr_eval.specs.strict import SCHEMA_VERSION, Strict

#: Peak memory of a process in bytes, and how many runs it trained side by side; empty if unknown.
Memory = dict[Literal["peak", "runs"], int]


class OtherVersion(UserError):
    """A record of another schema version."""


class Matched(msgspec.Struct, frozen=True):
    """A run at the moment it had learned what it was taught: the first epoch after which all premises held.

    Attributes:
        ranks: of the finding; subjects and answers are those of ``Record.held_out``.
    """

    epoch: int
    scores: Scores
    ranks: dict[Scoring, Floats]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One finished run, or a scored external training, about which less is known.

    Attributes:
        run: its folder below ``runs/``, which also identifies it.
        published_as: the model's row in the published table.
        train_seed: seed of order and initialization, if not ``seed``; unknown for external training.
        attention: as requested in the model's YAML.
        association_digest: digest of the association's content; empty in the oldest records.
        quantities: what was scored, in the order in which it is shown.
        train: the training settings; only the name for external training.
        base: scores of the untouched base (epoch 0); empty if unknown.
        final: scores after the last epoch.
        base_held_out: ranks of the finding at epoch 0; empty if ``base`` is.
        held_out: the same after the last epoch.
        matched: the run when all premises first held; None if they never did, and in older records
            (``run_files.matched_of`` finds it for those too).
        train_loss: mean loss of the last epoch, in nats per answer token; None for external training.
        seconds: wall time of training, unless it was external, and of scoring, over all attempts.
        memory: of the training process in the last attempt; empty for external training, in older records, and if the
            system does not report it.
        base_identity: identity of the base weights; empty if unknown.
        adapter_sha256: digest of the adapter's weights, or of the model's after full fine-tuning.
        code: digest of the code that made it, for reference.
        remote_code: whether code from the model's repository ran.
        inexact: number of the finding's probes whose ranks a server left open (``scoring.served``).
        measures: results by measure: numbers at the top level, details below.
        results_version: version of the numbers that this code gives (``strict.RESULTS_VERSION``).
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    model: str
    published_as: str | None
    association: str
    kind: Kind
    seed: int
    train_seed: int | None = None
    dtype: str
    attention: str = "auto"
    association_digest: str = ""
    structure: str = "pairs"
    quantities: tuple[Quantity, ...] = ()
    data: DataSpec
    train: Training
    base: Scores
    final: Scores
    base_held_out: dict[Scoring, HeldOut]
    held_out: dict[Scoring, HeldOut]
    matched: Matched | None = None
    train_loss: float | None
    seconds: dict[Literal["train", "score"], float]
    memory: Memory = {}
    base_identity: str
    adapter_sha256: str
    code: str
    remote_code: bool = False
    inexact: int = 0
    results_version: int = 0
    measures: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        stated = self.quantities or pairs.quantities(self.data)
        if not self.data.m_train:  # older records state what nobody was asked
            stated = tuple(each for each in stated if each.name not in ("train_fact", "train_entailment"))
        structs.force_setattr(self, "quantities", stated)

    def finding(self, scoring: Scoring) -> Score:
        """The statistics of the finding after the last epoch.

        Raises:
            KeyError: the record was read without this scoring.
        """
        return self.final[scoring][the_finding(self.quantities).name]

    def when_matched(self) -> Record | None:
        """The record with the scores and ranks of the epoch at which all premises first held, if there is one."""
        if self.matched is None:
            return None
        ranks, scores = self.matched.ranks, self.matched.scores
        held_out = {scoring: structs.replace(held, ranks=ranks[scoring]) for scoring, held in self.held_out.items()}
        return structs.replace(self, final=scores, held_out=held_out)

    @property
    def seeds(self) -> str:
        """Its seeds in words, to follow "seed"."""
        return seeds_text(self.seed, self.train_seed)

    @property
    def training_seed(self) -> int:
        """The seed of order and initialization."""
        return self.seed if self.train_seed is None else self.train_seed

    @property
    def epochs(self) -> range:
        """The epochs of its files, 0 for the untouched base. External training ends at 1, however many there were."""
        if isinstance(self.train, TrainSpec):
            return range(self.train.epochs + 1)
        return range(0 if self.base_identity else 1, 2)

    @property
    def premises(self) -> dict[str, float]:
        """Top-1 (first token) of each premise: what must be learned before ranks say anything about inference."""
        return premises(self.quantities, self.final)

    @property
    def premises_hold(self) -> bool:
        """Whether top-1 of every premise reached 95 %."""
        return premises_hold(self.quantities, self.final)

    def to_json(self) -> str:
        """The record as JSON, one line per field."""
        fields = to_plain(self).items()
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in fields) + "\n}\n"


def to_plain(content: Any) -> Any:
    """Scores, held-out ranks or a record as plain JSON types."""
    return msgspec.to_builtins(
        content, enc_hook=lambda part: part.tolist() if isinstance(part, np.ndarray) else part.model_dump(mode="json")
    )


def load_plain(kind: Any, content: Any) -> Any:
    """msgspec's hook for types that it does not know: arrays and settings.

    Raises:
        ValueError: the content does not fit the type.
    """
    if get_origin(kind) is np.ndarray:
        try:
            return np.array(content, dtype=get_args(get_args(kind)[1])[0])
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError("not numbers in rows of equal length") from error
    if kind is Training and not Training.is_external(content):
        kind = TrainSpec
    return _settings(kind, msgspec.json.encode(content))


@lru_cache(maxsize=8192)
def _settings(kind: type[Strict], content: bytes) -> Any:
    """Settings from JSON; cached, because many records share identical ones."""
    return read_settings(kind, msgspec.json.decode(content))


def read_settings(kind: type[Strict], content: Any) -> Any:
    """A spec written by this program or by an older or newer one.

    Missing fields get their legacy value. Unknown ones are kept (``model_extra``).

    Raises:
        ValueError: not a mapping, or an invalid value.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected settings by name, got {content!r}")
    known = content.keys() <= kind.model_fields.keys()
    return (kind if known else _open(kind)).model_validate({**kind.legacy(), **content}, strict=False)


@lru_cache
def _open(kind: type[Strict]) -> type[Strict]:
    return type(kind.__name__, (kind,), {"model_config": ConfigDict(extra="allow"), "__module__": __name__})


_WHOLE = msgspec.json.Decoder(Record, dec_hook=load_plain)
_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_record(path: Path, scoring: Scoring | None = None, measures: Collection[str] = ()) -> Record:
    """Read one result.json.

    With ``scoring``, only the final model's part under it is parsed, and of ``measures`` the numbers and values by
    layer; the rest (other scorings, the untouched base) is most of a record and is skipped.

    Raises:
        UserError: unreadable, not a regular file, too large, truncated, of another schema, with an invalid key or
            value, or inconsistent, such as a mean rank that is not the mean of its ranks.
    """
    try:
        content = read_stored(path)
        record = _WHOLE.decode(content if scoring is None else _skimmed(content, scoring, measures))
    except msgspec.ValidationError as error:
        version = _schema_version(content)
        if version not in (None, SCHEMA_VERSION):
            raise (OtherVersion if isinstance(version, int) else UserError)(
                f"{path} has schema version {version!r}; this version of ocr-eval reads {SCHEMA_VERSION}."
            ) from error
        raise UserError(f"{path}: {error}.") from error
    except (OSError, EOFError, zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a valid record ({str(error).rstrip('.')}). Rerun it with 'ocr-eval finetune --force'."
        ) from error
    if scoring is not None and scoring not in {*record.final, *record.held_out}:
        raise UserError(f"{path} has no scores of {scoring}. Choose another --scoring.")
    for each in record.final if scoring is None else [scoring]:
        if problem := contradiction(record, each):
            raise UserError(f"{path}: {problem}. If it was edited by hand, undo that; else rerun it with --force.")
    return record


def _skimmed(content: bytes, scoring: Scoring, measures: Collection[str]) -> bytes:
    """A record's JSON without what ``read_record`` skips; the skipped parts are not parsed."""
    of_score, of_ranks = (scoring, "first-token"), (scoring,)
    parts = _narrowed(content, base=(), base_held_out=(), final=of_score, held_out=of_ranks, measures=measures)
    if bytes(parts.get("matched", b"null")) != b"null":
        parts["matched"] = _narrowed(parts["matched"], scores=of_score, ranks=of_ranks)
    for name, found in parts.get("measures", {}).items():
        members = _PARTS.decode(found).items()
        parts["measures"][name] = {key: of for key, of in members if key == "layers" or bytes(of)[:1] not in b'{["'}
    return msgspec.json.encode(parts)


def _narrowed(content: bytes, **kept: Collection[str]) -> dict[str, Any]:
    """The members of a JSON object, unparsed; of those in ``kept`` only the entries with these names."""
    parts: dict[str, Any] = dict(_PARTS.decode(content))
    for key in kept.keys() & parts.keys():
        parts[key] = {name: of for name, of in _PARTS.decode(parts[key]).items() if name in kept[key]}
    return parts


def _schema_version(content: bytes) -> Any:
    try:
        loose = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return loose.get("schema_version") if isinstance(loose, dict) else None
