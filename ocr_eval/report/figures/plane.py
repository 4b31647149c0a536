"""A plane of scores over true links against those over arbitrary ones, on which no mark hides another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes

from ocr_eval.analysis.intervals import Estimate
from ocr_eval.report.figures.rows import Look
from ocr_eval.report.figures.style import bare
from ocr_eval.specs.run import Scoring

#: Inches: the size of a mark with its margin; the step by which it is moved.
_MARK, _STEP = 0.15, 0.01
#: The smallest vertical range shown; the score below which intervals are cut off.
_LEAST, _LOWEST = 0.2, -0.25

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A row on the plane.

    Attributes:
        x: OCR score over arbitrary links.
        y: OCR score over true ones.
        unlearned: whether a run did not learn what it was taught.
        seeds: the point of each seed, and whether a run of it did not learn; a single seed is not drawn.
    """

    look: Look
    x: Estimate
    y: Estimate
    unlearned: bool
    seeds: Sequence[tuple[Point, bool]] = ()


def draw_plane(axes: Axes, marks: Sequence[Mark], size: tuple[float, float], scoring: Scoring) -> None:
    """Draw marks with the 95 % intervals of both scores, none for rows that did not learn; small marks are seeds.

    A mark that would hide another is moved left or right, only as far as necessary, and joined by a line to a dot at
    its true position. Below the dotted line, arbitrary links are inferred more than true ones. ``size`` is the
    approximate size of the axes in inches.
    """
    marks = [
        replace(mark, x=Estimate(mark.x.value), y=Estimate(mark.y.value)) if mark.unlearned else mark for mark in marks
    ]
    seeds = [point for mark in marks for point, _ in mark.seeds]
    x_low = _low([mark.x for mark in marks], [x for x, _ in seeds], 1.0)
    y_low = _low([mark.y for mark in marks], [y for _, y in seeds], _LEAST)
    axes.set_xlim(x_low - 0.05, 1.05)
    axes.set_ylim(y_low - 0.05 * (1 - y_low), 1 + 0.06 * (1 - y_low))
    scale = size[0] / (1.1 - x_low), size[1] / (1.11 * (1 - y_low))
    begin = max(axes.get_xlim()[0], axes.get_ylim()[0])
    axes.plot([begin, 1], [begin, 1], color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    corner: dict[str, Any] = {
        "ha": "right",
        "va": "bottom",
        "fontsize": 7.5,
        "color": "0.35",
        "transform": axes.transAxes,
    }
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(0.99, 0.02, "below the dotted line:\narbitrary links more than true ones", bbox=paper, **corner)
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    if y_low <= 0:
        axes.axhline(0, color="black", linewidth=0.8, zorder=0)
    places = _apart([(mark.x.value, mark.y.value) for mark in marks], scale, x_low)
    for mark, place in zip(marks, places, strict=True):
        _draw(axes, mark, place)
    moved = any(place[0] != mark.x.value for mark, place in zip(marks, places, strict=True))
    note = "\n(overlapping marks are moved sideways; a dot is the true position)" * moved
    axes.set_xlabel(f"unwanted: OCR score over arbitrary links{note}")
    axes.set_ylabel(f"wanted: OCR score over true links\n({scoring})")
    axes.set_title("Wanted against unwanted inference", fontsize=10)
    bare(axes)


def _draw(axes: Axes, mark: Mark, place: Point) -> None:
    look, at = mark.look, (mark.x.value, mark.y.value)
    bar: dict[str, Any] = {"color": look.color, "linewidth": 1.1, "alpha": 0.6, "zorder": 1}
    if mark.x.bounds:
        axes.plot(mark.x.bounds, [at[1]] * 2, **bar)
    if mark.y.bounds:
        axes.plot([at[0]] * 2, mark.y.bounds, **bar)
    style: dict[str, Any] = {"color": look.color, "zorder": 3}
    axes.plot(*place, look.marker, markersize=8, markerfacecolor=look.face(mark.unlearned), **style)
    if place != at:
        axes.plot(*zip(place, at, strict=True), color="black", linewidth=0.8, zorder=4)
        axes.plot([at[0]] * 2, [at[1]] * 2, "o", color="black", markersize=3, markeredgecolor="white", zorder=5)
    for lacking in (False, True):
        points = [point for point, unlearned in mark.seeds if unlearned == lacking]
        if points and len(mark.seeds) > 1:
            edge = look.color if lacking else "white"
            small: dict[str, Any] = {"markersize": 4.5, "markeredgewidth": 0.6, "zorder": 4}
            filled = look.face(lacking)
            axes.plot(*zip(*points, strict=True), look.marker, markerfacecolor=filled, markeredgecolor=edge, **small)


def _low(estimates: Sequence[Estimate], seeds: Sequence[float], least: float) -> float:
    """Where an axis begins: below everything drawn, except intervals that extend far below all marks."""
    bounds = [max(e.bounds[0], _LOWEST) for e in estimates if e.bounds]
    lowest = min(*(e.value for e in estimates), *bounds, *seeds, 1 - least)
    return min(lowest, 0.0) if lowest < 0.4 else lowest


def _apart(points: Sequence[Point], scale: Point, lowest: float) -> list[Point]:
    """The place of each mark: its own or, if an earlier mark is there, the nearest free one to the left or right."""
    taken: list[Point] = []
    for x, y in points:
        aside = (x + sign * i * _STEP / scale[0] for i in range(1, round(1 / _STEP)) for sign in (1, -1))
        choices = (x, *(other for other in aside if lowest <= other <= 1))
        free = (other for other in choices if not any(_hides((other, y), place, scale) for place in taken))
        taken.append((next(free, x), y))
    return taken


def _hides(a: Point, b: Point, scale: Point) -> bool:
    return math.hypot((a[0] - b[0]) * scale[0], (a[1] - b[1]) * scale[1]) < _MARK
