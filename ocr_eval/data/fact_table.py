"""Reads and checks a table of a user's own facts: a row per subject, a column per attribute.

A cell is a fact; an empty cell is one that a model may fill in by itself. The formats are csv, tsv, JSON lines,
parquet, a Hugging Face ``datasets`` folder, and JSON lines of prompt and completion, whose prompts are grouped by
wording. An error is one line that names row and column. Rows are counted as in a spreadsheet, whose heading is row 1.
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError, reason_of, unknown_name
from ocr_eval.common.files import read_bytes, to_csv
from ocr_eval.common.messages import warn
from ocr_eval.specs.association import CONTROL, TABLE_ENDINGS, repeated

#: Limits on a file's bytes and a cell's characters.
MOST_BYTES, MOST_CHARACTERS = 32_000_000, 200
#: Limits on columns of facts, cells in total, and characters in all possible splits of the prompts.
MOST_COLUMNS, MOST_CELLS, _MOST_PARTED = 100, 20_000_000, 500_000_000
#: Usual names of the column of subjects, which otherwise is the first one.
_SUBJECT = ("name", "subject", "person", "entity")
_MARKUP = re.compile(r"</?[A-Za-z!][^>]*>|<\||\|>|[{}]|\[/?INST\]|&[a-z]+;")
#: Texts that mark a missing value in other programs' tables, in lower case.
_MISSING = {"n/a", "#n/a", "null", "nan", "-", "--", "?"}
_FORMULA = re.compile(r"=|[@+-].*[(|!]")
_CONTROL = re.compile(f"[{CONTROL}]")
#: Maximum words of a subject that has to be found in prompts.
_MOST_WORDS = 5

Cell = str | None


@dataclass(frozen=True)
class FactTable:
    """Facts of distinct subjects.

    Attributes:
        subject: the name of the column of subjects.
        subjects: their names. [S]
        columns: each attribute's values, None where missing. [S]
        templates: those of attributes that were read from prompts.
    """

    subject: str
    subjects: tuple[str, ...]
    columns: Mapping[str, tuple[Cell, ...]]
    templates: Mapping[str, str]

    def to_csv(self) -> str:
        """The table as csv, which ``parse_csv`` reads."""
        rows = zip(self.subjects, *self.columns.values(), strict=True)
        return to_csv([self.subject, *self.columns], ([s, *(v or "" for v in row)] for s, *row in rows))


@dataclass(frozen=True)
class _Rows:
    """A table as read, unchecked: cells by row, and what messages call a row."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, Sequence[Any]]]
    unit: str = "row"
    templates: Mapping[str, str] | None = None


def read_facts(path: Path, subject: str | None = None, chosen: Sequence[str] | None = None) -> FactTable:
    """Read and check a table from a file or a dataset folder: its ``chosen`` columns, or all.

    ``subject`` is the column of subjects; None for the one called name, subject, person or entity, or else the first.
    Raises UserError: the table is unreadable or invalid (names row and column).
    """
    try:
        found = _read(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or reason_of(error)}).") from error
    return _checked(str(path), found, subject, chosen)


def parse_csv(text: str, subject: str) -> FactTable:
    """Read a table from the text that ``FactTable.to_csv`` writes. Raises UserError: it is invalid."""
    return _checked("table", _csv("table", text, ","), subject, None)


def _read(path: Path) -> _Rows:
    if path.is_dir():
        return _data_set(path)
    if not path.is_file():
        raise UserError(f"There is no file '{path}'. Give a csv, tsv, jsonl or parquet file, or a datasets folder.")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"{path} has {size / 1e6:.0f} MB; the limit is {MOST_BYTES / 1e6:.0f} MB. Split it.")
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    if kind not in TABLE_ENDINGS:
        raise UserError(f"{path}: unknown file type '{kind}'. Give csv, tsv, jsonl, parquet or a datasets folder.")
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, row {row}: byte {content[error.start]:#04x} is not UTF-8. Save it as UTF-8."
        ) from error
    if kind in (".csv", ".tsv"):
        return _csv(str(path), text, "\t" if kind == ".tsv" else ",")
    return _json_lines(str(path), text)


def _csv(origin: str, text: str, delimiter: str) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Sequence[Any]]] = []
    number = 1  # of lines a row may have several
    try:
        heading = [name.strip() for name in next(reader, [])]
        for number, row in enumerate(reader, 2):
            if any(map(str.strip, row)):
                if len(row) != len(heading):
                    cells = f"{len(row)} cell{'s'[: len(row) != 1]}, but the heading has {len(heading)}"
                    fix = "Leave missing cells empty" if len(row) < len(heading) else "Quote cells with the delimiter"
                    raise UserError(f"{origin}, row {number}: has {cells}. {fix}.")
                rows.append((number, row))
    except csv.Error as error:
        raise UserError(f"{origin}, row {number + 1}: is not {delimiter!r}-separated text ({error}).") from error
    return _Rows(heading, rows)


