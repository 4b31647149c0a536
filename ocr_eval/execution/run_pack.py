"""A pack of runs from start to records: trained, scored and written side by side, without losing work.

All unfinished runs of a pack are at the same epoch, even after an interruption: training states are written for all of
them before older ones are removed, and a run leaves the pack (because it has finished, or diverged) only once the
others have such a state. A resumed pack therefore contains the same runs as before, and its results are those of an
uninterrupted one, bit for bit.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from msgspec.structs import replace as replace_fields

from ocr_eval.common import provenance
from ocr_eval.common.distributed import agreed, is_first
from ocr_eval.common.errors import RunFailed, TooLarge, reason_of
from ocr_eval.common.messages import say
from ocr_eval.common.out_of_memory import forget_peak, free_cache, is_out_of_memory, peak_bytes
from ocr_eval.execution.interruption import StopRequest, stop_request
from ocr_eval.execution.live_run import LiveRun, Material, first_epoch
from ocr_eval.execution.progress import Step, Watcher, say_lines
from ocr_eval.measures.measure import Measure, take_by_epoch, take_measures
from ocr_eval.methods.method import Pack
from ocr_eval.methods.pack import attach
from ocr_eval.models.base import Base
from ocr_eval.planning import memory
from ocr_eval.planning.workload import batch_geometry
from ocr_eval.records.config import config_yaml
from ocr_eval.records.metrics import MetricsLine, common_fields, matched_in
from ocr_eval.records.record import Memory, Record
from ocr_eval.scoring.candidates import CandidateScores, score_lanes
from ocr_eval.scoring.quantities import held_out, probe_lines, summarize_quantities
from ocr_eval.scoring.ranks import Scores, premises_hold
from ocr_eval.specs import schedule
from ocr_eval.specs.model import Device
from ocr_eval.specs.run import SCORINGS

#: Seconds between checkpoints, or ten times the time to write one if that is longer. A kill loses at most this much
#: work, Ctrl-C at most the current epoch (execution/interruption.py); short runs write no checkpoint.
CHECKPOINT_EVERY = 20.0


@dataclass(frozen=True)
class Execution:
    """How runs are executed; none of this changes what is learned.

    Attributes:
        score_at: after which epochs all probes are scored (specs/schedule.py).
        watch: called with the new lines of metrics after each epoch of a pack.
        measures: measures to take at the end; None for the default ones.
    """

    device: Device = "auto"
    force: bool = False
    score_at: str = schedule.DEFAULT
    watch: Watcher = say_lines
    measures: tuple[str, ...] | None = None


def inject(
    base: Base, runs: Sequence[LiveRun], how: Execution = Execution(), measures: Mapping[str, Measure] | None = None
) -> None:
    """Train, score and write runs as one pack, one lane each, in order; the base is restored at the end.

    Afterwards each run's folder holds its record, or the reason why it failed.

    Raises:
        RunFailed: a checkpoint is damaged, no gradient reaches an adapter, or memory is too small.
        KeyboardInterrupt: the user asked to stop; finished epochs are saved.
    """
    try:
        _inject(base, runs, how, measures or {})
    except TooLarge as error:
        raise RunFailed(_too_large(base, runs, str(error))) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = reason_of(error)
        raise RunFailed(
            f"The memory of {base.device.type} is too small for {len(runs)} run{'s' * (len(runs) > 1)} of "
            f"{base.spec.name} at once ({reason}). Train fewer side by side, or use --method qlora, a smaller --rank "
            "or --batch-size; --dry-run shows what fits."
        ) from error


def _too_large(base: Base, runs: Sequence[LiveRun], reason: str) -> str:
    """A message on how much memory one example of each run needs, by the plan, and how much is free."""
    longest = max((e for run in runs for e in run.material.examples), key=lambda e: len(e.prompt) + len(e.answer))
    one, kind = replace(batch_geometry([longest]), lanes=len(runs)), base.device.type
    needed = memory.estimate(base.spec, runs[0].spec.train, one, one, kind).total
    return (
        f"Even one example per step is too large for the memory of {kind} ({reason}): by the plan it needs "
        f"{needed / 1e9:.1f} GB in all, and another {memory.available(base.device) / 1e9:.1f} GB are free now. "
        "Use --method qlora, a smaller --rank, or fewer runs side by side."
    )


def _inject(base: Base, runs: Sequence[LiveRun], how: Execution, measures: Mapping[str, Measure]) -> None:
    environment = provenance.environment(str(base.device))
    epoch = agreed(first_epoch, [run.folder for run in runs], [run.epochs for run in runs])
    for run in runs:
        if not epoch:
            run.folder.clear()
        if epoch < run.epochs:
            run.folder.begin(config_yaml(run.spec), environment, run.material.audit.as_json())
            if alike := dict.fromkeys(each.probe.quantity for each in run.material.probes if each.begin_alike):
                say(f"Answers of {', '.join(alike)} begin with the same token, so all of their tokens are scored.")
    from_here = forget_peak(base.device)
    pack = attach(base, [run.spec for run in runs], [run.material.examples for run in runs])
    try:
        with stop_request() as stop:
            _run(pack, runs, epoch, how, measures, stop, from_here)
    finally:
        pack.detach()
        del pack
        free_cache(base.device)


def _run(
    pack: Pack,
    runs: Sequence[LiveRun],
    epoch: int,
    how: Execution,
    measures: Mapping[str, Measure],
    stop: StopRequest,
    knows_peak: bool,
) -> None:
    live = [lane for lane, run in enumerate(runs) if epoch < run.epochs]
    for run in runs:
        run.folder.drop_checkpoints(after=epoch)  # from an earlier pack of other runs, which got further
        run.lines = [line for line in run.folder.metrics() if line.epoch <= epoch] if epoch else []
    if epoch:
        for run in runs:
            run.folder.keep_metrics(epoch)
        say(f"Resuming after epoch {epoch}")
        for lane in live:
            pack.read_state(lane, runs[lane].folder.checkpoints()[epoch])
    else:
        scored = _score(pack, runs, live)
        for lane in [lane for lane in live if not scored[lane].scores.are_numbers]:
            runs[lane].folder.fail("The base model returns NaN log-probabilities.")
            live.remove(lane)
        for lane in live:
            runs[lane].folder.write_probes(probe_lines(runs[lane].material.task, scored[lane].scores, epoch=0))
        how.watch([_add_line(runs[lane], MetricsLine(epoch=0), scored[lane]) for lane in live])
    for run in runs:
        if epoch >= run.epochs:
            run.folder.finish()
    saved_at, saving_seconds = time.monotonic(), 0.0
    while live:
        started = time.monotonic()
        going = [lane for lane in live if not runs[lane].has_stopped]
        losses = pack.step(going) if going else {}
        losses |= {i: loss for i in live if i not in going and (loss := runs[i].lines[-1].train_loss) is not None}
        seconds = (time.monotonic() - started) / max(1, len(going))
        epoch += 1
        stop.unsaved = epoch
        diverged = {lane: f"loss became {losses[lane]}" for lane in live if not math.isfinite(losses[lane])}
        failed = {}
        for lane in [lane for lane in live if epoch == runs[lane].epochs and lane not in diverged]:
            try:
                pack.finish(lane)
            except RunFailed as error:
                failed[lane] = str(error)
        live = [lane for lane in live if lane not in failed]
        scored = _score_epoch(pack, runs, [lane for lane in live if lane not in diverged], epoch, how.score_at)
        diverged |= {i: "log-probabilities became NaN" for i, each in scored.items() if not each.scores.are_numbers}
        live = [lane for lane in live if lane not in diverged]
        ending = [lane for lane in live if epoch == runs[lane].epochs]
        lines = {
            i: MetricsLine(
                epoch=epoch,
                train_loss=losses[i],
                train_seconds=seconds if i in going else 0.0,
                notes=pack.notes(i),
                measures=_by_epoch(pack, i, runs[i], scored.get(i), measures),
            )
            for i in live
        }
        how.watch([_add_line(runs[i], line, scored.get(i)) for i, line in lines.items()])
        memory: Memory = {"peak": peak_bytes(pack.base.device), "runs": len(runs)} if knows_peak else {}
        for lane in ending:
            _prepare_record(pack, lane, runs[lane], scored[lane].scores, measures, memory)
        live = [lane for lane in live if lane not in ending]
        now = time.monotonic()
        overdue = now - saved_at >= max(CHECKPOINT_EVERY, 10 * saving_seconds)
        due = bool(live) and (ending or diverged or failed or stop.made or overdue)
        if due:
            for lane in live:
                runs[lane].folder.write_checkpoint(epoch, partial(pack.write_state, lane))
            saved_at = time.monotonic()
            saving_seconds = saved_at - now
        for lane, what in diverged.items():
            spec = runs[lane].spec
            other = ", or use --dtype float32" if spec.precision == "float16" else ""
            runs[lane].folder.fail(f"The {what} in epoch {epoch}. Lower --lr (now {spec.train.lr:g}){other}.")
        for lane, reason in failed.items():
            runs[lane].folder.fail(reason)
        for lane in ending:
            runs[lane].folder.finish()
        if due:
            stop.unsaved = 0
            for lane in live:
                runs[lane].folder.drop_checkpoints(before=epoch)
        if stop.made and (due or not live):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class _Scored:
    """A run's scores on all probes (``whole``) or, by first token, on those of the premises; and the seconds taken."""

    scores: CandidateScores
    seconds: float
    whole: bool

    def summary(self, material: Material) -> Scores:
        """The statistics of what was scored."""
        asked = [each.probe for each in (material.probes if self.whole else material.premises)]
        scorings = SCORINGS if self.whole else SCORINGS[:1]
        return summarize_quantities(material.task.quantities, asked, self.scores, scorings)


