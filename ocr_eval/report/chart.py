"""Learning curves as text, for a terminal: mean rank and its null by epoch."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import TextIO

from ocr_eval.data.task import the_finding
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.records.record import Record
from ocr_eval.specs.run import Scoring

Metrics = Sequence[MetricsLine]

#: A mark for each curve and for its null; the character that joins marks; the frame.
_Glyphs = tuple[tuple[str, str], str, str]
_UNICODE: _Glyphs = ("●■", "○□"), "·", "│└─"
_ASCII: _Glyphs = ("OX", "ox"), ".", "|+-"
_COLORS = (34, 33)
_WIDTH, _ROWS = 60, 13


@dataclass(frozen=True)
class Curve:
    """The learning curve of runs that differ only in their seeds, averaged over them.

    Attributes:
        record: of the first run, for what all runs share.
        ranks: mean rank by quantity and epoch, at the epochs at which all runs were scored.
        nulls: null rank of the finding by epoch.
        score: OCR score after the last epoch.
        ranges: lowest and highest mean rank of any run, by quantity and epoch.
    """

    record: Record
    seeds: int
    ranks: Mapping[str, Mapping[int, float]]
    nulls: Mapping[int, float]
    score: float
    ranges: Mapping[str, Mapping[int, tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Iterable[tuple[Record, Metrics]], scoring: Scoring) -> Curve | None:
        """The curve of some runs, whose metrics are read one run at a time; None if there are no runs."""
        records: list[Record] = []
        ranks: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        nulls: dict[int, list[float]] = defaultdict(list)
        for record, lines in runs:
            records.append(record)
            finding = the_finding(record.quantities).name
            for line in lines:
                for name, score in line.of(scoring).items():
                    ranks[name][line.epoch].append(score.mean_rank)
                    if name == finding:
                        nulls[line.epoch].append(score.null_rank)
        if not records:
            return None
        n = len(records)
        whole = {name: {epoch: of for epoch, of in by.items() if len(of) == n} for name, by in ranks.items()}
        return cls(
            records[0],
            len({record.seed for record in records}),
            {name: {epoch: fmean(of) for epoch, of in by.items()} for name, by in whole.items()},
            {epoch: fmean(of) for epoch, of in nulls.items() if len(of) == n},
            fmean(record.held_out[scoring].ocr_score for record in records),
            {name: {epoch: (min(of), max(of)) for epoch, of in by.items()} for name, by in whole.items()},
        )

    @property
    def finding(self) -> str:
        """The name of the quantity that is the finding."""
        return the_finding(self.record.quantities).name

    @property
    def points(self) -> Mapping[int, float]:
        """Mean rank of the finding by epoch."""
        return self.ranks[self.finding]


def charts(curves: Sequence[Curve], stream: TextIO) -> str:
    """A chart per two curves, in Unicode or ASCII depending on the stream, and in colour on a terminal.

    Respects NO_COLOR.
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
    last = max(1, *(epoch for curve in curves for epoch in curve.points))
    top = max(1.0, *(rank for curve in curves for rank in (*curve.points.values(), *curve.nulls.values())))
    cells: dict[tuple[int, int], str] = {}

    def paint(mark: str, i: int) -> str:
        return f"\x1b[{_COLORS[i]}m{mark}\x1b[0m" if color else mark

    def places(points: Mapping[int, float]) -> list[tuple[int, int]]:
        return [(round(x / last * (_WIDTH - 1)), round(y / top * (_ROWS - 1))) for x, y in points.items()]

    for i, curve in enumerate(curves):
        at = places(curve.points)
        for (x, y), (to_x, to_y) in pairwise(at):
            steps = max(to_x - x, abs(to_y - y), 1)
            between = ((round(x + (to_x - x) * k / steps), round(y + (to_y - y) * k / steps)) for k in range(steps))
            cells |= dict.fromkeys(between, paint(dot, i))
    for i, curve in enumerate(curves):
        cells |= dict.fromkeys(places(curve.nulls), paint(hollow[i], i))
    for i, curve in enumerate(curves):
        cells |= dict.fromkeys(places(curve.points), paint(marks[i], i))
    for y in reversed(range(_ROWS)):
        tick = f"{y * top / (_ROWS - 1):.1f}" if y % 3 == 0 else ""
        yield f"{tick:>5} {frame[0]}{''.join(cells.get((x, y), ' ') for x in range(_WIDTH))}".rstrip()
    yield f"{'':5} {frame[1]}{frame[2] * _WIDTH}"
    yield f"{'':7}0{'epoch':^{_WIDTH - 1 - len(str(last))}}{last}"
    for i, curve in enumerate(curves):
        rank, null = list(curve.points.values())[-1], list(curve.nulls.values())[-1]
        yield (
            f"{'':7}{paint(marks[i], i)} {curve.record.association}: mean rank {rank:.2f}   "
            f"{paint(hollow[i], i)} its null {null:.2f}   OCR score {curve.score:+.2f}"
        )
