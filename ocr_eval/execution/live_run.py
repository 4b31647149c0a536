"""A run in training: its folder, its data, and its metrics so far."""

from dataclasses import dataclass, field

from ocr_eval.execution.material import Material
from ocr_eval.measures.measure import Trained
from ocr_eval.methods.method import Pack
from ocr_eval.methods.prevention import end_differs, stops_when_learned
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine, matched_in
from ocr_eval.records.record import Matched
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.ranks import premises_hold
from ocr_eval.specs.run import RunSpec


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
    def matched(self) -> Matched | None:
        """The run when all premises first held, if they have."""
        return matched_in(self.material.task.quantities, self.spec.train, self.lines)

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