def _score(pack: Pack, runs: Sequence[LiveRun], lanes: Sequence[int], whole: bool = True) -> dict[int, _Scored]:
    if not lanes:
        return {}
    started = time.monotonic()
    asked = {lane: runs[lane].material.probes if whole else runs[lane].material.premises for lane in lanes}
    scores = score_lanes(pack.view(), asked)
    seconds = (time.monotonic() - started) / len(lanes)
    return {lane: _Scored(scores[lane], seconds, whole) for lane in lanes}


def _score_epoch(
    pack: Pack, runs: Sequence[LiveRun], lanes: Sequence[int], epoch: int, score_at: str
) -> dict[int, _Scored]:
    """Score what is due after an epoch: all probes of runs that end or are scheduled; of others, the premises until
    they first hold, and then, once, all probes.

    Runs that end are scored in a pass without the others, so that no schedule changes their records.
    """
    ending = [lane for lane in lanes if epoch == runs[lane].epochs]
    due = [lane for lane in lanes if lane not in ending and schedule.is_due(score_at, epoch)]
    learning = [lane for lane in lanes if lane not in (*ending, *due) and runs[lane].is_learning]
    partly = _score(pack, runs, [lane for lane in learning if runs[lane].material.premises], whole=False)

    def hold(lane: int) -> bool:
        if lane not in partly:
            return True
        material, scored = runs[lane].material, partly[lane]
        return scored.scores.are_numbers and premises_hold(material.task.quantities, scored.summary(material))

    wholly = _score(pack, runs, [lane for lane in learning if hold(lane)])
    wholly = {
        lane: replace(each, seconds=each.seconds + (partly[lane].seconds if lane in partly else 0.0))
        for lane, each in wholly.items()
    }
    return {**partly, **wholly, **_score(pack, runs, due), **_score(pack, runs, ending)}


