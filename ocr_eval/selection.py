"""Which records: their settings by name, filters over them, and the rows that they are grouped into. Pure.

A setting is anything a run was told and that may differ between runs: model, method, every field of the data
protocol and of training, precision, attention, base weights, code, seed. Records that differ in any of them but the
seed are never averaged, and neither are those of two associations of one name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ocr_eval.errors import UserError, unknown_name
from ocr_eval.records import Record
from ocr_eval.specs import DataSpec, TrainSpec

#: The order of columns; a user's own associations follow by name.
PUBLISHED_ORDER = ("city-language", "city-language-cf", "country-code", "profession-color", "sport-music")

#: What rows can be made of (``--by``).
ROW_KEYS = ("model", *TrainSpec.model_fields, *DataSpec.model_fields, "dtype", "attention", "base", "code", "seed")

#: What records can be chosen by (``--filter``).
FILTER_KEYS = (*ROW_KEYS, "association", "kind", "facts_learned")

#: Settings that an untold row is told apart by; the seed is averaged over.
_TOLD_APART = tuple(key for key in ROW_KEYS if key != "seed")

Settings = Mapping[str, str]
Condition = Mapping[str, tuple[str, ...]]


def settings_of(record: Record) -> dict[str, str]:
    """Every key of ``FILTER_KEYS`` with its value as text: numbers in their shortest form, lists by commas."""
    return settings_of_each([record])[0]


def settings_of_each(records: Sequence[Record]) -> list[dict[str, str]]:
    """``settings_of`` each record. Specs that records share, as those read together do, are put into words once."""
    said: dict[int, dict[str, str]] = {}

    def words(spec: TrainSpec | DataSpec) -> dict[str, str]:
        if id(spec) not in said:
            said[id(spec)] = {key: _text(getattr(spec, key)) for key in type(spec).model_fields}
        return said[id(spec)]

    return [
        {
            "model": record.model,
            **words(record.train),
            **words(record.data),
            "dtype": record.dtype,
            "attention": record.attention,
            "base": record.base_identity,
            "code": record.code,
            "seed": str(record.seed),
            "association": record.association,
            "kind": record.kind,
            "facts_learned": _text(record.facts_learned),
        }
        for record in records
    ]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def row_keys(flag: str, text: str) -> tuple[str, ...]:
    """The keys of ``model,rank``.

    Raises:
        UserError: not a key that rows can be made of.
    """
    return tuple(_key(flag, part, ROW_KEYS) for part in text.split(","))


def parse_condition(flag: str, text: str) -> Condition:
    """``model=a,lr=1e-3,2e-3``: every key must hold, with any of its values.

    Raises:
        UserError: not of that form, or a key that records do not have.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    key = None
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if sign:
            key = _key(flag, name, FILTER_KEYS)
        elif key is None:
            raise UserError(f"{flag} '{text}': give KEY=VALUE, for example 'method=lora' or 'seed=0,1'.")
        else:
            value = name
        wanted[key] = (*wanted.get(key, ()), value.strip())
    return wanted


def _key(flag: str, name: str, keys: Iterable[str]) -> str:
    key = name.strip().replace("-", "_")
    key = {"assoc": "association"}.get(key, key)
    if key not in keys:
        raise unknown_name(f"key of {flag}:", name, [key.replace("_", "-") for key in keys])
    return key


def select(records: Sequence[Record], conditions: Iterable[Condition]) -> list[Record]:
    """The records for which every condition holds.

    Raises:
        UserError: none does; says which values there are.
    """
    conditions = list(conditions)
    if not conditions:
        return list(records)
    told = settings_of_each(records)
    chosen = [r for r, settings in zip(records, told, strict=True) if all(matches(settings, c) for c in conditions)]
    if records and not chosen:
        key = next((k for c in conditions for k in c if not any(matches(s, {k: c[k]}) for s in told)), None)
        if key is None:
            raise UserError("No run meets all conditions together; each alone is met. Drop one of them.")
        there = sorted({settings[key] for settings in told}, key=natural)
        asked = next(c[key] for c in conditions if key in c)
        raise UserError(f"No run has {key.replace('_', '-')}={','.join(asked)}. There are: {', '.join(there[:20])}.")
    return chosen


def matches(settings: Settings, condition: Condition) -> bool:
    """Whether a record's settings meet a condition; numbers compare as numbers (2e-3 is 0.002)."""
    return all(any(_same(settings[key], value) for value in values) for key, values in condition.items())


def _same(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False


def natural(text: str) -> tuple[Any, ...]:
    """A sort key that puts numbers in the order of their size, also inside words."""
    try:
        return (0, float(text), "")
    except ValueError:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)  # words and numbers in turn
        return (1, 0.0, tuple((float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)))


@dataclass(frozen=True)
class RowKey:
    """What tells a row from the others.

    Attributes:
        labels: the values of the keys that rows were asked to be made of.
        setting: the method, and whatever else differs among the rows of these labels.
    """

    labels: tuple[str, ...]
    setting: str

    @property
    def name(self) -> str:
        """Labels and setting in one line."""
        return ", ".join(part for part in (*self.labels, self.setting) if part)


def group_rows(
    records: Sequence[Record], by: Sequence[str] = ("model",), but: Sequence[str] = ()
) -> dict[RowKey, list[Record]]:
    """Records by row, in a stable order; only records of one row may be averaged.

    Args:
        records: of any settings.
        by: the keys that rows are made of.
        but: keys that do not tell rows apart; records of one row that differ in them may not be averaged.
    """
    told = settings_of_each(records)
    labels = [tuple(settings[key] for key in by) for settings in told]
    values: dict[tuple[str, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    rest = [key for key in _TOLD_APART if key not in by and key not in but]
    for label, settings in zip(labels, told, strict=True):
        for key in rest:
            values[label][key].add(settings[key])
    differing = {label: [key for key in rest if len(of[key]) > 1 and key != "method"] for label, of in values.items()}
    groups: dict[RowKey, list[Record]] = defaultdict(list)
    contents: dict[tuple[tuple[str, ...], str], set[str]] = defaultdict(set)
    for record, label in zip(records, labels, strict=True):
        contents[label, record.association].add(record.association_digest)
    for record, label, settings in zip(records, labels, told, strict=True):
        parts = [] if "method" in by else [settings["method"]]
        parts += [settings[key] if key == "model" else f"{key}={settings[key]}" for key in differing[label]]
        if len(contents[label, record.association]) > 1:
            parts.append(f"{record.association} as of {record.association_digest or 'an older version'}")
        groups[RowKey(label, ", ".join(parts))].append(record)
    order = sorted(groups, key=lambda row: (*map(natural, row.labels), natural(row.setting)))
    return {key: groups[key] for key in order}


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


def shared_protocol(records: Sequence[Record], keys: Sequence[str]) -> dict[str, str]:
    """Those fields of the data protocol that have one value in all records, with it."""
    values = {key: {getattr(record.data, key) for record in records} for key in keys}
    return {key: _text(next(iter(of))) for key, of in values.items() if len(of) == 1}
