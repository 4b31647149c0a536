"""The pictures of `toy mitigate`, `toy complete` and `toy systems`, each drawn only from its report's data."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ocr_toy import mitigation, theory
from ocr_toy.remedies import DECAY_TASK
from ocr_toy.report import Report

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#000000"


def _circles(axes: Axes, x: Any, y: Any, label: str | None = None, colour: str = BLUE, **how: Any) -> None:
    """Runs, as circles."""
    axes.plot(x, y, "o", color=colour, markerfacecolor="none", label=label, **how)


def _points(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Each row's runs as circles at its value, and its prediction as a bar."""
    for i, row in enumerate(rows):
        x = [row["value"]] * len(row["measured"])
        _circles(axes, x, row["measured"], None if i else "runs")
        predicted = "predicted at the run's loss" if i == 0 else None
        axes.plot(x[:1], [row["predicted"]], "_", markersize=14, color=BLACK, label=predicted)


def _decay(axes: Axes, rows: list[dict[str, Any]]) -> None:
    both = [row for row in rows if row["method"].startswith("decay on") and row["how"] == "L-BFGS"]
    shown = [row | {"value": max(row["value"], 1e-3)} for row in both]
    dense = np.geomspace(1e-3, 1, 13)
    for factors, style in ((1e-3, "-"), (1e-4, "--")):
        curve = [mitigation.decayed(DECAY_TASK, factors, factors * ratio).transfer for ratio in dense]
        axes.plot(dense, curve, color=GREY, linestyle=style, label=f"convex problem, factors {factors:g}")
    _points(axes, shown)
    axes.set(xscale="log", ylim=(0, None), xlabel="product decay / factor decay (left end: none)")
    axes.set_title("decay on both")


def _product(axes: Axes, rows: list[dict[str, Any]]) -> None:
    product = [row for row in rows if row["method"] == "decay on the product"]
    cost = [np.mean(row["cost_measured"]) for row in product]
    dense = [row["cost_predicted"] for row in product]
    axes.plot(dense, [0.0] * len(dense), color=BLACK, label="predicted at the run's loss")
    _circles(axes, cost, [np.mean(row["measured"]) for row in product], "runs")
    axes.set(xscale="log", xlabel="worst train loss (nats)", title="decay on the product, 1e-7 to 1e-3")


def _schatten(axes: Axes, rows: list[dict[str, Any]]) -> None:
    dense = np.linspace(0.02, 1, 60)  # 1 / p
    axes.plot(dense, [mitigation.schatten_transfer(1, 3, 1 / q) for q in dense], color=GREY, label="theory, loss to 0")
    _points(axes, [row for row in rows if row["method"] == "Schatten norm"])
    axes.axhline(0, color=BLACK, linewidth=0.6)
    axes.set(xlabel="1 / p (0 spectral, 1 nuclear, 1.5 depth 3)", title="Schatten norm, (3, 1, 3)")


def _curve(axes: Axes, rows: list[dict[str, Any]], method: str, x: np.ndarray, y: list[float], xlabel: str) -> None:
    axes.plot(x, y, color=GREY, label="theory, loss to 0")
    _points(axes, [row for row in rows if row["method"] == method])
    axes.set(xlabel=xlabel, title=method)


def mitigations(report: Report) -> Figure:
    """Transfer against the strength of each mitigation, one panel each."""
    rows = report.data["rows"]
    figure = Figure(figsize=(10.5, 6.2))
    *grid, last = figure.subplots(2, 3).ravel()
    _decay(grid[0], rows)
    _product(grid[1], rows)
    _schatten(grid[2], rows)
    share = np.linspace(0.001, 0.6, 60)
    noisy = [mitigation.noisy_transfer(3, 8, 3, s) for s in share]
    _curve(grid[3], rows, "label noise", share, noisy, "share of contradicting entailments")
    per = np.linspace(0.05, 2, 60)
    abstaining = [mitigation.abstaining_transfer(2, 3, 2 * s) for s in per]
    _curve(grid[4], rows, "abstaining", per, abstaining, "abstaining per entailing subject")
    for axes in grid:
        axes.title.set_fontsize(10)
        axes.set_ylabel("transfer x2 / x1", fontsize=9)
    entries = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    last.set_axis_off()
    last.legend(entries.values(), entries.keys(), fontsize=9, loc="center")
    return figure


