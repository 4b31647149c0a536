"""The scorecard as a figure: each row's scores, and how much they differ from its reference."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from ocr_eval.analysis.intervals import Estimate
from ocr_eval.analysis.scorecard import KINDS, ScorecardRow
from ocr_eval.report.figures.plane import Mark, draw_plane
from ocr_eval.report.figures.rows import Look, counted, in_words, looks
from ocr_eval.report.figures.style import bare, entry, new_figure
from ocr_eval.specs.association import Kind
from ocr_eval.specs.run import Scoring

#: Most rows drawn; each has its own combination of colour and marker.
MOST_ROWS = 24
#: Characters per line of a label; width of the figure and height of its upper half, in inches.
_LETTERS, _WIDTH, _UPPER = 34, 6.4, 4.0
#: The kind of links that rows are sorted by: the first one that a row has.
_SORTED_BY: tuple[Kind, ...] = ("spurious", "counterfactual", "unclassified", "causal")


def card_figure(
    rows: Sequence[ScorecardRow], scoring: Scoring, seeds: Mapping[str, int] = MappingProxyType({})
) -> Figure | None:
    """Scores over true links against those over arbitrary ones; below, each row minus its reference, sorted.

    A row has the same colour and marker in all panels, hollow if a run did not learn what it was taught. Bars are 95 %
    intervals over seeds. ``seeds`` gives the number of seeds of all rows of the report, so that a row looks the same in
    all of its figures. None if there are no rows.
    """
    if not rows:
        return None
    shown = _sorted(rows)[:MOST_ROWS]
    look_of = looks([*seeds, *(row.name for row in rows)])
    both = [row for row in shown if {"causal", "spurious"} <= row.links.keys()]
    kinds = [kind for kind in KINDS if any(of.against for row in shown if (of := row.links.get(kind)))]
    names = [_name(row, rows, seeds) for row in shown]
    tall = [name.count("\n") + 1.6 for name in names]  # in lines
    below = 0.9 + 0.14 * sum(tall)
    figure = new_figure(_WIDTH, below + _UPPER * bool(both))
    lower: FigureBase = figure
    if both:
        halves: Any = figure.subfigures(2, 1, height_ratios=[_UPPER, below])
        upper, lower = halves
        marks = [
            Mark(look_of[row.name], row.links["spurious"].score, row.links["causal"].score, bool(row.unlearned))
            for row in both
        ]
        draw_plane(upper.subplots(), marks, (_WIDTH - 1.0, _UPPER - 1.0), scoring)
    places = [-sum(tall[:i]) - tall[i] / 2 for i in range(len(names))]
    grid = lower.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        _differences(axes, shown, places, kind, look_of)
    grid[0].set_yticks(places, names, fontsize=8)
    grid[0].set_ylim(-sum(tall), 0)
    more = f"; {len(rows) - MOST_ROWS} more rows are not drawn" if len(rows) > MOST_ROWS else ""
    hollow = "; hollow: a run did not learn what it was taught" if any(row.unlearned for row in shown) else ""
    lower.supxlabel(
        f"OCR score minus that of the reference, paired by seed\n(95 % intervals{hollow}{more})", fontsize=8
    )
    return figure


def _sorted(rows: Sequence[ScorecardRow]) -> list[ScorecardRow]:
    """Each reference followed by its rows, starting with those that infer least over arbitrary links."""
    references = list(dict.fromkeys(row.reference for row in rows))

    def place(row: ScorecardRow) -> tuple[int, bool, float]:
        against = next(row.links[kind].against for kind in _SORTED_BY if kind in row.links)
        return references.index(row.reference), row.name != row.reference, against.value.value if against else math.inf

    return sorted(rows, key=place)


def _name(row: ScorecardRow, rows: Sequence[ScorecardRow], seeds: Mapping[str, int]) -> str:
    """A row in words, without the model if all rows have the same."""
    models = {each.name.partition(", ")[0] for each in rows}
    name = row.name.partition(", ")[2] if len(models) == 1 and ", " in row.name else row.name
    notes = ["reference"] * (row.name == row.reference) + ["knows the relation"] * bool(row.knows_relation)
    count = counted(seeds.get(row.name, seeds.get(row.reference))).replace(" ", "\N{NO-BREAK SPACE}")
    return textwrap.fill(entry(in_words(name, count, *notes)), _LETTERS, break_on_hyphens=False)


def _differences(
    axes: Axes, rows: Sequence[ScorecardRow], places: Sequence[float], kind: Kind, look_of: Mapping[str, Look]
) -> None:
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    for row, place in zip(rows, places, strict=True):
        links = row.links.get(kind)
        value = Estimate(0.0) if row.name == row.reference else links.against.value if links and links.against else None
        if links is None or value is None:
            continue
        look = look_of[row.name]
        if value.bounds:
            axes.plot(value.bounds, [place, place], color=look.color, linewidth=1.8, zorder=1)
        filled = look.face(bool(row.unlearned))
        axes.plot(value.value, place, look.marker, color=look.color, markerfacecolor=filled, markersize=8)
    axes.set_title(f"{KINDS[kind]} links", fontsize=9)
    axes.tick_params("y", length=0)
    axes.tick_params("x", labelsize=8)
    axes.margins(x=0.12)
    axes.locator_params("x", nbins=4)
    bare(axes)
