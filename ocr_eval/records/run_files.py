"""What a finished run's metrics.jsonl and probes.jsonl hold, checked against its record."""

from __future__ import annotations

from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_jsonl, whole
from ocr_eval.data.task import the_finding
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.metrics import MetricsLine, matched_in, read_metrics
from ocr_eval.records.record import Matched
from ocr_eval.specs.run import Scoring

Line = dict[str, Any]


def metrics_of(run: FinishedRun, scoring: Scoring | None) -> list[MetricsLine]:
    """The lines of metrics.jsonl, one for each epoch from 0 to the last, with what ``read_metrics`` reads by a scoring.

    Raises:
        UserError: it is missing, damaged, or does not have every epoch of the run.
    """
    path = run.folder / "metrics.jsonl"
    with whole(path):
        lines = read_metrics(path, scoring=scoring)
    last, finding = run.record.train.epochs, the_finding(run.record.quantities).name
    every = [line.epoch for line in lines] == list(range(last + 1))
    if not every or finding not in lines[-1].of(scoring or "first-token"):
        raise UserError(f"{path} does not have the epochs 0 to {last} of the run, a line each.")
    return lines


def matched_of(run: FinishedRun) -> Matched | None:
    """A finished run at the first epoch at which all premises held; None if they never did.

    Read from metrics.jsonl where the record does not hold it. A run from before records did was scored at the epochs
    that its flags named, and the first of those counts.

    Raises:
        UserError: metrics.jsonl is needed and is missing, damaged, or does not have every epoch of the run.
    """
    record = run.record
    return record.matched or matched_in(record.quantities, record.train, metrics_of(run, None))


def probes_of(run: FinishedRun, scoring: Scoring) -> list[Line]:
    """The lines of probes.jsonl, those of the untouched base and those of the last epoch.

    Raises:
        UserError: it is missing, damaged, or does not have every probe that the record counts.
    """
    path = run.folder / "probes.jsonl"
    with whole(path):
        lines = read_jsonl(path)
        last = [line["quantity"] for line in lines if line["epoch"] == run.record.train.epochs]
    for quantity, score in run.record.final[scoring].items():
        found = last.count(quantity)
        if found != score.probes:
            raise UserError(f"{path} has {found} probes of {quantity} after the last epoch, the record {score.probes}.")
    return lines
