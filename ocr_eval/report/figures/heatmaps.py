"""Which wrong answers win: the probability of each candidate, averaged over the test subjects of each group."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ocr_eval.analysis.candidate_heat import Heat
from ocr_eval.report.figures.style import panels, tick, title
from ocr_eval.specs.run import Scoring


def heatmap_figure(heats: Mapping[str, Heat], scoring: Scoring) -> Figure:
    """One panel per run: rows are groups, columns are candidates, and the right one is framed.

    ``heats`` maps panel titles to heats; at least one.
    """
    most = max(len(heat.candidates) for heat in heats.values())
    groups = max(len(heat.groups) for heat in heats.values())
    figure, grid = panels(len(heats), 2, (0.36 * most + 1.3, 0.34 * groups + 1.8))
    for axes, (name, heat) in zip(grid, heats.items(), strict=True):
        image = axes.imshow(heat.probability, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, target in enumerate(heat.target):
            at = target - 0.46, row - 0.44
            axes.add_patch(Rectangle(at, 0.92, 0.88, fill=False, edgecolor="#D55E00", linewidth=1.6))
        for (row, column), value in np.ndenumerate(heat.probability):
            if value >= 0.10:
                text, color = "1" if value >= 0.95 else f"{value:.1f}"[1:], "white" if value > 0.55 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(heat.candidates)), map(tick, heat.candidates), rotation=55, ha="right", fontsize=8)
        axes.set_yticks(range(len(heat.groups)), map(tick, heat.groups), fontsize=8)
        axes.axvline(heat.in_use - 0.5, color="0.4", linewidth=1, linestyle=":")
        axes.set_title(title(name), fontsize=9)
    figure.supylabel("taught fact of the group", fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=1.0 if len(heats) < 3 else 0.5)
    bar.set_label(f"probability among\ncandidates ({scoring})", fontsize=8)
    return figure
