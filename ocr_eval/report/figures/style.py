"""Shared by all figures: the colours of Okabe and Ito, sizes, and writing files reproducibly."""

import io
import re
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ocr_eval.common.files import prepare_output, write_atomic
from ocr_eval.data.task import Quantity
from ocr_eval.report.figures.fonts import spell
from ocr_eval.report.tables import QUANTITY_NAMES

#: Colours and markers of rows; a combination repeats only after 24 rows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "d")

#: Colour and line style of the quantities of pairs, in the order in which they are drawn.
_QUANTITIES = {
    "train_fact": ("#009E73", ":"),
    "test_fact": ("#56B4E9", "--"),
    "train_entailment": ("#E69F00", "-."),
    "test_entailment": ("#D55E00", "-"),
}
#: Those of other findings, and of further quantities in turn.
_FINDING, _OTHERS = ("#D55E00", "-"), (("#009E73", ":"), ("#56B4E9", "--"), ("#E69F00", "-."), ("#CC79A7", ":"))

#: Approximate inches per character of a legend, and of its marker with margins.
_CHARACTER, _MARKER = 0.063, 0.6

#: Most rows in a legend, which says how many it omits.
LEGEND_ROWS = 12

#: Dots per inch of a PNG.
_DPI = 160
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class Drawn:
    """How a quantity is drawn as a curve."""

    name: str
    label: str
    color: str
    line: str
    width: float


def drawn(quantities: Iterable[Quantity]) -> list[Drawn]:
    """A curve for each quantity, the finding's last and thickest."""
    names = list(_QUANTITIES)
    order = sorted(
        dict.fromkeys(quantities), key=lambda q: (q.role == "finding", names.index(q.name) if q.name in names else 0)
    )
    others = cycle(_OTHERS)
    curves = []
    for quantity in order:
        finding = quantity.role == "finding"
        color, line = _QUANTITIES.get(quantity.name) or (_FINDING if finding else next(others))
        label = QUANTITY_NAMES.get(quantity.name, quantity.name)
        curves.append(Drawn(quantity.name, label, color, line, 2.4 if finding else 1.4))
    return curves


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without a window or global state."""
    return Figure(figsize=(width, height), layout="constrained")


def figure_of_rows(width: float, height: float, rows: int) -> tuple[Figure, Axes]:
    """A figure with one panel for rows, of this size in inches, plus room for their legend below."""
    figure = new_figure(width, height + 0.16 * min(rows, LEGEND_ROWS))
    axes: Axes = figure.subplots()
    bare(axes)
    return figure, axes


def legend_of_rows(figure: Figure, rows: int, unlearned: bool) -> None:
    """A legend below the axes, in two columns if labels are short enough; long labels are wrapped.

    Its last entries say how many rows it omits, and what hollow markers mean if there are any.
    """
    (axes,) = figure.axes
    if rows > LEGEND_ROWS:
        axes.plot([], [], " ", label=f"and {rows - LEGEND_ROWS} more")
    if unlearned:
        label = "hollow: a run did not learn what it was taught"
        axes.plot([], [], "o", color="0.4", markerfacecolor="white", markersize=7, label=label)
    handles, labels = axes.get_legend_handles_labels()
    width = float(figure.get_figwidth())
    longest = max(map(len, labels), default=0)
    columns = 2 if 2 * (_MARKER + longest * _CHARACTER) <= width else 1
    broken = [textwrap.fill(label, int((width - _MARKER) / _CHARACTER)) for label in labels]
    figure.legend(handles, broken, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def panels(
    count: int, across: int, size: tuple[float, float], margins: tuple[float, float] = (0, 0), share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes of ``size``, at most ``across`` per row; ``margins`` are added, in inches."""
    columns = min(across, count)
    rows = -(-count // columns)
    figure = new_figure(size[0] * columns + margins[0], size[1] * rows + margins[1])
    axes = list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def bare(axes: Axes) -> None:
    """Remove the top and right sides of the frame."""
    axes.spines[["top", "right"]].set_visible(False)


def whole_ticks(axes: Axes) -> None:
    """Only integers on the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def plain(text: str, most: int) -> str:
    """User data as a label: cut to ``most`` characters, with dollar signs escaped."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return cut.replace("$", r"\$")


#: User data in a title, in a legend (which breaks lines), and at an axis.
title, entry, tick = (partial(plain, most=most) for most in (70, 200, 24))


def file_name(*parts: str) -> str:
    """Parts joined into a file name that is safe for paths and shells."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)[:150]


def draw(figure: Figure, form: str, salt: str) -> bytes:
    """A figure as png, pdf or svg, reproducible byte for byte."""
    spell(figure)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # 'spell' has said so
        figure.savefig(out, format=form, dpi=_DPI, metadata=_METADATA[form])
    return _palette(out) if form == "png" else out.getvalue()


def _palette(png: io.BytesIO) -> bytes:
    """The same picture in 256 colours: a third of the size without a visible difference."""
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    few.save(out, "png", optimize=True, dpi=(_DPI, _DPI))
    return out.getvalue()


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG, PDF and SVG; returns the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    prepare_output(folder)
    paths = [folder / f"{name}.{form}" for form in ("png", "pdf", "svg")]
    for path in paths:
        write_atomic(path, draw(figure, path.suffix[1:], name))
    return paths