def completions(report: Report) -> Figure:
    """Margins of the asked questions over all answers: optimum as bars, descent as points."""
    rows = report.data["rows"]
    figure = Figure(figsize=(9.5, 4.8))
    for axes, names in zip(figure.subplots(1, 2, sharey=True), (("reasoning", "reversal"), ("two-hop",)), strict=True):
        shown = [row for row in rows if row["system"] in names]
        for shift, side, colour in ((-0.18, "factorized", BLUE), (0.18, "merged", ORANGE)):
            x = np.arange(len(shown)) + shift
            optimum = [row[side]["optimum"]["over_all"] for row in shown]
            inside = [row[side]["optimum"]["inside"] for row in shown]
            axes.bar(x, optimum, width=0.34, color=colour, alpha=0.35, label=f"{side}: optimum, over all answers")
            axes.plot(x, inside, "_", color=colour, markersize=12, label=f"{side}: optimum, inside the answer set")
            for seed in range(len(shown[0][side]["descent"])):
                points = [row[side]["descent"][seed]["over_all"] for row in shown]
                label = f"{side}: descent, over all" if seed == 0 else None
                _circles(axes, x, points, label, colour, markersize=4)
        axes.axhline(0, color=BLACK, linewidth=0.6)
        labels = [row["data"].replace(", ", "\n") for row in shown]
        axes.set_xticks(range(len(shown)), labels, rotation=60, fontsize=8)
        axes.set_title(" and ".join(names), fontsize=10)
    figure.axes[0].set_ylabel("margin of the asked answer / train margin")
    handles, entries = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, entries, fontsize=7, loc="outside lower center", ncols=3)
    return figure