def _json_lines(origin: str, text: str) -> _Rows:
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{origin}, line {number}: is not a JSON object on one line ({reason_of(error)})."
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{origin}, line {number}: is not a JSON object ('{{\"name\": ...}}').")
        rows.append((number, row))
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    _check_cells(origin, len(rows), len(columns))
    if set(columns) == {"prompt", "completion"}:
        return _grouped(origin, [(number, row.get("prompt"), row.get("completion")) for number, row in rows])
    return _Rows(columns, [(number, [row.get(column) for column in columns]) for number, row in rows], "line")


def _check_cells(origin: str, rows: int, columns: int) -> None:
    if rows * columns > MOST_CELLS:
        raise UserError(
            f"{origin}: {rows:,} rows of {columns:,} columns have more than {MOST_CELLS:,} cells. Split the table."
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := repeated(key for key, _ in pairs)) is not None:
        raise ValueError(f"two columns are called '{twice}'")
    return dict(pairs)


def _parquet(path: Path) -> _Rows:
    import pandas as pd
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
        _check_cells(str(path), metadata.num_rows, metadata.num_columns)
        return _frame(pd.read_parquet(path))
    except UserError:
        raise
    except Exception as error:  # the library may raise anything about an arbitrary file
        raise UserError(f"{path} is not a parquet file ({reason_of(error)}).") from error


def _data_set(path: Path) -> _Rows:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"'{path}' is not the folder of a saved data set ({reason_of(error)}).") from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            raise UserError(
                f"'{path}' has the splits {', '.join(found)}. Give the folder of one: {path}/{next(iter(found))}."
            )
        (found,) = found.values()
    _check_cells(str(path), found.num_rows, found.num_columns)
    return _frame(found.to_pandas())


def _frame(frame: Any) -> _Rows:
    # objects, as from JSON, so that a missing number does not turn its column into floats
    cells = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return _Rows([str(name) for name in frame.columns], list(enumerate(cells, 1)))


def _grouped(origin: str, statements: Sequence[tuple[int, Any, Any]]) -> _Rows:
    """A table from prompts and completions: prompts share a wording and differ in the subject.

    Each prompt is split so that the number of occurrences of its subject, times that of its wording, is largest.
    Prompts that share no wording with another are skipped with a warning.
    """
    for number, *pair in statements:
        if not all(isinstance(each, str) and each.strip() for each in pair):
            raise UserError(f"{origin}, line {number}: prompt and completion must be text.")
    if sum(_MOST_WORDS * len(prompt.split()) * len(prompt) for _, prompt, _ in statements) > _MOST_PARTED:
        raise UserError(f"{origin}: its prompts are too long to find subjects in. Give a table with a subject column.")
    parted = [(number, _partings(prompt), completion) for number, prompt, completion in statements]
    subjects = Counter(subject for _, ways, _ in parted for subject, _ in ways)
    wordings = Counter(wording for _, ways, _ in parted for _, wording in ways)

    facts: dict[str, dict[str, str]] = {}
    first: dict[str, int] = {}
    left_out = 0
    for number, ways, completion in parted:
        # a wording occurs more than once, and at least as often as its subject
        possible = [(s, w) for s, w in ways if wordings[w] >= max(2, subjects[s])]
        if not possible:
            left_out += 1
            continue
        subject, wording = max(possible, key=lambda way: (subjects[way[0]] * wordings[way[1]], len(way[1])))
        value, had = " ".join(completion.split()), facts.setdefault(subject, {}).setdefault(wording, completion)
        if " ".join(had.split()) != value:
            raise UserError(
                f"{origin}, line {number}: {subject} has '{value}' here and '{had.strip()}' before; keep one."
            )
        first.setdefault(subject, number)
    if left_out:
        warn(f"{origin}: {left_out} of {len(statements)} prompts share no wording with another and are skipped.")
    asked = dict.fromkeys(wording for of in facts.values() for wording in of)
    columns = {wording: " ".join(re.sub(r"\{name\}('s)?", "", wording).split()) or wording for wording in asked}
    if len(set(columns.values())) < len(columns):
        columns = {wording: wording for wording in columns}
    rows = [(first[s], [s, *(of.get(wording) for wording in columns)]) for s, of in facts.items()]
    templates = {name: f"{wording} {{answer}}" for wording, name in columns.items()}
    return _Rows(["subject", *columns.values()], rows, "line", templates)


