"""Selecting records: their settings by name, and filters over them. Pure.

A setting is anything that may differ between runs: model, method, every field of the data protocol and of training,
precision, attention, base weights, results version, seeds.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.records.record import Record
from ocr_eval.specs.model import Training, TrainSpec
from ocr_eval.specs.run import DataSpec
from ocr_eval.specs.strict import Strict

#: What rows can be made of (``--by``).
ROW_KEYS = (
    "model",
    *TrainSpec.model_fields,
    *DataSpec.model_fields,
    "dtype",
    "attention",
    "base",
    "results",
    "code",
    "seed",
    "train_seed",
)

#: What records can be chosen by (``--filter``).
FILTER_KEYS = (*ROW_KEYS, "association", "kind", "premises_hold")

#: The value of settings of external training.
UNKNOWN = "unknown"

Settings = Mapping[str, str]
Condition = Mapping[str, tuple[str, ...]]


def settings_of(record: Record) -> dict[str, str]:
    """Every key of ``FILTER_KEYS`` with its value as text: numbers in their shortest form, lists comma-separated.

    Settings of a newer program that this one does not know are ``train.<key>``; those of external training are unknown.
    """
    return {
        "model": record.model,
        **_words("train", record.train, TrainSpec),
        **_words("data", record.data, DataSpec),
        "dtype": record.dtype,
        "attention": record.attention,
        "base": record.base_identity,
        "results": str(record.results_version) if record.results_version else f"0, code {record.code}",
        "code": record.code,
        "seed": str(record.seed),
        "train_seed": str(record.training_seed) if isinstance(record.train, TrainSpec) else UNKNOWN,
        "association": record.association,
        "kind": record.kind,
        "premises_hold": text_of(record.premises_hold),
    }


@lru_cache(maxsize=8192)  # many records share a spec
def _words(section: str, spec: Training | DataSpec, kind: type[Strict]) -> dict[str, str]:
    newer = {f"{section}.{key}": text_of(value) for key, value in (spec.model_extra or {}).items()}
    return {key: text_of(getattr(spec, key, UNKNOWN)) for key in kind.model_fields} | newer


def text_of(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def row_keys(flag: str, text: str) -> tuple[str, ...]:
    """The keys of ``model,rank``.

    Raises:
        UserError: not a key that rows can be made of, or one is repeated.
    """
    keys = tuple(_key(flag, part, ROW_KEYS) for part in text.split(","))
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{flag} '{text}' names {twice[0].replace('_', '-')} twice. Give each once.")
    return keys


def parse_condition(flag: str, text: str) -> Condition:
    """``model=a,lr=1e-3,2e-3``: every key must hold, with any of its values.

    Raises:
        UserError: not of that form, or a key that records do not have.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    key = None
    for part in text.split(","):
        name, sign, value = part.partition("=")
        if sign and (key is None or ":" not in name):  # a value may be a method with settings, 'decay:strength=1'
            key = _key(flag, name, FILTER_KEYS)
        elif key is None:
            raise UserError(f"{flag} '{text}': give KEY=VALUE, for example 'method=lora' or 'seed=0,1'.")
        else:
            value = part
        wanted[key] = (*wanted.get(key, ()), value.strip())
    return wanted


def _key(flag: str, name: str, keys: Iterable[str]) -> str:
    key = name.strip().replace("-", "_")
    key = {"assoc": "association", "facts_learned": "premises_hold"}.get(key, key)
    if key not in keys:
        raise unknown_name(f"key of {flag}:", name, [key.replace("_", "-") for key in keys])
    return key


def select(records: Sequence[Record], conditions: Iterable[Condition]) -> list[Record]:
    """The records that meet every condition.

    Raises:
        UserError: none does; the message lists the available values.
    """
    conditions = list(conditions)
    if not conditions:
        return list(records)
    of_each = [settings_of(record) for record in records]
    chosen = [r for r, settings in zip(records, of_each, strict=True) if all(matches(settings, c) for c in conditions)]
    if records and not chosen:
        asked = [(key, values) for condition in conditions for key, values in condition.items()]
        unmet = next((one for one in asked if not any(matches(of, dict([one])) for of in of_each)), None)
        if unmet is None:
            raise UserError("No run meets all conditions at once, although each is met by some run. Drop one of them.")
        key, values = unmet
        there = sorted({settings[key] for settings in of_each}, key=natural)
        raise UserError(f"No run has {key.replace('_', '-')}={','.join(values)}. Available: {', '.join(there[:20])}.")
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
    """A sort key that orders numbers by value, also inside words."""
    try:
        return (0, float(text), "")
    except ValueError:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)  # words and numbers in turn
        return (1, 0.0, tuple((float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)))
