"""OCR scores: by association and row, and true links against arbitrary ones."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ocr_eval.analysis.intervals import WITHIN, Units, averaged, estimate, units_of
from ocr_eval.analysis.table import Table
from ocr_eval.records.record import Record
from ocr_eval.records.select import by_association, by_seed, group_rows, is_control, ranks_by_seed
from ocr_eval.report.figures.style import LEGEND_ROWS, entry, face, figure_of_rows, legend_of_rows, series, tick
from ocr_eval.report.tables import findings
from ocr_eval.specs.run import Scoring


def score_figure(table: Table) -> Figure:
    """OCR score of each association with its 95 % interval over seeds, a marker for each row of our own."""
    rows = [row for row in table.rows if not row.published]
    names = [name for name in table.associations if any(name in row.cells for row in rows)]
    figure, axes = figure_of_rows(7.2, 3.4, len(rows))
    step = min(0.12, 0.8 / len(rows))
    for i, row in enumerate(rows):
        color, marker = series(i)
        for name, cell in row.cells.items():
            x = names.index(name) + (i - (len(rows) - 1) / 2) * step
            if "ocr-score" in cell.bounds:
                axes.plot([x, x], cell.bounds["ocr-score"], color=color, linewidth=2, solid_capstyle="butt")
            filled = face(color, bool(cell.unlearned))
            axes.plot(x, cell.values["ocr-score"], marker, color=color, markerfacecolor=filled, markersize=7)
        if i < LEGEND_ROWS:
            axes.plot([], [], marker, color=color, markersize=7, label=entry(row.name))
    axes.axhline(0, color="black", linewidth=1)
    axes.text(-0.48, 0.02, "null", ha="left", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(range(len(names)), [tick(name) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel(f"OCR score ({table.scoring})")
    axes.set_title(f"{findings(table)} inferred: 0 nothing transferred, 1 always", fontsize=10)
    legend_of_rows(figure, len(rows), any(cell.unlearned for row in rows for cell in row.cells.values()))
    return figure


def scatter_figure(records: Sequence[Record], scoring: Scoring) -> Figure | None:
    """Generalization against hallucination: each row's OCR score over true links and over arbitrary ones.

    A large marker is a row with the 95 % intervals of both scores over seeds, a small one is one of its seeds; hollow
    means that a run did not learn what it was taught. A seed's score is the mean over its associations of a kind, which
    share their people. On the diagonal a model cannot tell a true link from an arbitrary one. Controls are skipped.

    Returns:
        None if no row has runs of both kinds.
    """
    rows = []
    for key, runs in group_rows([record for record in records if not is_control(record)]).items():
        kinds = [[run for run in runs if run.kind == kind] for kind in ("causal", "spurious")]
        if all(kinds):
            rows.append((key.name, kinds))
    if not rows:
        return None
    figure, axes = figure_of_rows(5.2, 4.6, len(rows))
    lowest, all_learned = 0.0, True
    for i, (name, kinds) in enumerate(rows):
        color, marker = series(i)
        across, up = (_by_seed(runs, scoring) for runs in kinds)
        points: dict[bool, list[tuple[float, float]]] = defaultdict(list)
        for seed in across.keys() & up.keys():
            learned = across[seed].learned and up[seed].learned
            points[learned].append((across[seed].score.mean, up[seed].score.mean))
        for learned, of in points.items():
            filled = face(color, not learned)
            axes.plot(*zip(*of, strict=True), marker, color=color, markerfacecolor=filled, markersize=3.5, alpha=0.55)
            lowest = min(lowest, *map(min, of))
        x, y = (estimate([each.score for each in of.values()], WITHIN["ocr-score"]) for of in (across, up))
        if x.bounds and y.bounds:
            axes.plot(x.bounds, [y.value, y.value], color=color, linewidth=1.6)
            axes.plot([x.value, x.value], y.bounds, color=color, linewidth=1.6)
        learned = all(each.learned for of in (across, up) for each in of.values())
        all_learned &= learned
        edge = "white" if learned else color
        axes.plot(
            x.value, y.value, marker, markersize=9, markerfacecolor=face(color, not learned), markeredgecolor=edge
        )
        if i < LEGEND_ROWS:
            axes.plot([], [], marker, color=color, markersize=7, label=entry(name))
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
    legend_of_rows(figure, len(rows), not all_learned)
    return figure


@dataclass(frozen=True)
class _Seed:
    """A row's score over the links of one kind in one seed."""

    score: Units
    learned: bool


def _by_seed(runs: Sequence[Record], scoring: Scoring) -> dict[int, _Seed]:
    found = {}
    for seed, of_seed in by_seed(runs).items():
        scores = [units_of(ranks_by_seed(own, scoring)[seed]) for own in by_association(of_seed).values()]
        found[seed] = _Seed(averaged(scores), all(run.premises_hold for run in of_seed))
    return found
