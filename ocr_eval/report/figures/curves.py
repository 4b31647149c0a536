"""Learning curves over epochs, and the sample-efficiency curve over m_train."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ocr_eval.analysis.table import make_cells
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association, group_rows
from ocr_eval.report.chart import Curve
from ocr_eval.report.figures.rows import counted, in_words, looks
from ocr_eval.report.figures.style import (
    LEGEND_ROWS,
    bare,
    drawn,
    entry,
    figure_of_rows,
    legend_of_rows,
    panels,
    tick,
    whole_ticks,
)
from ocr_eval.specs.run import Scoring


def curve_figure(curves: Sequence[Curve], scoring: Scoring) -> Figure:
    """Mean rank over epochs, with a panel per curve (at least one): of the finding, and of all that was taught
    together. Bands extend from the lowest run and quantity to the highest.

    The dashed grey line is the null rank of the finding, the dotted one chance: the mean rank of an answer drawn from
    all candidates.
    """
    columns = min(3, len(curves))
    figure, grid = panels(len(curves), columns, (2.5, 2.3), (0.6, 0.6), share_y=True)
    for axes, curve in zip(grid, curves, strict=True):
        _curve_panel(axes, curve)
        axes.set_title(f"{tick(curve.record.association)} ({counted(curve.seeds)})", fontsize=9)
        axes.set_xlabel("epoch")
        whole_ticks(axes)
        bare(axes)
    for axes in grid[::columns]:
        axes.set_ylabel(f"mean rank ({scoring}),\n0 is perfect")
    legends = (axes.get_legend_handles_labels() for axes in grid)
    entries = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    ncols = (1, 2, 5)[columns - 1]
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols, fontsize=8, frameon=False)
    return figure


def chance_rank(record: Record) -> float | None:
    """Mean rank of an answer drawn from all candidates; None if a record does not state how many there are."""
    if record.structure != "pairs":
        return None
    candidates = {"in-use": record.data.n, "ten": max(10, record.data.n)}.get(record.data.candidates)
    return None if candidates is None else (candidates - 1) / 2


def _curve_panel(axes: Axes, curve: Curve) -> None:
    roles = {quantity.name: quantity.role for quantity in curve.record.quantities}
    taught = [name for name in curve.ranks if roles.get(name) == "premise"]
    if taught:
        epochs = sorted(set.intersection(*(set(curve.ranks[name]) for name in taught)))
        means = [fmean(curve.ranks[name][epoch] for name in taught) for epoch in epochs]
        ends = [[curve.ranges[name][epoch] for name in taught] for epoch in epochs]
        band = [(min(low for low, _ in of), max(high for _, high in of)) for of in ends]
        axes.plot(epochs, means, "--", color="#0072B2", linewidth=1.6, label="what was taught")
        _band(axes, epochs, band, "#0072B2")
    for look in drawn(curve.record.quantities):
        points = curve.ranks.get(look.name, {})
        if points and look.name not in taught:
            axes.plot(*_xy(points), look.line, color=look.color, linewidth=look.width, label=look.label)
            _band(axes, list(points), list(curve.ranges[look.name].values()), look.color)
    axes.plot(*_xy(curve.nulls), color="0.35", linewidth=1.2, linestyle=(0, (6, 3)), label="null of held-out")
    chance = chance_rank(curve.record)
    if chance is not None:
        axes.axhline(chance, color="0.55", linewidth=1, linestyle=(0, (1, 2)), label="chance")
    if curve.seeds > 1:
        axes.fill_between([], [], [], color="0.7", linewidth=0, label="bands: all seeds")


def _xy(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _band(axes: Axes, epochs: Sequence[int], ends: Sequence[tuple[float, float]], color: str) -> None:
    axes.fill_between(epochs, [low for low, _ in ends], [high for _, high in ends], color=color, alpha=0.2, linewidth=0)


def efficiency_figure(records: Sequence[Record], scoring: Scoring) -> Figure | None:
    """OCR score over m_train with its 95 % interval: a line per association and setting, with hollow markers if a run
    did not learn what it was taught.

    For orientation only, it also shows min(1, sqrt(m_train / m_test)), the held-out margin of the symbolic model.
    None if no runs differ only in m_train.
    """
    lines = []
    real = [record for record in records if record.data.variant == "real"]
    if len({record.data.m_train for record in real}) < 2:
        return None
    for key, alike in group_rows(real, but=("m_train",)).items():
        for name, runs in by_association(alike).items():
            by_size: dict[int, list[Record]] = defaultdict(list)
            for run in runs:
                by_size[run.data.m_train].append(run)
            if len(by_size) > 1:
                lines.append((f"{name}: {key.name}", dict(sorted(by_size.items()))))
    if not lines:
        return None
    cells = iter(make_cells([runs for _, by_size in lines for runs in by_size.values()], scoring))
    figure, axes = figure_of_rows(6.0, 3.6, len(lines))
    step = 0.015 * max(size for _, by_size in lines for size in by_size)
    look_of = looks(name for name, _ in lines)
    for i, (name, by_size) in enumerate(lines):
        look = look_of[name]
        sizes, found = list(by_size), [next(cells) for _ in by_size]
        scores = [cell.values["ocr-score"] for cell in found]
        label = entry(in_words(name)) if i < LEGEND_ROWS else None
        axes.plot(sizes, scores, marker=look.marker, color=look.color, linewidth=1.6, label=label)
        for size, score, cell in zip(sizes, scores, found, strict=True):
            if "ocr-score" in cell.bounds:
                at = size + step * (i - (len(lines) - 1) / 2)  # intervals side by side
                axes.plot([at, at], cell.bounds["ocr-score"], color=look.color, linewidth=1.6, alpha=0.6)
            if cell.unlearned:
                axes.plot(size, score, look.marker, color=look.color, markerfacecolor=look.face(True))
    of_lines = [run for _, by_size in lines for runs in by_size.values() for run in runs]
    for m_test in sorted({run.data.m_test for run in of_lines}):
        most = max(run.data.m_train for run in of_lines)
        x = np.linspace(0, most, 200)
        y = np.minimum(1, np.sqrt(x / m_test))
        axes.plot(x, y, color="0.35", linewidth=1, linestyle=(0, (6, 3)), label=f"min(1, sqrt(m_train / {m_test}))")
    axes.axhline(0, color="black", linewidth=1)
    whole_ticks(axes)
    axes.set_xlabel("m_train: subjects per group whose entailment is taught")
    axes.set_ylabel(f"OCR score ({scoring})")
    legend_of_rows(figure, len(lines), not all(run.premises_hold for run in of_lines))
    return figure
