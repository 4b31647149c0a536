"""The base of all specs: frozen, strict, and hashed so that new fields do not rename finished runs."""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from ocr_eval.common import numbers

SCHEMA_VERSION: Literal[1] = 1
#: Version of the numbers that runs give. Raise it by hand when they change (tests/test_golden.py reminds you): runs of
#: another version are rerun, and are kept apart in tables. Records from before there were versions have 0.
RESULTS_VERSION = 1

#: Turns lists, from YAML or callers, into tuples, so that specs are hashable.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


def form(pattern: str, allowed: str) -> AfterValidator:
    """A text's form, as a regular expression, and in words for errors: it should be ``allowed``."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("form", "should be {allowed}", {"allowed": allowed})
        return text

    return AfterValidator(check)


class Strict(BaseModel):
    """Frozen; rejects unknown keys, type conversions and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    _numbers = field_validator("*")(numbers.checked)

    @classmethod
    def legacy(cls) -> dict[str, Any]:
        """The legacy value of each field added later, which reproduces runs from before the field existed."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {
            name: extra["legacy"] for name, extra in extras.items() if isinstance(extra, dict) and "legacy" in extra
        }

    def identity(self) -> dict[str, Any]:
        """The fields that identify a run: all except those at their legacy value.

        So a new field renames no finished run, whatever its default.
        """
        legacy = json.loads(json.dumps(self.legacy()))
        dumped = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in legacy or value != legacy[name]}


def added_field(default: Any, legacy: Any, words: Sequence[str] = (), **rules: Any) -> Any:
    """A field of a spec that older runs do not have.

    Args:
        default: the value in new runs.
        legacy: the value that reproduces runs from before the field existed. Never changes, unlike the default.
        words: words that a flag may give in place of a value (specs/settings.py).
        rules: arguments of pydantic's ``Field``.
    """
    return Field(default, json_schema_extra={"legacy": legacy, "words": list(words)}, **rules)
