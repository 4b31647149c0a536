"""Progress on the terminal: a line per epoch of a run, or of a pack of a sweep."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocr_eval.common.messages import duration, say
from ocr_eval.data.task import Quantity, the_finding
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.scoring.ranks import premises
from ocr_eval.specs.run import RunSpec

if TYPE_CHECKING:
    from ocr_eval.execution.execute import PlannedRun


@dataclass(frozen=True)
class Step:
    """A run's new line of metrics.jsonl, and the quantities that it is asked (none for a run in another process)."""

    spec: RunSpec
    folder: RunFolder
    line: MetricsLine
    quantities: Sequence[Quantity] = ()


#: Called at epoch 0 and after each epoch of a pack, with the new line of every run in it.
Watcher = Callable[[Sequence[Step]], None]


def say_lines(steps: Sequence[Step]) -> None:
    """A watcher that prints every line on stderr, with the estimated time left for the pack."""
    for step in steps:
        epoch, left = step.line.epoch, step.spec.train.epochs - step.line.epoch
        spent = sum(line.seconds for line in step.folder.metrics() if line.epoch)
        pace = f"  {duration(spent * len(steps) / epoch * left)} left" if epoch and left else ""
        say(_shown(step) + pace)


def _shown(step: Step) -> str:
    spec, line = step.spec, step.line
    learned = premises(step.quantities, line.scores) if line.scores else {}
    control = "" if spec.data.variant == "real" else f" {spec.data.variant}"
    loss = "untouched base" if line.train_loss is None else f"loss {line.train_loss:7.4f}"
    known = f"  learned {min(learned.values()):4.0%}" if learned else ""
    width, inferred = len(str(spec.train.epochs)), ""
    if line.held_out is not None:
        finding = line.of("first-token")[the_finding(step.quantities).name]
        inferred = (
            f"  held-out mean rank {finding.mean_rank:.2f} (null {finding.null_rank:.2f})  "
            f"OCR score {line.held_out['first-token'].ocr_score:+.2f}"
        )
    begin = f"{spec.association.name}{control} seed {spec.seeds} epoch {line.epoch:>{width}}/{spec.train.epochs}"
    return f"{begin}  {loss:>14}{known}{inferred}"


class SweepWatcher:
    """Prints a line per epoch of a pack: the share of open work that is done, losses, OCR scores, time left."""

    def __init__(self, packs: Sequence[Sequence[PlannedRun]]) -> None:
        numbered = [(index, run) for index, pack in enumerate(packs) for run in pack if run.is_open]
        self._pack_of = {run.folder.identity: index for index, run in numbered}
        self._left = {run.folder.identity: run.spec.train.epochs for _, run in numbered}
        self._packs, self._total, self._counted = len(packs), sum(self._left.values()), 0
        self._started = time.monotonic()

    def __call__(self, steps: Sequence[Step]) -> None:
        """A pack has finished an epoch."""
        there = {step.folder.identity for step in steps}
        pack = next((self._pack_of[run] for run in there if run in self._pack_of), None)
        for run in self._left:
            if self._pack_of[run] == pack and run not in there:  # it has finished or failed
                self._left[run] = 0
        for step in steps:
            if step.folder.identity in self._left:
                self._left[step.folder.identity] = step.spec.train.epochs - step.line.epoch
                self._counted += 1
        if pack is None:  # runs that another process has restarted
            return
        left, epoch = sum(self._left.values()), steps[0].line.epoch
        longest = max(step.spec.train.epochs for step in steps)
        # Epoch 0 counts like the others although it is only a scoring, so the first estimates are rough.
        seconds = (time.monotonic() - self._started) / self._counted * left
        done = 1 - left / self._total
        say(
            f"{done:4.0%}  pack {pack + 1}/{self._packs} epoch {epoch:>{len(str(longest))}}/{longest}  "
            + "  ".join(_by_association(steps))
            + (f"  {duration(seconds)} left" if left else "")
        )


def _by_association(steps: Sequence[Step]) -> Iterator[str]:
    """Per association of a pack: number of runs, mean loss and, if all were scored, mean OCR score."""
    lines: dict[str, list[MetricsLine]] = defaultdict(list)
    for step in steps:
        lines[step.spec.association.name].append(step.line)
    for association, group in lines.items():
        losses = [line.train_loss for line in group if line.train_loss is not None]
        scores = [line.held_out["first-token"].ocr_score for line in group if line.held_out is not None]
        loss = f" loss {sum(losses) / len(losses):.3f}" if losses else ""
        score = f" OCR {sum(scores) / len(scores):+.2f}" if len(scores) == len(group) else ""
        yield f"{association} x{len(group)}{loss}{score}"
