"""Results of measures by layer: one panel per association, averaged over seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from matplotlib.figure import Figure

from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association
from ocr_eval.report.figures.rows import counted
from ocr_eval.report.figures.style import bare, panels, tick, whole_ticks
from ocr_eval.scoring.ranks import Floats


@dataclass(frozen=True)
class _Drawn:
    """How a measure is drawn.

    Attributes:
        title, text: the figure's title, and how to read it.
        up: label of the vertical axis.
        lines: up to two columns of the measure's ``layers`` with their labels, the more important first.
    """

    title: str
    text: str
    up: str
    lines: Mapping[str, str]


_DRAWN = {
    "logit-lens": _Drawn(
        "Where answers appear",
        "The rank of the right answer among those in use, read out after each layer as if it were the last: 0 is "
        "right, 2 is chance among five answers.",
        "rank of the answer",
        {"test_entailment_in_use_rank": "entailment, not taught", "test_fact_in_use_rank": "fact"},
    ),
    "weight-change": _Drawn(
        "Where the weights change",
        "Frobenius norm of the change of each layer's matrices together.",
        "norm of the change",
        {"frobenius": "all matrices of a layer"},
    ),
    "sharing": _Drawn(
        "What facts and entailments share",
        "How similar the change is for a group's fact and for its entailment (cosine), against the entailments of "
        "other groups. Where the lines are apart, a group's two answers were learned together.",
        "cosine",
        {"weights": "same group", "weights_other": "other groups"},
    ),
    "patching": _Drawn(
        "Where answers come from",
        "How much another group's answer gains over the rest (nats) when the state of one of its subjects replaces the "
        "subject's own after a layer. Until the lines cross, what determines the answer is still at the name.",
        "gain (nats)",
        {"name_excess": "at the name", "prompt_excess": "at the end of the prompt"},
    ),
    "constant-direction": _Drawn(
        "Whether training adds one direction",
        "How similar the change's additions to two tokens are (cosine). At 1 it would add the same to all tokens, like "
        "a steering vector; by chance: a change of the same size that learned nothing about its inputs.",
        "cosine",
        {"cosine": "trained", "chance": "by chance"},
    ),
}
#: The measures that must be read from records for these figures.
MEASURES = tuple(_DRAWN)


def layer_figures(runs: Sequence[Record]) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    """Title, text and what draws the figure of each measure by layer; runs differ only in association and seed."""
    for measure, look in _DRAWN.items():
        shown = {}
        for name, of in by_association(runs).items():
            if tables := [(run.seed, table) for run in of if (table := _table(run, measure, look)) is not None]:
                alike = [(seed, table) for seed, table in tables if len(table) == len(tables[0][1])]
                label = f"{tick(name)} ({counted(len({seed for seed, _ in alike}))})"
                shown[label] = np.mean([table for _, table in alike], axis=0)
        if shown:
            yield look.title, look.text, partial(_figure, shown, look)


def _table(run: Record, measure: str, look: _Drawn) -> Floats | None:
    """The values of each line by layer; None if the record lacks them. [layers, lines]"""
    layers = run.measures.get(measure, {}).get("layers", {})
    try:
        found: Floats = np.array([layers[column] for column in look.lines], dtype=np.float64).T
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return found if found.ndim == 2 and len(found) and np.isfinite(found).all() else None


def _figure(shown: Mapping[str, Floats], look: _Drawn) -> Figure:
    columns = min(3, len(shown))
    figure, grid = panels(len(shown), columns, (2.6, 2.2), (0.7, 0.5), share_y=True)
    for axes, (name, values) in zip(grid, shown.items(), strict=True):
        styles = islice(zip("-:", ("#D55E00", "#0072B2"), strict=True), len(look.lines))
        for label, of, (line, color) in zip(look.lines.values(), values.T, styles, strict=True):
            axes.plot(range(len(of)), of, line, color=color, linewidth=2, label=label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("layer")
        whole_ticks(axes)
        bare(axes)
    for axes in grid[::columns]:
        axes.set_ylabel(look.up)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, columns), fontsize=8, frameon=False)
    return figure
