"""The mean-rank table -> md, csv, json, tex, html. Pure."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from ocr_eval.analysis.intervals import METRICS as _INTERVALS
from ocr_eval.analysis.significance import SIGNIFICANT
from ocr_eval.analysis.table import METRICS, Cell, Row, Table, flat_cells
from ocr_eval.methods.method import advice, label_of
from ocr_eval.records.record import Record
from ocr_eval.scoring.ranks import LEARNED_TOP1
from ocr_eval.specs.strict import SCHEMA_VERSION

#: Column and caption words of each metric.
METRIC_NAMES = {
    "mean-rank": "mean rank",
    "null-rank": "null rank",
    "ocr-score": "OCR score",
    "top1": "top-1",
    "mrr": "mean reciprocal rank",
    "margin": "margin in nats",
    "lift": "lift: OCR score minus that of the no-entailment control",
    "p": "p-value of 'nothing was inferred'",
}
#: What the quantities of pairs are called; others have their own names.
QUANTITY_NAMES = {
    "train_fact": "train facts",
    "test_fact": "test facts",
    "train_entailment": "train entailments",
    "test_entailment": "held-out entailments",
}
_SIGNED = ("ocr-score", "margin", "lift")


def unlearned(record: Record) -> str:
    """The premises that a run did not learn, in words; empty if it learned all."""
    return " and ".join(QUANTITY_NAMES.get(name, name) for name, top1 in record.premises.items() if top1 < LEARNED_TOP1)


def caption(table: Table) -> str:
    """How to read the table, and what must be known about its numbers."""
    return " ".join([_reading(table), *_protocol(table), *_flags(table), *_published_note(table)])


def findings(table: Table) -> str:
    """What is ranked, to begin a sentence."""
    names = " and ".join(QUANTITY_NAMES.get(name, name) for name in table.findings)
    return names[0].upper() + names[1:]


def _reading(table: Table) -> str:
    where = f"{findings(table)}, {table.scoring} scoring"
    bounded = any((table.metric or "ocr-score") in cell.bounds for row in table.rows for cell in row.cells.values())
    interval = " [95 % interval]" * bounded
    if table.metric is None:
        text = (
            f"{where}: mean rank / null rank, OCR score{interval}. Rank 0 is perfect; the null rank is what a model "
            "that only knows which answers occur would get. OCR score = 1 - mean rank / chance, both among the answers "
            "in use alone: 0 nothing inferred, 1 always."
        )
        return text + " Intervals are for new seeds (Student's t)." * bounded
    if table.metric not in METRICS:
        return (
            f"{table.metric} of the trained model, averaged over seeds; it depends on no scoring and has no interval."
        )
    bound = " (no interval: records keep no margins of subjects)" if table.metric == "margin" else ""
    return f"{where}: {METRIC_NAMES[table.metric]}{interval or bound}."


def _protocol(table: Table) -> list[str]:
    shared = dict(table.protocol)
    if shared.get("variant") == "real":
        del shared["variant"]
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        if not row.published:
            rows.setdefault(row.dtype, []).append(row.name)
    told = all("dtype=" in name for names in rows.values() for name in names)  # each row says its own
    if len(rows) == 1:
        shared["dtype"] = next(iter(rows))
    notes = [f"All runs: {', '.join(f'{key} {value}' for key, value in shared.items())}."] if shared else []
    if len(rows) > 1 and not told:
        most = 6
        precisions = [
            f"{dtype} ({'; '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''})"
            for dtype, names in rows.items()
        ]
        notes.append(f"Precision differs between rows: {', '.join(precisions)}.")
    return notes


def _flags(table: Table) -> list[str]:
    cells = [cell for row in table.rows for cell in row.cells.values()]
    notes = []
    counted = sum(cell.p_holm is not None for cell in cells)
    if any("*" in _mark(table, cell) for cell in cells):
        notes.append(f"* inferred: p at most {SIGNIFICANT:g}, corrected for {counted} cells (Holm).")
    advised = dict.fromkeys(advice(cell.method) for cell in cells if cell.unlearned)
    if advised:
        notes.append(
            "! a run did not learn what it was taught (top-1 under 95 %): do not interpret its rank. "
            f"What to try: {'; '.join(advised)}."
        )
    if any(cell.inexact for cell in cells):
        notes.append(
            "? ranks are not exact: the server gave only its most probable next tokens, and candidates beyond them "
            "share one rank."
        )
    if table.metric in (None, *_INTERVALS) and any(cell.seeds == 1 for cell in cells):
        notes.append("One seed has no interval.")
    return notes


def _published_note(table: Table) -> list[str]:
    if not any(row.published for row in table.rows):
        return []
    differs = ["they come from full fine-tuning of 7-9B models"]
    methods = sorted({cell.method for row in table.rows for cell in row.cells.values() if cell.method})
    ours = [label_of(method) for method in methods]
    if ours != ["full fine-tuning"]:
        differs[0] += f" (here {', '.join(ours)})"
    differs.append("state no null")
    if table.protocol.get("candidates") != "ten":
        differs.append("rank among ten candidates, which not all runs here do")
    else:
        differs.append("do not say which ten candidates they rank among")
    if table.scoring != "first-token":
        differs.append(f"score the first token (here {table.scoring})")
    if table.protocol.get("n") != "5" or (table.protocol.get("m_train"), table.protocol.get("m_test")) != ("4", "16"):
        differs.append("have 5 pairs and 4 + 16 subjects a pair")
    return [f"Published rows are of Huang et al. (2025). Protocols differ: {'; '.join(differs)}."]


def _mark(table: Table, cell: Cell) -> str:
    """``*`` at ranks and scores that show inference (what one seed shows is of that training alone), ``!``, ``?``."""
    star = cell.inferred and (cell.seeds or 0) > 1 and table.metric in (None, *_INTERVALS)
    return "*" * star + " !" * bool(cell.unlearned) + " ?" * bool(cell.inexact)


def _number(metric: str, value: float) -> str:
    if metric == "p":
        return f"{value:.2g}"
    return f"{value:+.2f}" if metric in _SIGNED else f"{value:.2f}"


def _bounded(cell: Cell, metric: Any) -> str:
    text = _number(metric, cell.values[metric])
    if metric in cell.bounds:
        low, high = cell.bounds[metric]
        text += f" [{_number(metric, low)}, {_number(metric, high)}]"
    return text


def cell_lines(table: Table, cell: Cell | None) -> list[str]:
    """A cell's text: ranks and score apart where it shows both, no line where there is no run, flags last."""
    if cell is None:
        return []
    if cell.seeds is None:
        return [f"{cell.values['mean-rank']:.2f}"]
    if table.metric is not None and table.metric not in cell.values:
        return [f"{'no control' if table.metric == 'lift' else 'not measured'}{_mark(table, cell)}"]
    if table.metric is not None:
        return [_bounded(cell, table.metric) + _mark(table, cell)]
    ranks = f"{cell.values['mean-rank']:.2f} / {cell.values['null-rank']:.2f}"
    return [ranks, _bounded(cell, "ocr-score") + _mark(table, cell)]


