"""Reading a finished run's metrics.jsonl and probes.jsonl, checked against its record."""

from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_jsonl, stored, whole
from ocr_eval.data.task import the_finding
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.metrics import MetricsLine, matched_in, read_metrics
from ocr_eval.records.record import Matched
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import Scoring


def metrics_of(run: FinishedRun, scoring: Scoring = "first-token") -> list[MetricsLine]:
    """The lines of metrics.jsonl, one for each epoch of the record.

    Raises:
        UserError: it is missing or damaged, lacks an epoch of the run, or lacks the scoring at the last.
    """
    path = run.folder / "metrics.jsonl"
    with whole(path):
        lines = read_metrics(path)
    epochs, finding = list(run.record.epochs), the_finding(run.record.quantities).name
    if [line.epoch for line in lines] != epochs or finding not in lines[-1].of(scoring):
        raise UserError(f"{path} does not have a line for each of the epochs {epochs[0]} to {epochs[-1]}.")
    return lines


def matched_of(run: FinishedRun) -> Matched | None:
    """A finished run at the first epoch at which all premises held; None if they never did, or training was external.

    Records without a results version do not state it; it is then read from metrics.jsonl. Those runs were scored only
    at the epochs that their flags named, and the first of those counts.

    Raises:
        UserError: metrics.jsonl is needed but is missing, damaged, or lacks an epoch of the run.
    """
    record = run.record
    if record.results_version or not isinstance(record.train, TrainSpec):
        return record.matched
    return record.matched or matched_in(record.quantities, record.train, metrics_of(run))


def has_probes(run: FinishedRun) -> bool:
    """Whether the run has probes.jsonl, which may be deleted to save space."""
    return stored(run.folder / "probes.jsonl").is_file()


def probes_of(run: FinishedRun, scoring: Scoring) -> list[dict[str, Any]]:
    """The lines of probes.jsonl, for the untouched base and the last epoch.

    Raises:
        UserError: the run was not scored in this way, or the file is missing, damaged, or lacks probes that the record
            counts.
    """
    path = run.folder / "probes.jsonl"
    if scoring not in run.record.final:
        raise UserError(f"{path} has no scores of {scoring}. Choose another --scoring.")
    with whole(path):
        lines = read_jsonl(path)
        last = [line["quantity"] for line in lines if line["epoch"] == run.record.epochs[-1]]
    for quantity, score in run.record.final[scoring].items():
        found = last.count(quantity)
        if found != score.probes:
            raise UserError(
                f"{path} has {found} probes of {quantity} after the last epoch; the record has {score.probes}."
            )
    return lines
