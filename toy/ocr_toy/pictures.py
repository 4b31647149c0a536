"""The pictures of `toy mitigate`, `toy complete` and `toy systems`, each drawn from its report's data alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ocr_toy import mitigation, theory
from ocr_toy.remedies import DECAY_TASK
from ocr_toy.report import Report

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#000000"


def _points(axes: Axes, rows: list[dict[str, Any]], label: str = "runs", **how: Any) -> None:
    """Each row's runs as circles over its value, and its prediction as a bar."""
    for i, row in enumerate(rows):
        x = [row["value"]] * len(row["measured"])
        style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "color": BLUE} | how
        axes.plot(x, row["measured"], label=label if i == 0 else None, **style)
        predicted = "predicted at the run's loss" if i == 0 else None
        axes.plot(x[:1], [row["predicted"]], linestyle="none", marker="_", markersize=14, color=BLACK, label=predicted)


def _decay(axes: Axes, rows: list[dict[str, Any]]) -> None:
    both = [row for row in rows if row["method"].startswith("decay on") and row["how"] == "L-BFGS"]
    shown = [row | {"value": max(row["value"], 1e-3)} for row in both]
    dense = np.geomspace(1e-3, 1, 13)
    for factors, style in ((1e-3, "-"), (1e-4, "--")):
        curve = [mitigation.decayed(DECAY_TASK, factors, factors * ratio).transfer for ratio in dense]
        axes.plot(dense, curve, color=GREY, linestyle=style, label=f"convex problem, factors {factors:g}")
    _points(axes, shown)
    axes.set(
        xscale="log",
        ylim=(0, None),
        xlabel="product decay / factor decay (left end: none)",
        title="decay on both",
    )


def _product(axes: Axes, rows: list[dict[str, Any]]) -> None:
    product = [row for row in rows if row["method"] == "decay on the product"]
    cost = [np.mean(row["cost_measured"]) for row in product]
    dense = [row["cost_predicted"] for row in product]
    axes.plot(dense, [0.0] * len(dense), color=BLACK, label="predicted")
    axes.plot(
        cost, [np.mean(row["measured"]) for row in product], "o", markerfacecolor="none", color=BLUE, label="runs"
    )
    axes.set(xscale="log", xlabel="worst train loss (nats)", title="decay on the product, 1e-7 to 1e-3")


def _schatten(axes: Axes, rows: list[dict[str, Any]]) -> None:
    dense = np.linspace(0.02, 1, 60)  # 1 / p
    axes.plot(
        dense, [mitigation.schatten_transfer(1, 3, 1 / q) for q in dense], color=GREY, label="least Schatten norm"
    )
    _points(axes, [row for row in rows if row["method"] == "Schatten norm"])
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set(xlabel="1 / p (0 spectral, 1 nuclear, 1.5 depth 3)", title="Schatten norm, (3, 1, 3)")


def _curve(axes: Axes, rows: list[dict[str, Any]], method: str, x: np.ndarray, y: list[float], xlabel: str) -> None:
    axes.plot(x, y, color=GREY, label="closed form, loss to 0")
    _points(axes, [row for row in rows if row["method"] == method])
    axes.set(xlabel=xlabel, title=method)


def mitigations(report: Report) -> Figure:
    """Transfer against the strength of each mitigation; the last panel is what it costs in nuclear norm."""
    rows = report.data["rows"]
    figure = Figure(figsize=(10.5, 6.2))
    grid = figure.subplots(2, 3).ravel()
    _decay(grid[0], rows)
    _product(grid[1], rows)
    _schatten(grid[2], rows)
    share = np.linspace(0.001, 0.6, 60)
    noisy = [mitigation.noisy_transfer(3, 8, 3, s) for s in share]
    _curve(grid[3], rows, "label noise", share, noisy, "share of contradicting entailments")
    per = np.linspace(0.05, 2, 60)
    abstaining = [mitigation.abstaining_transfer(2, 3, 2 * s) for s in per]
    _curve(grid[4], rows, "abstaining", per, abstaining, "abstaining per entailing subject")
    for m_train, colour in ((1, BLUE), (2, GREEN), (3, ORANGE)):
        x = np.linspace(-0.3, 1, 60)
        norm = theory.optimal_norm("factorized", 20, m_train, 3)
        cost = [100 * mitigation.price(20, m_train, 3, value) / norm for value in x]
        grid[5].plot(x, cost, color=colour, label=f"m_train = {m_train}, m_test = 3")
    grid[5].set(xlabel="held-out margin x", ylabel="extra nuclear norm (%)", title="the price of a margin, n = 20")
    for axes in grid:
        axes.title.set_fontsize(10)
        axes.legend(fontsize=7)
    for axes in grid[:5]:
        axes.set_ylabel("transfer x2 / x1", fontsize=9)
    return figure


PICTURES: dict[str, Callable[[Report], Figure]] = {"mitigate": mitigations}
"""Name of a report and what draws it."""
FILES = {"mitigate": "mitigation"}
"""File stem of each picture."""