def seed_counts(row: Row) -> str:
    """``3``, or ``1-3`` where cells have different numbers of runs."""
    counts = sorted({cell.seeds for cell in row.cells.values() if cell.seeds is not None})
    return "-".join(str(count) for count in counts[:: max(1, len(counts) - 1)])


def header(table: Table) -> list[str]:
    """The columns' names."""
    return [*(key.replace("_", "-") for key in table.by), "setting", "seeds", *table.associations]


def to_markdown(table: Table) -> str:
    """The table in Markdown, numbers aligned, with a caption that says how to read a cell."""
    body = [
        [
            *map(markdown_text, (*row.labels, row.setting, seed_counts(row))),
            *(", ".join(cell_lines(table, row.cells.get(name))) for name in table.associations),
        ]
        for row in table.rows
    ]
    align = [*("left" for _ in (*table.by, "setting")), "right", *("right" for _ in table.associations)]
    names = [markdown_text(name) for name in header(table)]
    text = tabulate(body, names, tablefmt="github", colalign=align, disable_numparse=True)
    return f"{text}\n\n{caption(table)}\n"


def markdown_text(text: str) -> str:
    """Text that stays text in a table of Markdown."""
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())


def to_csv(table: Table) -> str:
    """A line a cell, every metric with its interval."""
    out = io.StringIO()
    cells = list(flat_cells(table))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(spreadsheet_text, cells[0]))
    writer.writerows(map(spreadsheet_text, cell.values()) for cell in cells)
    return out.getvalue()


def in_a_row(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def spreadsheet_text(value: Any) -> Any:
    """A value of a csv; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    formula = value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return "'" * formula + value.replace("\r", " ")  # the csv module leaves it bare, and it would end the row


def to_json(table: Table) -> str:
    """The table as a JSON object, an object a cell in ``cells``."""
    content = {"scoring": table.scoring, "caption": caption(table), "cells": list(flat_cells(table))}
    return json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2) + "\n"


def rendered(template: str, table: Table) -> str:
    """The table by a template of its own."""
    text: str = templates().get_template(template).render(context(table))
    return text


def context(table: Table) -> dict[str, Any]:
    """What the templates of a table need."""
    return {
        "table": table,
        "header": header(table),
        "lines": lambda row, name: cell_lines(table, row.cells.get(name)),
        "seed_counts": seed_counts,
        "caption": caption(table),
        "labels": len(table.by) + 1,
    }


@cache
def templates() -> Environment:
    """The templates of ocr_eval/report; what they put into HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("ocr_eval", "report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["tex"] = lambda text: "".join(_TEX.get(c, c if c.isprintable() else " ") for c in text)
    environment.filters["texnumbers"] = _tex_numbers
    return environment


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{mark: f"{{{mark}}}" for mark in "[]*"},  # after a row's end they would be its options
}


def _tex_numbers(text: str) -> str:
    """Numbers in mathematics, so that a minus is one; flags raised."""
    numbers = text.rstrip("*!? ")
    flags = text[len(numbers) :].replace(" ", "")
    return f"${numbers}$" + (rf"\textsuperscript{{{flags}}}" if flags else "")


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "tex": partial(rendered, "table.tex.j2"),
    "html": partial(rendered, "table.html.j2"),
}
