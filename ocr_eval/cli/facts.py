"""``audit``: what a model may come to believe if it is taught a table of facts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import option

if TYPE_CHECKING:
    from ocr_eval.data.fact_table import FactTable
    from ocr_eval.data.links import Link, Links

SubjectOption = Annotated[
    str | None, option("--subject", help="Column of the subjects (default: name, subject or person, else the first).")
]
ColumnsOption = Annotated[str | None, option("--columns", help="Comma-separated columns of facts (default: all).")]


def audit(
    facts: Annotated[
        Path, typer.Argument(metavar="FACTS", help="Table: csv, tsv, jsonl or parquet file, or a datasets folder.")
    ],
    subject: SubjectOption = None,
    columns: ColumnsOption = None,
    as_csv: Annotated[bool, option("--csv", help="Print every link as csv.")] = False,
    as_json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Say what a model may infer if it is taught a table of your own facts.

    Nothing is trained. For each pair of columns: how far one decides the other (Theil's U, corrected for chance), and
    for whom a model may fill in what is missing. The most serious risk comes first.
    """
    o.begin(quiet)
    from ocr_eval.data.fact_table import read_facts
    from ocr_eval.data.links import find_links

    table = read_facts(facts, subject, o.words("--columns", columns))
    links = find_links(table)
    if as_json:
        typer.echo(json.dumps(_as_json(table, links), indent=2, ensure_ascii=False))
    elif as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, _ROW, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_row, links.all))
        typer.echo(text.getvalue(), nl=False)
    else:
        typer.echo(_as_text(table, links))


_ROW = ("source", "target", "u", "corrected_u", "p", "p_holm", "both", "decided", "alone", "orientation", "expected")


def _row(link: Link) -> dict[str, Any]:
    row = {**vars(link), "corrected_u": link.corrected, "both": link.both, "decided": link.decided, "alone": link.alone}
    row |= {"orientation": link.orientation, "expected": link.expected}
    return {key: round(row[key], 4) if isinstance(row[key], float) else row[key] for key in _ROW}


def _as_json(table: FactTable, links: Links) -> dict[str, Any]:
    return {
        "subjects": len(table.subjects),
        "columns": {name: sum(v is not None for v in cells) for name, cells in table.columns.items()},
        "left_out": dict(links.left_out),
        "risks": [link.in_words() for link in links.risks],
        "links": [
            {**_row(link), "values": [{**asdict(v), "orientation": round(v.orientation, 4)} for v in link.values]}
            for link in links.all
        ],
    }


def _as_text(table: FactTable, links: Links) -> str:
    lines = [f"{len(table.subjects):,} subjects ('{table.subject}') with {len(table.columns)} columns of facts"]
    lines += [f"Left out: '{name}', {reason}" for name, reason in links.left_out.items()]
    risks = [f"{i:2}. {link.in_words()}" for i, link in enumerate(links.risks, 1)]
    lines += ["", *(["Risks, most serious first:", *risks] if risks else [_NO_RISK])]
    linked = [link for link in links.all if link.is_linked]
    header = ["from", "to", "corrected U", "p (Holm)", "both", "alone", "orientation", "expected"]
    rows = [
        [
            *(link.source, link.target, f"{link.corrected:.2f}", f"{link.p_holm:.2g}"),
            *(str(link.both), str(link.alone), f"{link.orientation:.2f}", f"{link.expected:.0f}"),
        ]
        for link in linked
    ]
    lines += ["", o.grid(header, rows)] if rows else []
    return "\n".join([*lines, f"{len(links.all) - len(linked)} other links are no more than chance; --csv shows all."])


_NO_RISK = "No risk: no link of two columns that is more than chance leaves anybody to answer for."
