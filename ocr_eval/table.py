"""Records -> the mean-rank table -> md, csv or json. Pure.

A row is a model under one setting (method, data protocol, training, precision, code); runs of different
settings are never averaged. A cell is one association over the row's seeds.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from ocr_eval import intervals
from ocr_eval.records import Record
from ocr_eval.specs import Scoring

#: The order of columns; a user's own associations follow by name.
PUBLISHED_ORDER = ("city-language", "city-language-cf", "country-code", "profession-color", "sport-music")

#: A sentence says that facts were inferred when mean rank is below its null at this permutation p-value.
SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Cell:
    """One association over the seeds of a row.

    Attributes:
        mean_rank: mean over seeds; 0 is perfect.
        null_rank: mean over seeds of the null rank; None in published rows, which do not state it.
        ocr_score: 1 - mean_rank / null_rank; None in published rows.
        interval: 95 % bootstrap interval of the OCR score, over subjects and seeds; None in published rows.
        p: permutation p-value of "mean rank is below its null"; None in published rows.
        seeds: how many runs; None in published rows.
        facts_learned: whether the facts were learned in every run; None in published rows.
    """

    mean_rank: float
    null_rank: float | None = None
    ocr_score: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    seeds: int | None = None
    facts_learned: bool | None = None


@dataclass(frozen=True)
class Row:
    """A model under one setting, or a published row."""

    model: str
    setting: str
    published: bool
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """The mean-rank table."""

    scoring: Scoring
    associations: tuple[str, ...]
    rows: tuple[Row, ...]


def build_table(records: Sequence[Record], scoring: Scoring, published: dict[str, dict[str, float]]) -> Table:
    """Group records into rows and cells, and add the published rows.

    Args:
        records: finished runs.
        scoring: which scoring to show.
        published: published mean ranks by model and association; may be empty.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no records to make a table of")
    rows = [
        Row(model, setting, False, {name: _cell(runs, scoring) for name, runs in by_association(group).items()})
        for (model, setting), group in group_by_row(records).items()
    ]
    rows += [
        Row(model, "published", True, {name: Cell(mean_rank=rank) for name, rank in cells.items()})
        for model, cells in published.items()
    ]
    return Table(scoring, tuple(column_order(name for row in rows for name in row.cells)), tuple(rows))


