"""The lines of metrics.jsonl: what is known about a run after each epoch."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ocr_eval.common import provenance
from ocr_eval.common.files import decoded, read_lines, to_jsonl
from ocr_eval.data.task import Quantity
from ocr_eval.methods.prevention import end_differs
from ocr_eval.records.record import Matched, load_plain, to_plain
from ocr_eval.scoring.ranks import HeldOut, Score, Scores, premises_hold
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import RunSpec, Scoring
from ocr_eval.specs.strict import RESULTS_VERSION


class MetricsLine(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of a run.

    Attributes:
        epoch: epochs done; 0 is the untouched base.
        train_loss: mean loss of the epoch, in nats per answer token; None at epoch 0 and for external training.
        train_seconds: wall time of training, as the run's share of its pack's; None for external training.
        notes: further numbers that the method reports, by name.
        score_seconds: wall time of scoring; None, like the fields below, if the epoch was not scored.
        scores: statistics of each quantity; only first-token scores of the premises if only those were scored.
        held_out: ranks of the finding; None if it was not scored.
        measures: numbers of the per-epoch measures; None unless everything was scored.
    """

    epoch: int
    train_loss: float | None = None
    train_seconds: float | None = 0.0
    notes: dict[str, Any] = {}
    score_seconds: float | None = None
    scores: Scores | None = None
    held_out: dict[Scoring, HeldOut] | None = None
    measures: dict[str, dict[str, float]] | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object with the notes as its own keys; what was not measured is omitted."""
        plain = to_plain(self)
        notes = plain.pop("notes")
        kept = ("train_loss", "train_seconds", *notes)
        return {key: value for key, value in (plain | notes).items() if value is not None or key in kept}

    def of(self, scoring: Scoring) -> dict[str, Score]:
        """The statistics of each quantity that was scored."""
        return (self.scores or {}).get(scoring, {})

    @property
    def seconds(self) -> float:
        """Wall time of training and scoring."""
        return (self.train_seconds or 0.0) + (self.score_seconds or 0.0)


_LINE = msgspec.json.Decoder(MetricsLine, dec_hook=load_plain)
_FIELDS = MetricsLine.__struct_fields__
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_metrics(path: Path, growing: bool = False) -> list[MetricsLine]:
    """The lines of a metrics.jsonl; if it is ``growing``, a last line without a newline is skipped.

    Raises:
        UserError: as for ``read_lines``, or a line is invalid (named in the message).
    """
    whole = [line for line in read_lines(path) if not growing or line.endswith(b"\n")]
    return decoded(path, whole, _read, "a valid line of metrics")


def _read(content: bytes) -> MetricsLine:
    line = _LINE.decode(content)
    notes = {key: msgspec.json.decode(value) for key, value in _KEYS.decode(content).items() if key not in _FIELDS}
    return msgspec.structs.replace(line, notes=notes) if notes else line


def matched_in(quantities: Sequence[Quantity], train: TrainSpec, lines: Iterable[MetricsLine]) -> Matched | None:
    """A run at the first fully scored epoch at which all premises held; None if there is none.

    Epoch 0 does not count; if a prevention acts after training, only the last epoch does.
    """
    first = train.epochs if end_differs(train) else 1
    for line in lines:
        if line.epoch >= first and line.scores and line.held_out and premises_hold(quantities, line.scores):
            return Matched(line.epoch, line.scores, {scoring: of.ranks for scoring, of in line.held_out.items()})
    return None


def metrics_text(lines: Sequence[MetricsLine]) -> str:
    """The lines as the text of a metrics.jsonl."""
    return to_jsonl([line.as_json() for line in lines])


def common_fields(
    run: str, spec: RunSpec, quantities: Sequence[Quantity], lines: Sequence[MetricsLine]
) -> dict[str, Any]:
    """The fields of a record that follow from its spec and metrics, whoever trained it.

    ``run`` is its folder's identity. Fields of the untouched base are empty if there is no line of epoch 0.
    """
    first, last = lines[0], lines[-1]
    trained = [line.train_seconds for line in lines if line.train_seconds is not None]
    scored = sum(line.score_seconds or 0.0 for line in lines)
    seconds = {"train": round(sum(trained), 2)} if len(trained) == len(lines) else {}
    return {
        "run": run,
        "model": spec.model.name,
        "published_as": spec.model.published_as,
        "association": spec.association.name,
        "kind": spec.association.kind,
        "seed": spec.seed,
        "train_seed": spec.train_seed,
        "dtype": spec.model.dtype,
        "attention": spec.model.attention,
        "association_digest": spec.association.digest(),
        "structure": spec.association.structure,
        "quantities": quantities,
        "data": spec.data,
        "base": {} if first.epoch else first.scores,
        "final": last.scores,
        "base_held_out": {} if first.epoch else first.held_out,
        "held_out": last.held_out,
        "train_loss": last.train_loss,
        "seconds": {**seconds, "score": round(scored, 2)},
        "code": provenance.code_digest(),
        "results_version": RESULTS_VERSION,
    }