def open_side(report: Report) -> Figure:
    """Transfer with a trained W_KQ against the interval of equal cost."""
    rows = [row for row in report.data["rows"] if row["param"] == "factorized"]
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        low, high = row["transfers"]
        axes.plot([low, high], [place, place], color=GREY, linewidth=6, alpha=0.5, solid_capstyle="butt")
        _circles(axes, row["measured_transfer"], [place] * len(row["measured_transfer"]))
        fixed = theory.held_out_margin("factorized", *row["sizes"][1:])
        axes.plot([fixed], [place], "|", color=BLACK, markersize=14)
    axes.set_yticks(range(len(rows)), [f"{tuple(row['sizes'])}, init {row['scale']:g}" for row in rows])
    axes.set_xlabel("transfer (grey: interval of equal cost; bar: attention fixed; circles: descent)", fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return figure


def in_context(report: Report) -> Figure:
    """Loss over steps, separate and merged, and the levels."""
    figure = Figure(figsize=(6, 3.4))
    axes = figure.add_subplot()
    for i, run in enumerate(report.data["separate"]):
        steps = 40 * np.arange(len(run["losses"])) + 1
        axes.plot(steps, run["losses"], color=BLUE, label="key and query apart" if i == 0 else None)
    merged = report.data["merged"]["losses"]
    axes.plot(np.arange(len(merged)) + 1, merged, color=ORANGE, label="merged")
    for i, level in enumerate(report.data["levels"]):
        axes.axhline(level, color=BLACK, linestyle=":", linewidth=0.8, label="levels of the theory" if i == 0 else None)
    axes.set(xscale="log", xlabel="step + 1", ylabel="mean squared error")
    axes.legend(fontsize=8, loc="center left")
    return figure


def stages(report: Report) -> Figure:
    """The published stages, and the held-out loss."""
    figure = Figure(figsize=(8.4, 3.3))
    left, right = figure.subplots(1, 2, sharey=True)
    records = report.data["published"]
    for key, colour in (("total", BLACK), ("relation", GREEN), ("subject", BLUE)):
        left.plot([r["step"] for r in records], [r[key] for r in records], color=colour, label=key)
    for name, colour in (("merged", ORANGE), ("factorized", BLUE)):
        run = report.data[name]
        right.plot([r["step"] for r in run], [r["held_out"] for r in run], color=colour, label=f"{name}, held out")
    for axes, title in ((left, "published stages"), (right, "a hold-out added here")):
        axes.axhline(np.log(8), color=GREY, linestyle=":", label="log 8")
        axes.set(xlabel="step", title=title)
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
    left.set_ylabel("loss (nats)")
    return figure


def scan_and_snap(report: Report) -> Figure:
    """Loss with the published log, and attention by token."""
    figure = Figure(figsize=(8.4, 3.3))
    left, right = figure.subplots(1, 2)
    left.plot(report.data["steps"], report.data["published"], "x", color=BLACK, label="published log")
    for i, run in enumerate(report.data["runs"]):
        steps = 2 * np.arange(len(run["losses"]))
        left.plot(steps[:20], run["losses"][:20], color=BLUE, linewidth=0.9, label="seeds" if i == 0 else None)
        right.plot(run["z"][0][:20], color=BLUE, linewidth=0.9, label="class 0, seeds" if i == 0 else None)
    left.set(yscale="log", xlabel="step", ylabel="loss (nats)")
    right.axvline(9.5, color=GREY, linestyle=":")
    right.axhline(0, color=BLACK, linewidth=0.6)
    right.set(xlabel="token: common | own, by frequency", ylabel="attention z")
    left.set_title("loss, and the published log", fontsize=10)
    right.set_title("attention after training", fontsize=10)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def grokking(report: Report) -> Figure:
    """eta mu t at generalization against log alpha, with lines of slope 1 through the means."""
    figure = Figure(figsize=(5, 3.4))
    axes = figure.add_subplot()
    for decay, colour in ((0.01, BLUE), (0.003, ORANGE)):
        runs = [r for r in report.data["runs"] if r["decay"] == decay and r["alpha"] > 1 and r["time"] is not None]
        x, y = np.log([r["alpha"] for r in runs]), np.array([r["time"] for r in runs])
        _circles(axes, x, y, f"decay {decay:g}", colour)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, ends + (y - x).mean(), color=colour, linestyle=":", label="slope 1")
    axes.set(xlabel="log alpha (scale of the start)", ylabel="rate x decay x step of generalization")
    axes.set_title("when runs generalize, by scale of the start", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def attention_svm(report: Report) -> Figure:
    """Each run's correlation with both optima."""
    figure = Figure(figsize=(4.2, 3.6))
    axes = figure.add_subplot()
    for name, colour in (("W", ORANGE), ("K Q^T", BLUE)):
        found = report.data[name]["correlations"]
        _circles(axes, found["frobenius"], found["nuclear"], f"trained: {name}", colour)
    axes.plot([0.75, 1], [0.75, 1], color=GREY, linestyle=":")
    axes.set(xlabel="correlation with the least Frobenius norm", ylabel="correlation with the least nuclear norm")
    axes.set_title("how near runs come to either optimum", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def reversal(report: Report) -> Figure:
    """Margins of untaught answers, in optima and runs; and probabilities of taught and untaught ones."""
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(report.data["margins"])
    for i, name in enumerate(names):
        found, colour = report.data["margins"][name], BLUE if "factorized" in name else ORANGE
        _circles(left, [i] * len(found["descent"]), found["descent"], colour=colour)
        left.plot(i, found["optimum"], "_", color=BLACK, markersize=22)
    left.axhline(0, color=BLACK, linewidth=0.6)
    left.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    left.set(ylabel="largest margin of an untaught answer", title="circles: descent; bars: optimum")
    left.set(xlim=(-0.5, len(names) - 0.5), ylim=(None, 0.1))
    for i, of in enumerate(report.data["probabilities"].values()):
        right.plot(i - 0.15, of["taught"], "o", color=GREEN, label=None if i else "taught, least")
        right.plot(i + 0.15, of["asked"], "o", color=BLUE, label=None if i else "untaught, most")
        bound = None if i else "bound, 1 / |V|"
        right.plot([i - 0.3, i + 0.3], [of["bound"]] * 2, color=BLACK, linestyle=":", label=bound)
    right.set_xticks([0, 1], list(report.data["probabilities"]))
    right.set(yscale="log", xlim=(-0.5, 1.5), ylabel="probability", title="one layer, zero start")
    right.legend(fontsize=8, loc="center left")
    for axes in (left, right):
        axes.title.set_fontsize(10)
    return figure


PICTURES: dict[str, Callable[[Report], Figure]] = {
    "mitigate": mitigations,
    "complete": completions,
    "open-side": open_side,
    "in-context": in_context,
    "stages": stages,
    "scan-and-snap": scan_and_snap,
    "grokking": grokking,
    "attention-svm": attention_svm,
    "reversal": reversal,
}
"""The function that draws each report, by name; files have that name with underscores."""
