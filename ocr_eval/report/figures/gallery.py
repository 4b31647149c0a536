"""All figures that a set of runs can have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from ocr_eval.analysis.candidate_heat import heat_of_run
from ocr_eval.analysis.table import Table, build_table
from ocr_eval.common.errors import UserError
from ocr_eval.data.task import the_finding
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.record import Record
from ocr_eval.records.run_files import metrics_of
from ocr_eval.records.select import RowKey, by_association, column_order, group_rows
from ocr_eval.report.chart import Curve, Metrics
from ocr_eval.report.figures.curves import curve_figure, efficiency_figure
from ocr_eval.report.figures.heatmaps import heatmap_figure
from ocr_eval.report.figures.scores import scatter_figure, score_figure
from ocr_eval.report.figures.style import file_name
from ocr_eval.specs.run import Scoring


def gallery(
    runs: Sequence[FinishedRun], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[str, Figure]]:
    """Each figure with the name of its file; reads metrics and probes of a row's runs when its turn comes.

    ``complain`` receives each metrics or probes file that cannot be read; figures are drawn without it.

    Raises:
        ValueError: no runs.
    """
    records = [run.record for run in runs]
    yield from overall_figures(records, build_table(records, scoring))
    for kind, row, figure in row_figures(runs, scoring, complain):
        yield file_name(kind, row.lower()), figure


def overall_figures(records: Sequence[Record], table: Table) -> Iterator[tuple[str, Figure]]:
    """The figures of all runs together, and of their table, those that the records allow, by name."""
    yield "scores", score_figure(table)
    if scatter := scatter_figure(records, table.scoring):
        yield "generalization-hallucination", scatter
    if efficiency := efficiency_figure(records, table.scoring):
        yield "sample-efficiency", efficiency


def row_figures(
    runs: Sequence[FinishedRun], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[str, str, Figure]]:
    """Learning curves of each row, and the heatmaps of its first seed, a panel an association; see ``gallery``.

    Yields:
        ``curves`` or ``heatmap``, the name of the row, and the figure.
    """
    for key, of in runs_by_row(runs).items():
        if metrics := list(_metrics(of, scoring, complain)):
            yield "curves", key.name, curve_figure(metrics, scoring)
        run_of = {run.record.run: run for run in of}
        heats = {}
        for name, records in by_association([run.record for run in of]).items():
            try:
                heat = heat_of_run(run_of[records[0].run], scoring)
            except UserError as error:
                complain(error)
                continue
            if heat is not None:
                heats[f"{name}, seed {records[0].seeds}"] = heat
        if heats:
            yield "heatmap", key.name, heatmap_figure(heats, scoring)


def text_curves(
    runs: Sequence[FinishedRun], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[str, list[Curve]]]:
    """The name of each row with the curves of its associations, for a terminal; see ``gallery``."""
    for key, of in runs_by_row(runs).items():
        lines_of: dict[str, list[Metrics]] = defaultdict(list)
        finding_of = {}
        for record, lines in _metrics(of, scoring, complain):
            lines_of[record.association].append(lines)
            finding_of[record.association] = the_finding(record.quantities).name
        if lines_of:
            names = column_order(lines_of)
            yield key.name, [Curve.of(name, lines_of[name], scoring, finding_of[name]) for name in names]


def _metrics(
    runs: Sequence[FinishedRun], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[Record, Metrics]]:
    """The metrics of the runs that have them whole."""
    for run in runs:
        try:
            yield run.record, metrics_of(run, scoring)
        except UserError as error:
            complain(error)


def runs_by_row(runs: Sequence[FinishedRun]) -> dict[RowKey, list[FinishedRun]]:
    """Runs by row of the table."""
    of_record = {run.record.run: run for run in runs}
    groups = group_rows([run.record for run in runs])
    return {key: [of_record[record.run] for record in records] for key, records in groups.items()}
