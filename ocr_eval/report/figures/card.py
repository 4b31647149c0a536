"""The scorecard as a picture: where each row stands, and by how much it differs from its reference."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from ocr_eval.analysis.intervals import Estimate
from ocr_eval.analysis.scorecard import KINDS, ScorecardRow
from ocr_eval.report.figures.style import bare, entry, face, new_figure, series
from ocr_eval.specs.association import Kind
from ocr_eval.specs.run import Scoring

#: Rows that are drawn, for each of which there is a colour and a marker.
MOST_ROWS = 24
#: How far apart marks are kept, which are an eighth of an inch large, in OCR scores; letters of a line of a label.
_APART, _LETTERS = 0.05, 34
#: The links that rows are sorted by, the first that a row has.
_SORTED_BY: tuple[Kind, ...] = ("spurious", "counterfactual", "unclassified", "causal")

Looks = dict[str, tuple[str, str]]  # colour and marker, by row


def card_figure(rows: Sequence[ScorecardRow], scoring: Scoring) -> Figure | None:
    """Scores over true links against those over arbitrary ones; below it each row minus its reference, sorted.

    A row has one colour and marker in all panels, hollow where a run did not learn what it was taught. Bars are 95 %
    intervals over seeds. A mark that would hide another is moved, and a line leads back to its place.

    Returns:
        None of no rows.
    """
    if not rows:
        return None
    shown = _sorted(rows)[:MOST_ROWS]
    looks = {row.name: series(i) for i, row in enumerate(shown)}
    both = [row for row in shown if {"causal", "spurious"} <= row.links.keys()]
    kinds = [kind for kind in KINDS if any(of.against for row in shown if (of := row.links.get(kind)))]
    names = [_name(row, rows) for row in shown]
    tall = [name.count("\n") + 1.6 for name in names]  # in lines
    below = 0.9 + 0.14 * sum(tall)
    figure = new_figure(6.4, below + 4.4 * bool(both))
    lower: FigureBase = figure
    if both:
        halves: Any = figure.subfigures(2, 1, height_ratios=[4.4, below])
        upper, lower = halves
        _scatter(upper.subplots(), both, looks, scoring)
    places = [-sum(tall[:i]) - tall[i] / 2 for i in range(len(names))]
    grid = lower.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        _differences(axes, shown, places, kind, looks)
    grid[0].set_yticks(places, names, fontsize=8)
    grid[0].set_ylim(-sum(tall), 0)
    more = f"; {len(rows) - MOST_ROWS} more rows are not drawn" if len(rows) > MOST_ROWS else ""
    hollow = "; hollow: a run did not learn what it was taught" if any(row.unlearned for row in shown) else ""
    lower.supxlabel(
        f"OCR score minus that of the reference, paired by seed\n(95 % intervals{hollow}{more})", fontsize=8
    )
    return figure


def _sorted(rows: Sequence[ScorecardRow]) -> list[ScorecardRow]:
    """Each reference with its rows after it, those first that infer least over arbitrary links."""
    references = list(dict.fromkeys(row.reference for row in rows))

    def place(row: ScorecardRow) -> tuple[int, bool, float]:
        against = next(row.links[kind].against for kind in _SORTED_BY if kind in row.links)
        return references.index(row.reference), row.name != row.reference, against.value.value if against else math.inf

    return sorted(rows, key=place)


def _name(row: ScorecardRow, rows: Sequence[ScorecardRow]) -> str:
    """A row in words, without the model where all have one."""
    models = {each.name.partition(", ")[0] for each in rows}
    name = row.name.partition(", ")[2] if len(models) == 1 and ", " in row.name else row.name
    marks = " (reference)" * (row.name == row.reference) + " (knows the relation)" * bool(row.knows_relation)
    return textwrap.fill(entry(name + marks), _LETTERS, break_on_hyphens=False)


def _scatter(axes: Axes, rows: Sequence[ScorecardRow], looks: Looks, scoring: Scoring) -> None:
    taken: list[tuple[float, float]] = []
    for row in rows:
        color, marker = looks[row.name]
        x, y = row.links["spurious"].score, row.links["causal"].score
        for along, across, flip in ((x, y, 1), (y, x, -1)):
            if along.bounds:
                axes.plot(*[along.bounds, [across.value] * 2][::flip], color=color, linewidth=1.4, alpha=0.7, zorder=1)
        at = _free((x.value, y.value), taken)
        taken.append(at)
        axes.plot(*zip((x.value, y.value), at, strict=True), color="0.3", linewidth=0.8, zorder=2)
        _mark(axes, at, color, marker, row)
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    label = "on this line: no telling true from arbitrary"
    axes.text(0.02, 0.01, label, va="top", rotation=45, rotation_mode="anchor", fontsize=7, color="0.35", zorder=0)
    for line in (axes.axhline, axes.axvline):
        line(0, color="black", linewidth=0.8, zorder=0)
    lowest = min(0.0, *(links.score.value for row in rows for links in row.links.values()))
    axes.set_xlim(lowest - 0.08, 1.1)
    axes.set_ylim(lowest - 0.08, 1.1)
    axes.set_aspect("equal")
    axes.set_xlabel("unwanted: OCR score over arbitrary links")
    axes.set_ylabel(f"wanted: OCR score over true links\n({scoring})")
    bare(axes)


def _differences(axes: Axes, rows: Sequence[ScorecardRow], places: Sequence[float], kind: Kind, looks: Looks) -> None:
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    for row, place in zip(rows, places, strict=True):
        links = row.links.get(kind)
        value = Estimate(0.0) if row.name == row.reference else links.against.value if links and links.against else None
        if links is None or value is None:
            continue
        color, marker = looks[row.name]
        if value.bounds:
            axes.plot(value.bounds, [place, place], color=color, linewidth=1.8, zorder=1)
        _mark(axes, (value.value, place), color, marker, row)
    axes.set_title(f"{KINDS[kind]} links", fontsize=9)
    axes.tick_params("y", length=0)
    axes.tick_params("x", labelsize=8)
    axes.margins(x=0.12)
    axes.locator_params("x", nbins=4)
    bare(axes)


def _mark(axes: Axes, at: tuple[float, float], color: str, marker: str, row: ScorecardRow) -> None:
    filled = face(color, bool(row.unlearned))
    axes.plot(*at, marker, color=color, markerfacecolor=filled, markersize=8, markeredgewidth=1.2, zorder=3)


def _free(at: tuple[float, float], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The place nearest to one, about, that hides none of the marks there are."""
    turns = [0.0, *(_APART * (1 + i // 8 / 2) for i in range(400))]
    for i, far in enumerate(turns):
        place = at[0] + far * math.cos(i * math.pi / 4), at[1] + far * math.sin(i * math.pi / 4)
        if all(math.dist(place, other) >= _APART * 0.99 for other in taken):
            return place
    return at