def group_by_row(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by model and setting, in a stable order; only records of one group may be averaged."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record, setting in zip(records, _setting_labels(records), strict=True):
        groups[record.model, setting].append(record)
    return {key: groups[key] for key in sorted(groups)}


def by_association(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by association, in the order of columns, each by seed."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.seed):
        groups[record.association].append(record)
    return {name: groups[name] for name in column_order(groups)}


def column_order(names: Iterable[str]) -> list[str]:
    """Associations in the published order, a user's own after them by name."""
    there = set(names)
    return [name for name in PUBLISHED_ORDER if name in there] + sorted(there - set(PUBLISHED_ORDER))


def _cell(runs: Sequence[Record], scoring: Scoring) -> Cell:
    finding = [run.final[scoring]["test_entailment"] for run in runs]
    mean_rank = sum(score.mean_rank for score in finding) / len(finding)
    null_rank = sum(score.null_rank for score in finding) / len(finding)
    ranks = [run.held_out[scoring].subject_ranks() for run in runs]
    estimate = intervals.ocr_score(ranks)
    return Cell(
        mean_rank=mean_rank,
        null_rank=null_rank,
        ocr_score=1 - mean_rank / null_rank,
        interval=(estimate.low, estimate.high),
        p=intervals.permutation_p(ranks),
        seeds=len(runs),
        facts_learned=all(run.facts_learned for run in runs),
    )


def _setting_labels(records: Sequence[Record]) -> list[str]:
    """For each record, its method and whatever else differs among the records of its model."""
    flat = [_settings(record) for record in records]
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record, settings in zip(records, flat, strict=True):
        for key, value in settings.items():
            values[record.model][key].add(value)
    labels = []
    for record, settings in zip(records, flat, strict=True):
        differing = [f"{key}={value}" for key, value in settings.items() if len(values[record.model][key]) > 1]
        labels.append(", ".join([record.train.method, *differing]))
    return labels


def _settings(record: Record) -> dict[str, str]:
    settings: dict[str, Any] = {
        **record.data.model_dump(mode="json"),
        **record.train.model_dump(mode="json", exclude={"method"}),
        "dtype": record.dtype,
        "base": record.base_identity[:24],
        "code": record.code,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}


def to_markdown(table: Table) -> str:
    """The table in Markdown, numbers aligned, with a caption that says how to read a cell."""
    header = ["model", "setting", "seeds", *table.associations]
    body = [
        [row.model, row.setting, _seeds(row), *(_text(row.cells.get(name)) for name in table.associations)]
        for row in table.rows
    ]
    align = ["left", "left", "right", *("right" for _ in table.associations)]
    text = tabulate(body, header, tablefmt="github", colalign=align, disable_numparse=True)
    return f"{text}\n\n{caption(table)}\n"


def caption(table: Table) -> str:
    """How to read the table."""
    parts = [
        f"Held-out entailments, {table.scoring} scoring: mean rank / null rank, OCR score [interval].",
        "Rank 0 is perfect; the null rank is what a model that only knows which answers occur would get;",
        "OCR score = 1 - mean rank / null rank, with its 95 % bootstrap interval.",
    ]
    if any(cell.facts_learned is False for row in table.rows for cell in row.cells.values()):
        parts.append(
            "! the facts were not learned (top-1 under 95 %): the rank says nothing of out-of-context reasoning."
        )
    if any(cell.seeds == 1 for row in table.rows for cell in row.cells.values()):
        parts.append("* one seed: the interval is over subjects only.")
    if any(row.published for row in table.rows):
        parts.append(
            "Published rows are of Huang et al. (2025): full fine-tuning of 7-9B models, ten candidates, no null given."
        )
    return " ".join(parts)


def _seeds(row: Row) -> str:
    counts = sorted({cell.seeds for cell in row.cells.values() if cell.seeds is not None})
    return "-".join(str(count) for count in counts[:: max(1, len(counts) - 1)])


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.null_rank is None:
        return f"{cell.mean_rank:.2f}"
    assert cell.interval is not None
    low, high = cell.interval
    flags = ("*" if cell.seeds == 1 else "") + ("" if cell.facts_learned else " !")
    return f"{cell.mean_rank:.2f} / {cell.null_rank:.2f}, {cell.ocr_score:+.2f} [{low:+.2f}, {high:+.2f}]{flags}"


def to_csv(table: Table) -> str:
    """A line a cell, long format."""
    out = io.StringIO()
    fields = ["model", "setting", "published", "scoring", "association", "mean_rank", "null_rank", "ocr_score"]
    writer = csv.DictWriter(
        out, [*fields, "ocr_score_low", "ocr_score_high", "p", "seeds", "facts_learned"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(_flat_cells(table))
    return out.getvalue()


def to_json(table: Table) -> str:
    """The table as a JSON object, a line an object of ``cells``."""
    cells = list(_flat_cells(table))
    return json.dumps({"scoring": table.scoring, "caption": caption(table), "cells": cells}, indent=2) + "\n"


def _flat_cells(table: Table) -> Iterable[dict[str, Any]]:
    for row in table.rows:
        for name in table.associations:
            if name in row.cells:
                cell = asdict(row.cells[name])
                low, high = cell.pop("interval") or (None, None)
                yield {
                    "model": row.model,
                    "setting": row.setting,
                    "published": row.published,
                    "scoring": table.scoring,
                    "association": name,
                    **cell,
                    "ocr_score_low": low,
                    "ocr_score_high": high,
                }


FORMATS = {"md": to_markdown, "csv": to_csv, "json": to_json}


def finding(records: Sequence[Record], scoring: Scoring) -> str:
    """One sentence on what the runs show: did the models generalize, did they hallucinate."""
    parts = [
        _clause("a true link", "it generalized", "it did not generalize", records, "causal", scoring),
        _clause("an arbitrary link", "it hallucinated", "it did not hallucinate", records, "spurious", scoring),
    ]
    return "; ".join(part for part in parts if part) + "." if any(parts) else ""


def _clause(link: str, yes: str, no: str, records: Sequence[Record], kind: str, scoring: Scoring) -> str:
    runs = sorted((r for r in records if r.kind == kind), key=lambda run: (run.association, run.seed))
    if not runs:
        return ""
    where = f"on {', '.join(sorted({run.association for run in runs}))} ({link})"
    learned = [run for run in runs if run.facts_learned]
    if not learned:
        return f"{where} the facts were not learned, so nothing can be said"
    left_out = f", leaving out {len(runs) - len(learned)} of {len(runs)} runs that did not learn their facts,"
    cell = _cell(learned, scoring)
    assert cell.p is not None
    return (
        f"{where}{left_out if len(learned) < len(runs) else ''} {yes if cell.p <= SIGNIFICANT else no}: "
        f"the held-out answer ranks {cell.mean_rank:.2f} where {cell.null_rank:.2f} is the null "
        f"(OCR score {cell.ocr_score:+.2f} of 1, permutation p {cell.p:.2g})"
    )
