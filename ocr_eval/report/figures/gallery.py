"""All figures of a set of runs."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from matplotlib.figure import Figure

from ocr_eval.analysis.candidate_heat import heat_of
from ocr_eval.analysis.scorecard import ScorecardRow, build_scorecard, comparable
from ocr_eval.analysis.table import Table, build_table
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import whole
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.record import Record
from ocr_eval.records.rows import RowKey, by_association, group_rows
from ocr_eval.records.run_files import has_probes, metrics_of, probes_of
from ocr_eval.report.chart import Curve, Metrics
from ocr_eval.report.figures.card import card_figure
from ocr_eval.report.figures.curves import curve_figure, efficiency_figure
from ocr_eval.report.figures.heatmaps import heatmap_figure
from ocr_eval.report.figures.rows import seeds_by_row
from ocr_eval.report.figures.scores import scatter_figure, score_figure
from ocr_eval.report.figures.style import file_name
from ocr_eval.specs.run import Scoring

K = TypeVar("K")
Complain = Callable[[UserError], None]


def gallery(runs: Sequence[FinishedRun], scoring: Scoring, complain: Complain) -> Iterator[tuple[str, Figure]]:
    """Each figure with its file name; metrics and probes are read row by row.

    ``complain`` is called for each metrics or probes file that cannot be read; figures are drawn without it.

    Raises:
        UserError: no runs.
    """
    records = [run.record for run in runs]
    table = build_table(records, scoring)
    yield from overall_figures(records, table)
    if card := card_figure(card_of(records, table), scoring, seeds_by_row(records)):
        yield "scorecard", card
    named = Counter[str]()
    for kind, row, figure in row_figures(runs_by_row(runs), scoring, complain):
        name = file_name(kind, row.lower())  # rows of different names may share it
        named[name] += 1
        yield f"{name}-{named[name]}" if named[name] > 1 else name, figure


def overall_figures(records: Sequence[Record], table: Table) -> Iterator[tuple[str, Figure]]:
    """The figures of all runs together, by name, as far as the records allow them."""
    yield "scores", score_figure(table)
    if scatter := scatter_figure(records, table.scoring):
        yield "generalization-hallucination", scatter
    if efficiency := efficiency_figure(records, table.scoring):
        yield "sample-efficiency", efficiency


def card_of(records: Sequence[Record], table: Table) -> list[ScorecardRow]:
    """The scorecard of a table's records if it compares settings of a model; else no rows."""
    labels = [row.labels for row in table.rows if not row.published]
    if len(set(labels)) == len(labels):
        return []
    try:
        rows = build_scorecard(records, table.scoring)
    except UserError:  # no seed in common, or only shuffled runs
        return []
    return rows if comparable(rows) else []


def row_figures(
    rows: Mapping[RowKey, Sequence[FinishedRun]], scoring: Scoring, complain: Complain
) -> Iterator[tuple[str, str, Figure]]:
    """Learning curves of each row, and heatmaps of its first seed, one panel per association; see ``gallery``.

    Each with ``curves`` or ``heatmap`` and the name of the row.
    """
    for key, of in rows.items():
        if curves := _curves(of, scoring, complain):
            yield "curves", key.name, curve_figure(curves, scoring)
        heats = {}
        with_probes = [run for run in of if has_probes(run)]
        for name, (first, *_) in _by_association(with_probes).items():
            try:
                lines = probes_of(first, scoring)
                with whole(first.folder / "probes.jsonl"):
                    heat = heat_of(lines, scoring, first.record.quantities)
            except UserError as error:
                complain(error)
                continue
            if heat is not None:
                heats[f"{name}, seed {first.record.seeds}"] = heat
        if heats:
            yield "heatmap", key.name, heatmap_figure(heats, scoring)


def text_curves(runs: Sequence[FinishedRun], scoring: Scoring, complain: Complain) -> Iterator[tuple[str, list[Curve]]]:
    """The name of each row and the curves of its associations, for a terminal; see ``gallery``."""
    for key, of in runs_by_row(runs).items():
        if curves := _curves(of, scoring, complain):
            yield key.name, curves


def _curves(runs: Sequence[FinishedRun], scoring: Scoring, complain: Complain) -> list[Curve]:
    """The curve of each association of a row."""
    found = (Curve.of(_metrics(of, scoring, complain), scoring) for of in _by_association(runs).values())
    return [curve for curve in found if curve is not None]


def _metrics(runs: Sequence[FinishedRun], scoring: Scoring, complain: Complain) -> Iterator[tuple[Record, Metrics]]:
    """The metrics of the runs for which they are complete."""
    for run in runs:
        try:
            yield run.record, metrics_of(run, scoring)
        except UserError as error:
            complain(error)


def runs_by_row(runs: Sequence[FinishedRun]) -> dict[RowKey, list[FinishedRun]]:
    """Runs by row of the table."""
    return _of_records(runs, group_rows([run.record for run in runs]))


def _by_association(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    return _of_records(runs, by_association([run.record for run in runs]))


def _of_records(runs: Sequence[FinishedRun], groups: Mapping[K, Sequence[Record]]) -> dict[K, list[FinishedRun]]:
    run_of = {run.record.run: run for run in runs}
    return {key: [run_of[record.run] for record in records] for key, records in groups.items()}
