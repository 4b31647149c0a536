"""All figures that a set of runs can have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from ocr_eval.archive import Run
from ocr_eval.errors import UserError
from ocr_eval.figures.curves import curve_figure, efficiency_figure
from ocr_eval.figures.heatmaps import heatmap_figure
from ocr_eval.figures.scores import scatter_figure, score_figure
from ocr_eval.figures.sources import heat_of_run, metrics_of
from ocr_eval.figures.style import file_name
from ocr_eval.selection import RowKey, by_association, group_rows
from ocr_eval.specs import Scoring
from ocr_eval.table import build_table


def gallery(
    runs: Sequence[Run], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[str, Figure]]:
    """Each figure with the name of its file; reads metrics and probes of a row's runs when its turn comes.

    Args:
        runs: finished runs.
        scoring: whose ranks.
        complain: is told of each metrics or probes file that cannot be read; figures are drawn without it.

    Raises:
        ValueError: no runs.
    """
    records = [run.record for run in runs]
    yield "scores", score_figure(build_table(records, scoring))
    scatter = scatter_figure(records, scoring)
    if scatter is not None:
        yield "generalization-hallucination", scatter
    efficiency = efficiency_figure(records, scoring)
    if efficiency is not None:
        yield "sample-efficiency", efficiency
    yield from row_figures(runs, scoring, complain)


def row_figures(
    runs: Sequence[Run], scoring: Scoring, complain: Callable[[UserError], None]
) -> Iterator[tuple[str, Figure]]:
    """Learning curves of each row, and the heatmaps of its first seed, a panel an association; see ``gallery``."""
    for key, of in runs_by_row(runs).items():
        metrics = []
        for run in of:
            try:
                metrics.append((run.record, metrics_of(run, scoring)))
            except UserError as error:
                complain(error)
        if metrics:
            yield file_name("curves", key.name), curve_figure(metrics, scoring)
        run_of = {run.record.run: run for run in of}
        heats = {}
        for name, records in by_association([run.record for run in of]).items():
            try:
                heat = heat_of_run(run_of[records[0].run], scoring)
            except UserError as error:
                complain(error)
            else:
                heats[f"{name}, seed {records[0].seed}"] = heat
        if heats:
            yield file_name("heatmap", key.name), heatmap_figure(heats, scoring)


def runs_by_row(runs: Sequence[Run]) -> dict[RowKey, list[Run]]:
    """Runs by row of the table."""
    of_record = {run.record.run: run for run in runs}
    groups = group_rows([run.record for run in runs])
    return {key: [of_record[record.run] for record in records] for key, records in groups.items()}
