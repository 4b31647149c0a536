"""Why runs of a cell differ (``analysis.components``) as a table in Markdown."""

import math
from collections.abc import Sequence

from tabulate import tabulate

from ocr_eval.analysis.components import Clustered, Components, spreads
from ocr_eval.records.record import Record
from ocr_eval.report.tables import markdown_text
from ocr_eval.specs.run import Scoring

_HEADER = ("row", "association", "seeds", "sd of seeds", "data", "training", "rest", "SE by seed", "by pair", "by both")


def spread_table(records: Sequence[Record], scoring: Scoring) -> str:
    """Why the runs of each cell differ, as a Markdown table with a note on how to read it."""
    found = spreads(records, scoring)

    def number(value: float | None) -> str:
        return "" if value is None else "none" if math.isnan(value) else f"{value:.2f}"

    def variances(parts: Components | None) -> list[str]:
        if parts is None:
            return [""] * 3
        values = (parts.data, parts.training, parts.rest)
        total = sum(max(value, 0.0) for value in values)
        shares = [f" ({max(value, 0.0) / total:.0%})" if total else "" for value in values]
        return [f"{math.sqrt(max(value, 0.0)):.2f}{share}" for value, share in zip(values, shares, strict=True)]

    def errors(of: Clustered | None) -> list[str]:
        return [""] * 3 if of is None else [number(of.seed), number(of.pair), number(of.both)]

    rows = [
        [
            *map(markdown_text, (each.row, each.association)),
            *(str(each.seeds), number(each.sd)),
            *(*variances(each.components), *errors(each.clustered)),
        ]
        for each in found
    ]
    align = ["left", "left", *["right"] * 8]
    text = tabulate(rows, _HEADER, tablefmt="github", colalign=align, disable_numparse=True)
    notes = [
        "OCR score. Data, training, rest: standard deviations by variance components, with their share of the "
        "variance; 0 where none was found. SE: standard error of the mean if seeds, pairs, or neither were independent."
    ]
    if any(each.components is None for each in found):
        notes.append("Components take data seeds crossed with train seeds: sweep --data-seed 0-2 --train-seed 0-2.")
    if any(each.clustered is None and each.seeds > 1 for each in found):
        notes.append("Older records do not state their pairs, and have no clustered errors.")
    return f"{text}\n\n{' '.join(notes)}\n"