def _partings(prompt: str) -> list[tuple[str, str]]:
    """Every way to split a prompt into a subject and its wording."""
    words, ways = prompt.split(), []
    for i in range(len(words)):
        for j in range(i + 1, min(i + _MOST_WORDS, len(words)) + 1):
            subject = " ".join(words[i:j])
            name = subject.removesuffix("'s")
            slot = "{name}" + subject[len(name) :]
            if j - i < len(words):
                ways.append((name, " ".join([*words[:i], slot, *words[j:]])))
    return ways


def _checked(origin: str, found: _Rows, subject: str | None, chosen: Sequence[str] | None) -> FactTable:
    names = list(found.columns)
    if not names or not found.rows:
        raise UserError(f"{origin} has no rows below its heading. Add some.")
    twice = repeated(names)
    for place, name in enumerate(names, 1):
        if not name or not name.strip():
            raise UserError(f"{origin}, row 1, column {place}: the column has no name. Give it one.")
        if name == twice:
            raise UserError(f"{origin}, row 1: two columns are called '{name}'. Rename one.")
        if problem := _problem(name):
            raise UserError(f"{origin}, row 1, column {place}: the name {problem}")
    subject = subject or next((name for name in names if name.lower() in _SUBJECT), names[0])
    for name in (subject, *(chosen or ())):
        if name not in names:
            raise unknown_name(f"column of {origin}", name, names)
    if (twice := repeated(chosen or ())) is not None:
        raise UserError(f"{origin}: the column '{twice}' is named twice. Name it once.")
    attributes = [name for name in chosen or names if name != subject]
    if len(attributes) > MOST_COLUMNS:
        raise UserError(
            f"{origin} has {len(attributes):,} columns of facts; the limit is {MOST_COLUMNS}. Choose some with "
            "--columns."
        )
    places = {name: names.index(name) for name in (subject, *attributes)}
    facts: dict[str, dict[str, tuple[str, int]]] = {}
    for number, row in found.rows:
        where = f"{origin}, {found.unit} {number}"
        cells = {name: _cell(row[place], f"{where}, column '{name}'") for name, place in places.items()}
        who = cells.pop(subject)
        if who is None:
            raise UserError(f"{where}, column '{subject}': the subject is missing. Name it, or remove the row.")
        of = facts.setdefault(who, {})
        for name, value in cells.items():
            if value is None:
                continue
            had, before = of.setdefault(name, (value, number))
            if had != value:
                raise UserError(
                    f"{where}, column '{name}': {who} has '{value}' here and '{had}' in {found.unit} {before}. "
                    f"Keep one, or name a column of subjects other than '{subject}' with --subject."
                )
    for name in attributes:
        values = {of[name][0] for of in facts.values() if name in of}
        if len(values) < 2:
            what = f"everybody has '{values.pop()}'" if values else "nobody has a value"
            raise UserError(f"{origin}, column '{name}': {what}, so nothing can follow from it. Remove the column.")
    if not attributes:
        problem = f"has only the column of subjects ('{subject}'). Add a column of facts."
        if ";" in subject:
            problem = f"its cells are separated by ';' ('{subject}'). Save it with commas between cells."
        raise UserError(f"{origin}: {problem}")
    columns = {name: tuple(of[name][0] if name in of else None for of in facts.values()) for name in attributes}
    templates = {name: text for name, text in (found.templates or {}).items() if name in columns}
    return FactTable(subject, tuple(facts), columns, templates)


def _cell(value: Any, where: str) -> Cell:
    """A cell as text, None for an empty one."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if value is not None and not isinstance(value, str):
        if not isinstance(value, int | float) and not hasattr(value, "isoformat"):
            raise UserError(f"{where}: holds a {type(value).__name__}; a fact must be a word or a number.")
        value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    text = value.strip() if value else ""
    if text and (problem := _problem(text)):
        raise UserError(f"{where}: the cell {problem}")
    return text or None


def _problem(text: str) -> str | None:
    """Why a text cannot be a fact, to follow "the cell"; None if it can."""
    if len(text) > MOST_CHARACTERS:
        return f"has {len(text):,} characters; the limit is {MOST_CHARACTERS}. Shorten it to a fact."
    if "\t" in text:
        return f"{text!r} holds a tab. If tabs separate the cells, name the file .tsv; else remove it."
    if _CONTROL.search(text):
        return f"{text!r} holds a line break or a control character. Remove it."
    if found := _MARKUP.search(text):
        return f"'{text}' holds markup ('{found[0]}'). Write it as plain text."
    if _FORMULA.match(text):
        return f"'{text}' is a spreadsheet's formula. Export the values."
    if text.lower() in _MISSING:
        return f"'{text}' marks a missing value. Leave the cell empty."
    return None
