"""The pictures of ``inside_page.py``."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ocr_eval.report.figures.style import COLORS, bare

#: The trainings, in the order in which they are shown.
VARIANTS = ("real", "no-entailment", "shuffled")


def blocks_picture(matrices: dict[str, np.ndarray]) -> Figure:
    """Cosines of facts and entailments, a panel for each name."""
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    for panel, (name, matrix) in zip(figure.subplots(1, len(matrices)), matrices.items(), strict=True):
        image = panel.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        panel.set_title(name.replace("model, ", "model,\n"), fontsize=9)
        panel.set(xticks=[], yticks=[])
        panel.set_xlabel("entailment", fontsize=9)
    figure.axes[0].set_ylabel("fact", fontsize=9)
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="cosine")
    return figure


def picture(of: pd.DataFrame) -> Figure:
    """Rank and sharing after each training, and the layers in which answers appear; a dot is a seed."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    colors = dict(zip(sorted(set(of["association"])), COLORS, strict=False))
    names = {"real": "pairs", "no-entailment": "facts alone", "shuffled": "shuffled"}
    axes = figure.subplots(1, 3)
    for panel, (column, title, up) in zip(
        axes,
        [
            ("effective rank", "The rank does not fall\nwhere the model infers", "effective rank of dW_OV"),
            ("sharing", "A fact and its entailment share\nslightly more than in the controls", "excess cosine"),
        ],
        strict=False,
    ):
        for (association, variant), cell in of.groupby(["association", "variant"], observed=True):
            at = VARIANTS.index(variant) + 0.12 * (sorted(colors).index(association) - 2)
            panel.plot([at] * len(cell), cell[column], "o", markersize=4, color=colors[association])
        panel.set_xticks(range(len(VARIANTS)), [names[variant] for variant in VARIANTS])
        panel.set_title(title, fontsize=9)
        panel.set_ylabel(up)
    axes[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
    real = of[of["variant"] == "real"]
    for association, cell in real.groupby("association"):
        at = sorted(colors).index(association)
        axes[2].plot([at - 0.12] * len(cell), cell["fact layer"], "o", markersize=4, color=colors[association])
        entailment = cell["entailment layer"]
        axes[2].plot([at + 0.12] * len(cell), entailment, "s", markersize=4, color=colors[association], mfc="white")
    axes[2].plot([], [], "o", color="0.3", markersize=4, label="fact")
    axes[2].plot([], [], "s", color="0.3", markersize=4, mfc="white", label="entailment")
    axes[2].legend(fontsize=8, frameon=False, loc="lower left")
    axes[2].set_xticks([])
    axes[2].set_title("False and arbitrary entailments\nappear in the last layers", fontsize=9)
    axes[2].set_ylabel("first layer above the null")
    for panel in axes:
        bare(panel)
    dots = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colors[name], label=name) for name in colors]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=8, frameon=False)
    return figure
