"""What all specs are: frozen, strict, and named so that finished runs keep their names."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ocr_eval.common import numbers

SCHEMA_VERSION: Literal[1] = 1
#: Which numbers a run gives. Raise it by hand when they change (tests/test_golden.py reminds): runs of another version
#: are repeated, and apart in tables. Records from before there were versions have 0.
RESULTS_VERSION = 1


#: Lets a field of tuples take the lists of YAML and of callers, so that specs hash.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Strict(BaseModel):
    """Frozen, no unknown keys, no conversions, no numbers but finite ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    _numbers = field_validator("*")(numbers.checked)

    @classmethod
    def legacy(cls) -> dict[str, Any]:
        """The legacy value of each field that was added later: what reproduces runs from before it existed."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {
            name: extra["legacy"] for name, extra in extras.items() if isinstance(extra, dict) and "legacy" in extra
        }

    def identity(self) -> dict[str, Any]:
        """What tells one run from another: all fields, but for those that have their legacy value.

        So a new field changes the name of no finished run, whatever default it is given.
        """
        legacy = json.loads(json.dumps(self.legacy()))
        dumped = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in legacy or value != legacy[name]}


def added_field(default: Any, legacy: Any, words: Sequence[str] = (), **rules: Any) -> Any:
    """A field of a spec that finished runs do not have.

    Args:
        default: what new runs have.
        legacy: what runs had before there was the field; frozen with it, and never simply today's default.
        words: what a flag may say in place of a value (specs/settings.py).
        rules: as pydantic's ``Field`` takes them.
    """
    return Field(default, json_schema_extra={"legacy": legacy, "words": list(words)}, **rules)
