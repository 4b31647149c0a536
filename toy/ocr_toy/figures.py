"""The figures, as PNG, PDF and SVG: `measure` does the runs, and one function draws each figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ocr_toy import convex, theory
from ocr_toy.check import Sizes
from ocr_toy.descent import descend, usual_descent
from ocr_toy.files import write_atomic
from ocr_toy.model import BOTH, ModelSpec, Param
from ocr_toy.pictures import PICTURES
from ocr_toy.report import Report
from ocr_toy.runs import RunResult, RunSpec, TrainSpec
from ocr_toy.statistics import singular_values, subject_blocks
from ocr_toy.sweep import RankSweep
from ocr_toy.task import TEST_ENTAILMENT, TRAINED_SETS, noise_free
from ocr_toy.train import train_runs

# Okabe and Ito's colours, which are safe for all common kinds of colour blindness.
COLOURS: dict[Param, str] = {"factorized": "#0072B2", "merged": "#D55E00"}
THEORY_COLOUR = "#000000"
CURVE_SIZES = tuple((3, m_train, 4) for m_train in range(7))
SPECTRUM_SIZES: Sizes = (3, 1, 3)
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "ocr-toy",
}
#: Metadata without the time, so that the same numbers give the same file.
FORMATS: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Measured:
    """Everything the figures show.

    published: the published run of both models; margins: held-out margin by m_train for CURVE_SIZES;
    spectra: singular values of gradient descent and of the convex optimum for SPECTRUM_SIZES;
    ranks: the rank sweep.
    """

    published: dict[Param, RunResult]
    margins: dict[Param, list[tuple[int, float]]]
    spectra: dict[Param, tuple[np.ndarray, np.ndarray]]
    ranks: RankSweep


def measure(ranks: RankSweep, solver: str, seed: int, say: Callable[[str], None]) -> Measured:
    """Do the runs behind the figures, except the rank sweep, which is given."""
    say("published run, both models")
    train = TrainSpec(seed=seed, record_every=10, norms_every=40)
    runs = train_runs([RunSpec(model=ModelSpec(param), train=train) for param in BOTH])
    margins: dict[Param, list[tuple[int, float]]] = {}
    spectra: dict[Param, tuple[np.ndarray, np.ndarray]] = {}
    for param in BOTH:
        margins[param] = []
        for sizes in CURVE_SIZES:
            say(f"gradient descent, {param}, n, m_train, m_test = {sizes}")
            task = noise_free(*sizes)
            found = descend(task, usual_descent(param, task, seed)).w_ov
            margins[param].append((sizes[1], theory.test_margin(task, found)))
        task = noise_free(*SPECTRUM_SIZES)
        optimum = convex.solve(param, task, solver)
        found = descend(task, usual_descent(param, task, seed)).w_ov
        spectra[param] = singular_values(found), singular_values(optimum)
    return Measured(dict(zip(BOTH, runs, strict=True)), margins, spectra, ranks)


def loss_curves(measured: Measured) -> Figure:
    """Test loss and mean loss of the trained question sets over the published run, for both models."""
    figure = Figure(figsize=(7, 4.2))
    axes = figure.add_subplot()
    for param in BOTH:
        run = measured.published[param]
        steps, test = run.losses(TEST_ENTAILMENT)
        train = [np.mean([r.loss[name] for name in TRAINED_SETS]) for r in run.records]
        axes.plot(steps, test, color=COLOURS[param], label=f"{param}, test")
        axes.plot(steps, train, color=COLOURS[param], linestyle="--", label=f"{param}, train")
    n = measured.published["merged"].spec.task.n_pairs
    axes.axhline(np.log(n), color=THEORY_COLOUR, linestyle=":", label=f"log {n}: guessing among the c's")
    axes.set(xlabel="training step", ylabel="cross-entropy (nats)", yscale="log", xlim=(0, steps[-1]))
    axes.set_title("Loss on what is trained and on what is held out", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def weight_blocks(measured: Measured) -> Figure:
    """The blocks of W_OV from train and test subjects to b and c answers, both models side by side.

    Columns are weighted by the attention that their subject gets, and centred over the answers of the block.
    """
    figure = Figure(figsize=(8.6, 4.7))
    grid = figure.subplots(2, 4)
    titles = {
        "train_b": "train subjects to b",
        "train_c": "train subjects to c",
        "test_b": "test subjects to b",
        "test_c": "test subjects to c\n(never trained)",
    }
    for param, row in zip(BOTH, grid, strict=True):
        run = measured.published[param]
        blocks = subject_blocks(run.spec.task, run.effect)
        centred = {name: b - b.mean(axis=0, keepdims=True) for name, b in blocks.items()}
        limit = max(float(np.abs(b).max()) for b in centred.values())
        for axes, (name, title) in zip(row, titles.items(), strict=True):
            image = axes.imshow(centred[name], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.spines[:].set_visible(True)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel("pair of the subject", fontsize=9)
            axes.set_title(title, fontsize=9)
        row[0].set_ylabel(f"{param}\nanswer", fontsize=10)
        figure.colorbar(image, ax=list(row), shrink=0.85, label="added to the logit")
    return figure


def rank_curve(measured: Measured) -> Figure:
    """Test loss against the width d_h: every seed, and the mean over seeds."""
    figure = Figure(figsize=(5.6, 3.6))
    axes = figure.add_subplot()
    ranks = measured.ranks
    values = [point.value for point in ranks.points]
    means = [float(np.mean(point.test_losses)) for point in ranks.points]
    axes.plot(values, means, color=COLOURS["factorized"], label="mean over seeds")
    x, y = zip(*((point.value, loss) for point in ranks.points for loss in point.test_losses), strict=True)
    axes.plot(x, y, "o", markerfacecolor="none", color=COLOURS["factorized"], label="one seed")
    guess = f"log {ranks.n_pairs}: guessing among the c's"
    axes.axhline(np.log(ranks.n_pairs), color=THEORY_COLOUR, linestyle=":", label=guess)
    axes.set(xlabel="width d_h", ylabel="test loss (nats)", xscale="log", yscale="log")
    axes.set_xticks(values, [f"{v:g}" for v in values])
    axes.minorticks_off()
    axes.set_title(f"factorized, {ranks.n_pairs} pairs, {ranks.steps:,} training steps", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def margin_curve(measured: Measured) -> Figure:
    """Held-out margin of gradient descent against min{1, sqrt(m_train / m_test)}."""
    figure = Figure(figsize=(5.6, 3.6))
    axes = figure.add_subplot()
    m_test = CURVE_SIZES[0][2]
    dense = np.linspace(0, CURVE_SIZES[-1][1], 200)
    root = np.minimum(1, np.sqrt(dense / m_test))
    axes.plot(dense, root, color=THEORY_COLOUR, linestyle=":", label="min{1, sqrt(m_train / m_test)}")
    for param, marker, size in zip(BOTH, ("o", "s"), (6, 10), strict=True):
        x, y = zip(*measured.margins[param], strict=True)
        look: Any = {"color": COLOURS[param], "markersize": size, "markerfacecolor": "none"}
        axes.plot(x, y, marker, label=f"{param}, measured", **look)  # a circle fits into a square
    axes.set_title("Held-out margin by number of train subjects", fontsize=10)
    axes.set(xlabel=f"m_train (m_test = {m_test})", ylabel="held-out margin / train margin", ylim=(-0.05, 1.1))
    axes.legend(fontsize=8)
    return figure


def spectra(measured: Measured) -> Figure:
    """Singular values of W_OV at train margin 1: gradient descent and the convex optimum."""
    figure = Figure(figsize=(7, 3.4))
    for axes, param in zip(figure.subplots(1, 2, sharey=True), BOTH, strict=True):
        found, optimum = measured.spectra[param]
        index = np.arange(1, len(found) + 1)
        axes.bar(index, optimum, width=0.6, color="#BBBBBB", label="convex optimum")
        axes.plot(index, found, "o", color=COLOURS[param], clip_on=False, label="gradient descent")
        norm = "nuclear norm" if param == "factorized" else "Frobenius norm"
        axes.set(title=f"{param}: least {norm}", xlabel="index", xticks=index)
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
        if param == BOTH[0]:
            axes.set_ylabel("singular value")
    return figure


def norm_curves(measured: Measured) -> Figure:
    """Nuclear norm, Frobenius norm and effective rank of W_OV over the published run."""
    figure = Figure(figsize=(8.4, 3.2))
    names = {"nuclear": "nuclear norm", "frobenius": "Frobenius norm", "effective_rank": "effective rank"}
    for axes, (name, title) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for param in BOTH:
            records = [r for r in measured.published[param].records if r.norms is not None]
            values = [getattr(r.norms, name) for r in records]
            axes.plot([r.step for r in records], values, color=COLOURS[param], label=param)
        axes.set(title=title, xlabel="training step", ylim=(0, None))
        axes.title.set_fontsize(10)
    axes.legend(fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Measured], Figure]] = {
    "loss_curves": loss_curves,
    "weight_blocks": weight_blocks,
    "rank_sweep": rank_curve,
    "margin_curve": margin_curve,
    "singular_values": spectra,
    "norms": norm_curves,
}
"""File stem of each figure and the function that draws it."""


def save_all(measured: Measured, folder: Path) -> list[Path]:
    """Draw every figure and write it as PNG, PDF and SVG into a folder; returns the paths."""
    with mpl.rc_context(STYLE):
        return [path for name, draw in FIGURES.items() for path in _save(draw(measured), name, folder)]


def save_report(report: Report, folder: Path) -> list[Path]:
    """Draw the picture of a report, if it has one, as `save_all` does."""
    if report.name not in PICTURES:
        return []
    with mpl.rc_context(STYLE):
        return _save(PICTURES[report.name](report), report.name.replace("-", "_"), folder)


def _save(figure: Figure, name: str, folder: Path) -> list[Path]:
    written = []
    for suffix, metadata in FORMATS.items():
        path = folder / f"{name}.{suffix}"

        def fill(temporary: Path, metadata: dict[str, None] = metadata) -> None:
            figure.savefig(temporary, dpi=160, metadata=metadata)
            if temporary.suffix == ".png":
                _palette(temporary)

        write_atomic(path, fill)
        written.append(path)
    return written


def _palette(png: Path) -> None:
    """Reduce a PNG to 256 colours: a third of the size without a visible difference."""
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(png, "png", optimize=True, dpi=(160, 160))