def _add_line(run: LiveRun, line: MetricsLine, scored: _Scored | None) -> Step:
    asked = run.material.task
    if scored is not None:
        line = replace_fields(
            line,
            score_seconds=scored.seconds,
            scores=scored.summary(run.material),
            held_out=held_out(asked, scored.scores) if scored.whole else None,
        )
    run.lines.append(line)
    run.folder.add_metrics(line)
    return Step(run.spec, run.folder, line, asked.quantities)


def _by_epoch(
    pack: Pack, lane: int, run: LiveRun, scored: _Scored | None, measures: Mapping[str, Measure]
) -> dict[str, dict[str, float]] | None:
    """Numbers of the per-epoch measures; None unless everything was scored."""
    if scored is None or not scored.whole or not is_first():
        return None
    return take_by_epoch(measures, run.trained(pack, lane, scored.scores)) or None


def _prepare_record(
    pack: Pack, lane: int, run: LiveRun, scores: CandidateScores, measures: Mapping[str, Measure], memory: Memory
) -> None:
    if not is_first():
        return
    asked = run.material
    record = Record(
        measures=take_measures(measures, run.trained(pack, lane, scores)),
        **common_fields(run.folder.identity, run.spec, asked.task.quantities, run.lines),
        train=run.spec.train,
        matched=matched_in(asked.task.quantities, run.spec.train, run.lines),
        base_identity=pack.base.identity,
        adapter_sha256=pack.save(lane, run.folder.path),
        remote_code=pack.base.brings_code,
        memory=memory,
    )
    run.folder.prepare(record, run.folder.probes() + probe_lines(asked.task, scores, run.epochs))
