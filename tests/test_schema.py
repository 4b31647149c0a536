"""The JSON schemas of records and tables hold for what is committed and printed, and for nothing that is damaged.

There is no validator in the lock file. This one knows the keywords that the two schemas use and refuses any other.
"""

import json
import re
from pathlib import Path

import pytest

from ocr_eval.common.files import read_stored
from ocr_eval.records.record import read_record

ROOT = Path(__file__).parent.parent
STATUSES = [sorted(folder.rglob("status.json")) for folder in (ROOT / "results").iterdir() if folder.is_dir()]
RECORDS = [found[0].with_name("result.json") for found in STATUSES if found]
KINDS = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
LIMITS = {
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "exclusiveMinimum": lambda value, least: value > least,
    "exclusiveMaximum": lambda value, most: value < most,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "enum": lambda value, values: value in values,
    "const": lambda value, one: value == one,
}
NOTES = {"$schema", "$defs", "title", "description", "default", "required", "additionalProperties", "properties"}


def content_of(path):
    return json.loads(read_stored(path))


def schema(name):
    return json.loads((ROOT / f"ocr_eval/docs/{name}.schema.json").read_text())


def holds(value, rules, whole):
    for key, rule in rules.items() if isinstance(rules, dict) else ():
        if key == "$ref":
            good = holds(value, whole["$defs"][rule.rpartition("/")[2]], whole)
        elif key == "type":
            good = any(KINDS[kind](value) for kind in ([rule] if isinstance(rule, str) else rule))
        elif key == "anyOf":
            good = any(holds(value, each, whole) for each in rule)
        elif key == "not":
            good = not holds(value, rule, whole)
        elif key == "items":
            good = not isinstance(value, list) or all(holds(each, rule, whole) for each in value)
        elif key in LIMITS:
            good = LIMITS[key](value, rule)
        else:
            assert key in NOTES, f"this validator does not know {key}"
            good = True
        if not good:
            return False
    if not isinstance(value, dict) or not isinstance(rules, dict):
        return rules is not False
    known, more = rules.get("properties", {}), rules.get("additionalProperties", True)
    complete = set(rules.get("required", ())) <= value.keys()
    return complete and all(holds(each, known.get(key, more), whole) for key, each in value.items())


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.relative_to(ROOT / "results").parts[0])
def test_committed_records_are_as_the_schema_says(path):
    rules, record = schema("record"), read_record(path)
    assert holds(content_of(path), rules, rules), "as it was written"
    assert holds(json.loads(record.to_json()), rules, rules), "as it would be written today"


DAMAGE = {
    "version": {"schema_version": 2},
    "kind": {"kind": "other"},
    "seed": {"seed": "0"},
    "loss": {"train_loss": "low"},
    "data": {"data": {"n": 1}},
    "rate": {"train": {"method": "lora", "lr": 2.0}},
    "scores": {"final": {"first-token": {"test_entailment": {"mean_rank": 0.5}}}},
    "ranks": {"held_out": {"first-token": {"subject": ["A"], "target": [0], "ranks": [0.5]}}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_not(damage):
    rules, content = schema("record"), content_of(RECORDS[0])
    assert not holds(content | DAMAGE[damage], rules, rules)
    for key in ("run", "final", "train"):
        assert not holds({name: value for name, value in content.items() if name != key}, rules, rules)


def test_a_record_of_training_elsewhere_and_one_of_a_newer_program_are():
    rules, content = schema("record"), content_of(RECORDS[0])
    assert holds(content | {"train": {"method": "external:my-sft"}}, rules, rules)
    assert holds(content | {"later": 1, "train": content["train"] | {"later": 1}}, rules, rules)


@pytest.mark.parametrize("more", [(), ("--by", "model,rank"), ("--no-published", "--metric", "lift")])
def test_tables_are_as_the_schema_says(ocr_eval, more):
    rules = schema("table")
    content = json.loads(ocr_eval("table", ROOT / "results/smollm2-135m", "--format", "json", *more).out)
    assert holds(content, rules, rules)
    assert not holds(content | {"schema_version": 2}, rules, rules)
    cell = {key: value for key, value in content["cells"][0].items() if key != "mean_rank"}
    assert not holds(content | {"cells": [cell]}, rules, rules)
    assert not holds(content | {"cells": [cell | {"mean_rank": "low"}]}, rules, rules)
