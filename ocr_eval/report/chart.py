"""Learning curves as text, for a terminal: mean rank and its null by epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TextIO

from ocr_eval.records.metrics import MetricsLine
from ocr_eval.specs.run import Scoring

Metrics = Sequence[MetricsLine]

#: A mark for each curve and one for its null; what joins marks; the frame.
_Glyphs = tuple[tuple[str, str], str, str]
_UNICODE: _Glyphs = ("●■", "○□"), "·", "│└─"
_ASCII: _Glyphs = ("OX", "ox"), ".", "|+-"
_COLORS = (34, 33)
_WIDTH, _ROWS = 60, 13


@dataclass(frozen=True)
class Curve:
    """Mean rank and null rank by epoch, and the OCR score at the end, under a name."""

    name: str
    ranks: Mapping[int, float]
    nulls: Mapping[int, float]
    score: float

    @classmethod
    def of(cls, name: str, metrics: Sequence[Metrics], scoring: Scoring, finding: str) -> Curve:
        """The quantity that is the finding, of runs that differ in the seed alone, averaged."""
        ranks, nulls = (mean_points(metrics, scoring, finding, key) for key in ("mean_rank", "null_rank"))
        ends = [lines[-1].held_out for lines in metrics]
        scores = [held_out[scoring].ocr_score for held_out in ends if held_out is not None]
        return cls(name, ranks, nulls, sum(scores) / len(scores))


def mean_points(metrics: Sequence[Metrics], scoring: Scoring, quantity: str, key: str) -> dict[int, float]:
    """A statistic of a quantity by epoch, averaged over runs, at the epochs at which all of them were scored."""
    of_runs = []
    for lines in metrics:
        scores = {line.epoch: line.of(scoring).get(quantity) for line in lines}
        of_runs.append({epoch: float(getattr(score, key)) for epoch, score in scores.items() if score is not None})
    return {e: sum(run[e] for run in of_runs) / len(of_runs) for e in sorted(set.intersection(*map(set, of_runs)))}


def charts(curves: Sequence[Curve], stream: TextIO) -> str:
    """A chart for every two curves, as the stream can show it: in Unicode or ASCII, and in colour on a terminal.

    NO_COLOR is honoured.
    """
    try:
        "●■○□·│└─".encode(stream.encoding or "ascii")
        glyphs = _UNICODE
    except UnicodeEncodeError:
        glyphs = _ASCII
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    pairs = [curves[i : i + 2] for i in range(0, len(curves), 2)]
    return "\n\n".join("\n".join(_chart(pair, glyphs, color)) for pair in pairs)


def _chart(curves: Sequence[Curve], glyphs: _Glyphs, color: bool) -> Iterator[str]:
    (marks, hollow), dot, frame = glyphs
    last = max(1, *(epoch for curve in curves for epoch in curve.ranks))
    top = max(1.0, *(rank for curve in curves for rank in (*curve.ranks.values(), *curve.nulls.values())))
    cells: dict[tuple[int, int], str] = {}

    def paint(mark: str, i: int) -> str:
        return f"\x1b[{_COLORS[i]}m{mark}\x1b[0m" if color else mark

    def places(points: Mapping[int, float]) -> list[tuple[int, int]]:
        return [(round(x / last * (_WIDTH - 1)), round(y / top * (_ROWS - 1))) for x, y in points.items()]

    for i, curve in enumerate(curves):
        at = places(curve.ranks)
        for (x, y), (to_x, to_y) in pairwise(at):
            steps = max(to_x - x, abs(to_y - y), 1)
            between = ((round(x + (to_x - x) * k / steps), round(y + (to_y - y) * k / steps)) for k in range(steps))
            cells |= dict.fromkeys(between, paint(dot, i))
    for i, curve in enumerate(curves):
        cells |= dict.fromkeys(places(curve.nulls), paint(hollow[i], i))
    for i, curve in enumerate(curves):
        cells |= dict.fromkeys(places(curve.ranks), paint(marks[i], i))
    for y in reversed(range(_ROWS)):
        tick = f"{y * top / (_ROWS - 1):.1f}" if y % 3 == 0 else ""
        yield f"{tick:>5} {frame[0]}{''.join(cells.get((x, y), ' ') for x in range(_WIDTH))}".rstrip()
    yield f"{'':5} {frame[1]}{frame[2] * _WIDTH}"
    yield f"{'':7}0{'epoch':^{_WIDTH - 1 - len(str(last))}}{last}"
    for i, curve in enumerate(curves):
        rank, null = list(curve.ranks.values())[-1], list(curve.nulls.values())[-1]
        yield (
            f"{'':7}{paint(marks[i], i)} {curve.name}: mean rank {rank:.2f}   "
            f"{paint(hollow[i], i)} its null {null:.2f}   OCR score {curve.score:+.2f}"
        )
