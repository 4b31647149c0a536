"""The mean-rank table -> md, csv, json, tex, html. Pure."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from ocr_eval.analysis.difference import too_few
from ocr_eval.analysis.intervals import METRICS as _INTERVALS
from ocr_eval.analysis.significance import SIGNIFICANT
from ocr_eval.analysis.table import METRICS, Cell, Row, Table, flat_cells
from ocr_eval.common import files
from ocr_eval.common.messages import in_a_row
from ocr_eval.methods.method import advice, label_of
from ocr_eval.records.record import Record
from ocr_eval.records.rows import usual_settings
from ocr_eval.scoring.ranks import LEARNED_TOP1
from ocr_eval.specs.strict import SCHEMA_VERSION

#: The name of each metric in captions.
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
#: Names of the quantities of pairs and of known facts; others are shown as they are called.
QUANTITY_NAMES = {
    "train_fact": "train facts",
    "test_fact": "test facts",
    "train_entailment": "train entailments",
    "test_entailment": "held-out entailments",
    "taught": "taught facts",
    "held_out": "held-out facts",
}
_SIGNED = ("ocr-score", "margin", "lift")


def unlearned(record: Record) -> str:
    """The premises that a run did not learn, in words; empty if it learned all."""
    return quantities(name for name, top1 in record.premises.items() if top1 < LEARNED_TOP1)


def caption(table: Table) -> str:
    """How to read the table, and caveats about its numbers."""
    return " ".join([_reading(table), *_protocol(table), *_flags(table), *_published_note(table)])


def quantities(names: Iterable[str]) -> str:
    """Quantities in words, each once."""
    return in_a_row([QUANTITY_NAMES.get(name, name) for name in dict.fromkeys(names)])


def findings(table: Table) -> str:
    """What is ranked, to start a sentence."""
    names = quantities(table.findings)
    return names[0].upper() + names[1:]


def _reading(table: Table) -> str:
    when = ", each run at the first epoch at which all premises held" * table.when_learned
    where = f"{findings(table)}, {table.scoring} scoring{when}"
    bounded = any((table.metric or "ocr-score") in cell.bounds for row in table.rows for cell in row.cells.values())
    interval = " [95 % interval]" * bounded
    if table.metric is None:
        text = (
            f"{where}: mean rank / null rank, OCR score{interval}. Rank 0 is perfect; the null rank is what a model "
            "that only knows which answers occur would get. OCR score = 1 - mean rank / chance, both among the answers "
            "in use alone: 0 nothing inferred, 1 always."
        )
        fixed = f"; those of {in_a_row(table.fixed)} for new trainings on the same subjects" if table.fixed else ""
        return text + f" Intervals are for new seeds (Student's t){fixed}." * bounded
    if table.metric not in METRICS:
        return (
            f"{table.metric} of the trained model, averaged over seeds; it depends on no scoring and has no interval."
        )
    bound = " (no interval: records keep no margins per subject)" if table.metric == "margin" else ""
    return f"{where}: {METRIC_NAMES[table.metric]}{interval or bound}."


def _protocol(table: Table) -> list[str]:
    shared = dict(table.protocol)
    if shared.get("variant") == "real":
        del shared["variant"]
    own = [row for row in table.rows if not row.published]
    dtypes = _rows_with((row.dtype, row.name) for row in own)
    is_in_names = all("dtype=" in row.name for row in own)  # each row's name states it
    if len(dtypes) == 1:
        shared["dtype"] = next(iter(dtypes))
    notes = [f"All runs: {', '.join(f'{key} {value}' for key, value in shared.items())}."] if shared else []
    if usual := usual_settings((row.name, row.unnamed) for row in own):
        notes.append(usual)
    if len(dtypes) > 1 and not is_in_names:
        precisions = [f"{dtype} ({names})" for dtype, names in dtypes.items()]
        notes.append(f"Precision differs between rows: {', '.join(precisions)}.")
    versions = _rows_with((row.results, row.name) for row in own)
    if len(versions) > 1:
        listed = [f"{version} ({versions[version]})" for version in sorted(versions)]
        notes.append(
            f"Results versions differ between rows: {', '.join(listed)}. Numbers changed in between, so such runs are "
            "never averaged, nor used as each other's controls."
        )
    return notes


def _rows_with(values: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """For each value the names of the first rows that have it."""
    most = 6
    rows: dict[Any, list[str]] = {}
    for value, name in values:
        rows.setdefault(value, []).append(name)
    return {
        value: f"{'; '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"
        for value, names in rows.items()
    }


def _flags(table: Table) -> list[str]:
    cells = [cell for row in table.rows for cell in row.cells.values()]
    marks = "".join(_mark(table, cell) for cell in cells)
    notes = _lift_flags(table, cells) if table.metric == "lift" else []
    bounded = any((table.metric or "ocr-score") in cell.bounds for cell in cells)
    if "*" in marks and table.metric != "lift":
        counted = sum(cell.p_holm is not None for cell in cells)
        notes.append(
            f"* inferred: p at most {SIGNIFICANT:g}{f', corrected for {counted} cells (Holm)' * (counted > 1)}."
        )
    if "*" in marks and bounded:
        notes.append(_TWO_ANSWERS["lift" if table.metric == "lift" else "inferred"])
    advised = dict.fromkeys(advice(cell.method) for cell in cells if _unlearned(table, cell))
    if advised:
        who = "a run, or one of its control," if table.metric == "lift" else "a run"
        notes.append(
            f"! {who} did not learn what it was taught (top-1 under 95 %): do not interpret its rank. "
            f"What to try: {'; '.join(advised)}."
        )
    if any(cell.inexact for cell in cells):
        notes.append(
            "? ranks are not exact: the server gave only its most probable next tokens, and candidates beyond them "
            "share one rank."
        )
    if table.metric in (None, "p", "lift", *_INTERVALS) and any(cell.seeds == 1 for cell in cells):
        notes.append("One seed has no interval and no verdict.")
    return notes


#: Why a star and the interval next to it can disagree.
_TWO_ANSWERS = {
    "inferred": (
        "p is one-sided, also tests whether groups agree, and is corrected; the interval is two-sided and for its cell "
        "alone, so a starred cell's interval may reach below zero, and one whose interval does not may lack the star."
    ),
    "lift": (
        "p is from sign flips and corrected; the interval is Student's t for its cell alone, so a starred cell's "
        "interval may contain zero, and one whose interval does not may lack the star."
    ),
}


def _lift_flags(table: Table, cells: Sequence[Cell]) -> list[str]:
    lifts = [cell.lift for cell in cells if cell.lift is not None]
    tests = sum(lift.p is not None for lift in lifts)
    notes = []
    if any("*" in _mark(table, cell) for cell in cells):
        notes.append(
            f"* differs from its control: p at most {SIGNIFICANT:g} by sign flips over seeds, corrected for {tests} "
            "lifts (Holm)."
        )
    few = dict.fromkeys((lift.seeds, lift.comparisons) for lift in lifts if lift.seeds < lift.seeds_needed)
    return [*notes, *(f"{too_few(*each)}." for each in few)]


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
        differs.append("have 5 pairs and 4 + 16 subjects per pair")
    return [f"Published rows are from Huang et al. (2025). Protocols differ: {'; '.join(differs)}."]


def _mark(table: Table, cell: Cell) -> str:
    """``*`` if an inference or a lift is significant, ``!`` if a run did not learn, ``?`` if ranks are not exact."""
    star = cell.inferred and table.metric in (None, *_INTERVALS)
    star = star or (table.metric == "lift" and cell.lift is not None and bool(cell.lift.sign))
    return "*" * star + " !" * _unlearned(table, cell) + " ?" * bool(cell.inexact)


def _unlearned(table: Table, cell: Cell) -> bool:
    """Whether some run behind a cell did not learn what it was taught; for a lift, control runs count, too."""
    return bool(cell.unlearned) or (
        table.metric == "lift" and cell.lift is not None and cell.lift.control_unlearned > 0
    )


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
    """The lines of a cell: ranks and score on separate lines if it shows both, flags last; none without a run."""
    if cell is None:
        return []
    if cell.seeds is None:
        return [f"{cell.values['mean-rank']:.2f}"]
    if table.metric is not None and table.metric not in cell.values:
        some = f"measured in {cell.partly[table.metric]} of {cell.runs} runs" if table.metric in cell.partly else ""
        return [f"{'no control' if table.metric == 'lift' else some or 'not measured'}{_mark(table, cell)}"]
    if table.metric is not None:
        return [_bounded(cell, table.metric) + _mark(table, cell)]
    ranks = f"{cell.values['mean-rank']:.2f} / {cell.values['null-rank']:.2f}"
    return [ranks, _bounded(cell, "ocr-score") + _mark(table, cell)]


def seed_counts(row: Row) -> str:
    """``3``, or ``1-3`` if cells have different numbers of seeds."""
    counts = sorted({cell.seeds for cell in row.cells.values() if cell.seeds is not None})
    return "-".join(str(count) for count in counts[:: max(1, len(counts) - 1)])


def header(table: Table) -> list[str]:
    """Column names."""
    return [*(key.replace("_", "-") for key in table.by), "setting", "seeds", *table.associations]


def to_markdown(table: Table) -> str:
    """The table in Markdown with aligned numbers and its caption."""
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
    """Text escaped for a Markdown table."""
    for mark, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())


def to_csv(table: Table) -> str:
    """One line per cell, with every metric and its interval."""
    cells = list(flat_cells(table))
    rows = (map(files.spreadsheet_text, cell.values()) for cell in cells)
    return files.to_csv(map(files.spreadsheet_text, cells[0]), rows)


def to_json(table: Table) -> str:
    """The table as a JSON object, with one object per cell in ``cells``."""
    content = {"scoring": table.scoring, "caption": caption(table), "cells": list(flat_cells(table))}
    return json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2) + "\n"


def rendered(template: str, table: Table) -> str:
    """The table rendered by a template."""
    return templates().get_template(template).render(context(table))


def context(table: Table) -> dict[str, Any]:
    """The variables that the templates of a table use."""
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
    """The templates of ocr_eval/report; those for HTML escape their values."""
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
    **{mark: f"{{{mark}}}" for mark in "[]*"},  # after the end of a row they would be read as its options
}


def _tex_numbers(text: str) -> str:
    """Numbers in math mode, for a proper minus sign; flags as superscripts."""
    numbers = text.rstrip("*!? ")
    flags = text[len(numbers) :].replace(" ", "")
    shown = numbers if numbers[:1].isalpha() else f"${numbers}$"  # words, such as "no control", stay text
    return shown + (rf"\textsuperscript{{{flags}}}" if flags else "")


FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "tex": partial(rendered, "table.tex.j2"),
    "html": partial(rendered, "table.html.j2"),
}
