"""OCR scores: by association and row, and true links against arbitrary ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ocr_eval.analysis.intervals import WITHIN, Units, averaged, estimate, units_of
from ocr_eval.analysis.scorecard import KINDS
from ocr_eval.analysis.table import Table
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association, by_seed, group_rows, is_control, ranks_by_seed
from ocr_eval.report.figures.plane import Mark, draw_plane
from ocr_eval.report.figures.rows import counted, in_words, looks, seeds_by_row
from ocr_eval.report.figures.style import LEGEND_ROWS, entry, figure_of_rows, legend_of_rows, tick
from ocr_eval.report.tables import findings, seed_counts
from ocr_eval.specs.run import Scoring


def score_figure(table: Table) -> Figure:
    """OCR score of each association with its 95 % interval over seeds; one marker per row, without published rows."""
    rows = [row for row in table.rows if not row.published]
    names = [name for name in table.associations if any(name in row.cells for row in rows)]
    figure, axes = figure_of_rows(7.2, 3.4, len(rows))
    step = min(0.12, 0.8 / len(rows))
    look_of = looks(row.name for row in rows)
    for i, row in enumerate(rows):
        look = look_of[row.name]
        for name, cell in row.cells.items():
            x = names.index(name) + (i - (len(rows) - 1) / 2) * step
            if "ocr-score" in cell.bounds:
                axes.plot([x, x], cell.bounds["ocr-score"], color=look.color, linewidth=2, solid_capstyle="butt")
            filled = look.face(bool(cell.unlearned))
            axes.plot(x, cell.values["ocr-score"], look.marker, color=look.color, markerfacecolor=filled, markersize=7)
        if i < LEGEND_ROWS:
            label = entry(in_words(row.name, counted(seed_counts(row))))
            axes.plot([], [], look.marker, color=look.color, markersize=7, label=label)
    axes.axhline(0, color="black", linewidth=1)
    axes.text(-0.48, 0.02, "null", ha="left", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    kinds = {name: KINDS[cell.kind] for row in rows for name, cell in row.cells.items() if cell.kind}
    axes.set_xticks(range(len(names)), [f"{tick(name)}\n{kinds[name]} link" for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel(f"OCR score ({table.scoring})")
    axes.set_title(f"{findings(table)} inferred: 0 = none, 1 = always", fontsize=10)
    legend_of_rows(figure, len(rows), any(cell.unlearned for row in rows for cell in row.cells.values()))
    return figure


def scatter_figure(records: Sequence[Record], scoring: Scoring) -> Figure | None:
    """Generalization against hallucination: each row's OCR score over true links and over arbitrary ones.

    Large markers are rows, with the 95 % intervals of both scores over seeds; small ones are their seeds; hollow means
    that a run did not learn what it was taught. A seed's score averages its associations of a kind, which share their
    people. Controls are skipped. None if no row has runs of both kinds.
    """
    marks: dict[str, Mark] = {}
    seeds = seeds_by_row(records)
    look_of = looks(seeds)
    for key, runs in group_rows(records).items():
        kinds = [[run for run in runs if run.kind == kind] for kind in ("spurious", "causal")]
        if is_control(runs[0]) or not all(kinds):
            continue
        across, up = (_by_seed(of, scoring) for of in kinds)
        x, y = (estimate([each.score for each in of.values()], WITHIN["ocr-score"]) for of in (across, up))
        unlearned = not all(each.learned for of in (across, up) for each in of.values())
        points = [
            ((across[seed].score.mean, up[seed].score.mean), not (across[seed].learned and up[seed].learned))
            for seed in sorted(across.keys() & up.keys())
        ]
        marks[key.name] = Mark(look_of[key.name], x, y, unlearned, points)
    if not marks:
        return None
    width, height = 5.6, 3.9
    figure, axes = figure_of_rows(width, height, len(marks))
    draw_plane(axes, list(marks.values()), (width - 0.9, height - 1.0), scoring)
    for name, mark in list(marks.items())[:LEGEND_ROWS]:
        label = entry(in_words(name, counted(seeds[name])))
        axes.plot([], [], mark.look.marker, color=mark.look.color, markersize=7, label=label)
    legend_of_rows(figure, len(marks), any(mark.unlearned for mark in marks.values()))
    return figure


@dataclass(frozen=True)
class _Seed:
    """A row's score over the links of one kind in one seed."""

    score: Units
    learned: bool


def _by_seed(runs: Sequence[Record], scoring: Scoring) -> dict[int, _Seed]:
    """By seed, over those that all associations have."""
    ranks = [ranks_by_seed(own, scoring) for own in by_association(runs).values()]
    learned = {seed: all(run.premises_hold for run in of_seed) for seed, of_seed in by_seed(runs).items()}
    return {
        seed: _Seed(averaged([units_of(of[seed]) for of in ranks]), learned[seed])
        for seed in sorted(set.intersection(*(set(of) for of in ranks)))
    }
