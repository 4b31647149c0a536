"""OCR scores: by association and row, and true links against arbitrary ones."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ocr_eval.analysis.table import Table, make_cells
from ocr_eval.records.record import Record
from ocr_eval.records.select import group_rows
from ocr_eval.report.figures.style import (
    LEGEND_ROWS,
    bare,
    close_legend,
    entry,
    face,
    legend_below,
    new_figure,
    series,
    tick,
)
from ocr_eval.report.tables import findings
from ocr_eval.specs.run import Scoring


def score_figure(table: Table) -> Figure:
    """OCR score of each association with its 95 % interval, a marker for each row of the table.

    Raises:
        ValueError: the table has no row of the project's own.
    """
    rows = [row for row in table.rows if not row.published]
    if not rows:
        raise ValueError("no runs to draw")
    names = [name for name in table.associations if any(name in row.cells for row in rows)]
    figure = new_figure(7.2, 3.4 + 0.16 * min(len(rows), LEGEND_ROWS))
    axes = figure.subplots()
    step = min(0.12, 0.8 / len(rows))
    for i, row in enumerate(rows):
        color, marker = series(i)
        for name, cell in row.cells.items():
            x = names.index(name) + (i - (len(rows) - 1) / 2) * step
            axes.plot([x, x], cell.bounds["ocr-score"], color=color, linewidth=2, solid_capstyle="butt")
            filled = face(color, bool(cell.unlearned))
            axes.plot(x, cell.values["ocr-score"], marker, color=color, markerfacecolor=filled, markersize=7)
        if i < LEGEND_ROWS:
            axes.plot([], [], marker, color=color, markersize=7, label=entry(row.name))
    close_legend(axes, len(rows), any(cell.unlearned for row in rows for cell in row.cells.values()))
    axes.axhline(0, color="black", linewidth=1)
    axes.text(-0.48, 0.02, "null", ha="left", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(range(len(names)), [tick(name) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel(f"OCR score ({table.scoring})")
    axes.set_title(f"{findings(table)} inferred: 0 nothing transferred, 1 always", fontsize=10)
    legend_below(figure)
    bare(axes)
    return figure


def scatter_figure(records: Sequence[Record], scoring: Scoring) -> Figure | None:
    """Generalization against hallucination: each row's OCR score over true links and over arbitrary ones.

    A large marker is a row with the 95 % intervals of both scores, a small one a seed of it, hollow where a run did
    not learn its facts. On the diagonal a model cannot tell a true link from an arbitrary one. Controls are skipped.

    Returns:
        None if no row has runs of both kinds.
    """
    real = [record for record in records if record.data.variant == "real" and record.data.m_train > 0]
    rows = []
    for key, runs in group_rows(real).items():
        kinds = [[run for run in runs if run.kind == kind] for kind in ("causal", "spurious")]
        if all(kinds):
            rows.append((key.name, kinds))
    if not rows:
        return None
    cells = iter(make_cells([runs for _, kinds in rows for runs in kinds], scoring))
    figure = new_figure(5.2, 4.6 + 0.16 * min(len(rows), LEGEND_ROWS))
    axes = figure.subplots()
    lowest = 0.0
    for i, (name, kinds) in enumerate(rows):
        color, marker = series(i)
        across, up = next(cells), next(cells)
        for seed in sorted({run.seed for run in kinds[0]} & {run.seed for run in kinds[1]}):
            of_seed = [[run for run in runs if run.seed == seed] for runs in kinds]
            point = [_score(runs, scoring) for runs in of_seed]
            filled = face(color, not all(run.facts_learned for runs in of_seed for run in runs))
            axes.plot(*point, marker, color=color, markerfacecolor=filled, markersize=3.5, alpha=0.55)
            lowest = min(lowest, *point)
        x, y = (cell.values["ocr-score"] for cell in (across, up))
        axes.plot(across.bounds["ocr-score"], [y, y], color=color, linewidth=1.6)
        axes.plot([x, x], up.bounds["ocr-score"], color=color, linewidth=1.6)
        unlearned = bool(across.unlearned or up.unlearned)
        edge = color if unlearned else "white"
        axes.plot(x, y, marker, markersize=9, markerfacecolor=face(color, unlearned), markeredgecolor=edge)
        if i < LEGEND_ROWS:
            axes.plot([], [], marker, color=color, markersize=7, label=entry(name))
        lowest = min(lowest, across.bounds["ocr-score"][0], up.bounds["ocr-score"][0])
    unlearned_runs = any(not run.facts_learned for _, kinds in rows for runs in kinds for run in runs)
    close_legend(axes, len(rows), unlearned_runs)
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=":")
    label = "on this line: no telling true from arbitrary"
    axes.text(0.5, 0.51, label, ha="center", va="bottom", rotation=45, rotation_mode="anchor", fontsize=7, color="0.35")
    for line in (axes.axhline, axes.axvline):
        line(0, color="black", linewidth=0.8)
    axes.set_xlim(lowest - 0.05, 1.08)
    axes.set_ylim(lowest - 0.05, 1.08)
    axes.set_aspect("equal")
    axes.set_xlabel("generalization: OCR score over true links")
    axes.set_ylabel("hallucination: OCR score over arbitrary links")
    legend_below(figure)
    bare(axes)
    return figure


def _score(runs: Sequence[Record], scoring: Scoring) -> float:
    scores = [run.finding(scoring) for run in runs]
    return 1 - sum(s.mean_rank for s in scores) / sum(s.null_rank for s in scores)
