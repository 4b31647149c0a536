"""Records -> figures: OCR score by association, and learning curves. Readable in print and by the colour-blind.

Colours are those of Okabe and Ito; every series also has a marker or line style of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ocr_eval.records import Quantity, Record
from ocr_eval.runs import prepare_output
from ocr_eval.specs import Scoring
from ocr_eval.table import Table, column_order

#: One colour and marker a model row.
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))

#: One colour and line style a quantity; the finding is drawn last and thickest.
QUANTITY_STYLES: dict[Quantity, tuple[str, str, str]] = {
    "train_fact": ("train facts", "#009E73", ":"),
    "test_fact": ("test facts", "#56B4E9", "--"),
    "train_entailment": ("train entailments", "#E69F00", "-."),
    "test_entailment": ("held-out entailments", "#D55E00", "-"),
}


def score_figure(table: Table) -> Figure:
    """OCR score of each association with its 95 % interval, a marker for each row of the table.

    Raises:
        ValueError: the table has no row of the project's own.
    """
    rows = [row for row in table.rows if not row.published]
    if not rows:
        raise ValueError("no runs to draw")
    names = [name for name in table.associations if any(name in row.cells for row in rows)]
    figure, axes = plt.subplots(figsize=(7.0, 3.4), layout="constrained")
    for i, row in enumerate(rows):
        color, marker = SERIES[i % len(SERIES)]
        offset = (i - (len(rows) - 1) / 2) * 0.12
        for name, cell in row.cells.items():
            assert cell.interval is not None
            assert cell.ocr_score is not None
            x = names.index(name) + offset
            axes.plot([x, x], cell.interval, color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(x, cell.ocr_score, marker, color=color, markersize=7)
        axes.plot([], [], marker, color=color, markersize=7, label=f"{row.model}, {row.setting}")
    axes.axhline(0, color="black", linewidth=1)
    axes.text(len(names) - 0.52, 0.02, "null", ha="right", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel(f"OCR score ({table.scoring})")
    axes.set_title("Held-out entailments inferred: 0 nothing transferred, 1 always", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curve_figure(runs: Sequence[tuple[Record, Sequence[Mapping[str, Any]]]], scoring: Scoring) -> Figure:
    """Mean rank over epochs of the four quantities, a panel an association, averaged over seeds.

    The dashed grey line is the null rank of the held-out entailments.

    Args:
        runs: records with the lines of their metrics.jsonl, all of one model and setting.
        scoring: which scoring.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("no runs to draw")
    metrics_of: dict[str, list[Sequence[Mapping[str, Any]]]] = defaultdict(list)
    for record, lines in runs:
        metrics_of[record.association].append(lines)
    names = column_order(metrics_of)
    count = len(names)
    figure, panels = plt.subplots(
        1, count, figsize=(2.5 * count + 0.6, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, name in zip(panels[0], names, strict=True):
        seeds = len(metrics_of[name])
        _curve_panel(axes, metrics_of[name], scoring)
        axes.set_title(f"{name} ({seeds} seed{'s'[: seeds > 1]})", fontsize=9)
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel(f"mean rank ({scoring}), 0 is perfect")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, count + 1), fontsize=8, frameon=False)
    return figure


def _curve_panel(axes: Axes, metrics: Sequence[Sequence[Mapping[str, Any]]], scoring: Scoring) -> None:
    def series(quantity: Quantity, key: str) -> tuple[list[int], list[float]]:
        values: dict[int, list[float]] = defaultdict(list)
        for lines in metrics:
            for line in lines:
                score = line.get("scores", {}).get(scoring, {}).get(quantity)
                if score is not None:
                    values[line["epoch"]].append(score[key])
        epochs = sorted(values)
        return epochs, [float(np.mean(values[epoch])) for epoch in epochs]

    for quantity, (label, color, style) in QUANTITY_STYLES.items():
        width = 2.4 if quantity == "test_entailment" else 1.4
        axes.plot(*series(quantity, "mean_rank"), linestyle=style, color=color, linewidth=width, label=label)
    null = series("test_entailment", "null_rank")
    axes.plot(*null, color="0.45", linewidth=1.2, linestyle=(0, (6, 3)), label="null of held-out")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG, PDF and SVG and close it; returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    prepare_output(folder)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "pdf", "svg")]
    matplotlib.rcParams["svg.hashsalt"] = name
    for path in paths:
        partial = path.with_name(f".{path.name}.partial")
        metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[path.suffix[1:]]
        figure.savefig(partial, format=path.suffix[1:], dpi=160, metadata=metadata)
        partial.replace(path)
    plt.close(figure)
    return paths
