"""All settings of a run in text form, from which flags, variables, files of flags and axes of sweeps are derived.

A setting is a field of a spec, described there. Entries of a list are joined by ``+`` (``q_proj+v_proj``), values of
an axis are comma-separated (``0,0+2,all``), and integers may be ranges (``1-4,8``).
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ocr_eval.common.errors import UserError
from ocr_eval.common.yaml_files import in_words
from ocr_eval.specs.model import ModelSpec, TrainSpec
from ocr_eval.specs.run import DataSpec, RunSpec

#: Settings that have another name as the axis of a sweep.
PLURAL = {"model": "models", "assoc": "assocs", "seed": "seeds", "method": "methods", "variant": "variants"}
#: Maximum number of values of an axis; more are probably a typo.
_MOST_VALUES = 10_000
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_RANGE = re.compile(r"(\d{1,18})\s*-\s*(\d{1,18})")

Section = Literal["data", "train", "model", "run"]


@dataclass(frozen=True)
class Setting:
    """One field of a spec as text.

    Attributes:
        field: its type, rules, default and description.
    """

    name: str
    section: Section
    field: FieldInfo

    @property
    def axis(self) -> str:
        """Its name as the axis of a sweep."""
        return PLURAL.get(self.name, self.name)

    @property
    def default(self) -> str:
        """Its default as text. For training and the model, the model's definition has it."""
        if self.section == "run":
            return "0" if self.name == "seed" else "--seed"
        return self.text(self.field.default) if self.section == "data" else "the model's"

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @cached_property
    def _kind(self) -> Any:
        """Its type, without None, which means 'not set'."""
        kind = self.field.annotation
        return next(part for part in get_args(kind) if part is not NoneType) if NoneType in get_args(kind) else kind

    @property
    def _kinds(self) -> tuple[Any, ...]:
        return self._kind, *get_args(self._kind)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are valid values; empty for a number or a name."""
        literals = chain.from_iterable(get_args(kind) for kind in self._kinds if get_origin(kind) is Literal)
        return *literals, *self._extra.get("words", ())

    @property
    def is_list(self) -> bool:
        """Whether a value is a list."""
        return any(get_origin(kind) in (tuple, list) for kind in self._kinds)

    @property
    def is_whole(self) -> bool:
        """Whether it is an integer, which an axis may give as a range."""
        return self._kind is int

    @property
    def form(self) -> str:
        """What a value looks like, for help: ``<int>``, ``lora|qlora|full``."""
        if self.words and not self.is_list:
            return "|".join(self.words)
        return "<list>" if self.is_list else f"<{getattr(self._kind, '__name__', 'str')}>"

    @property
    def limits(self) -> str:
        """The range of a number, such as ``0<=x<1``; empty if it has none."""
        found = {key: getattr(rule, key) for rule in self.field.metadata for key in _SIGNS if hasattr(rule, key)}
        if len(found) == 2:
            (low, least), (high, most) = sorted(found.items())
            return f"{least:,g}{_SIGNS[low].replace('>', '<')}x{_SIGNS[high]}{most:,g}"
        return "".join(f"x{_SIGNS[key]}{bound:,g}" for key, bound in found.items())

    @cached_property
    def type(self) -> Any:
        """The type of a value, with its constraints."""
        rules = self.field.metadata
        kind = Annotated[(self._kind, *rules)] if rules else self._kind
        words = self._extra.get("words")
        return Literal[tuple(words)] | kind if words else kind

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type)

    def parse(self, text: object) -> Any:
        """Parse a value. Raises ValueError: invalid (says why)."""
        said = str(text).strip()
        entries = said if not self.is_list or said in self.words else re.split(r"\s*[+,]\s*", said)
        if not said or not all(entries):
            raise ValueError("An entry is empty.")
        try:
            return self._adapter.validate_python(entries)
        except ValidationError as error:
            raise ValueError(self._problem(said, error)) from error

    def parse_axis(self, text: object) -> tuple[Any, ...]:
        """Parse comma-separated values; integers are sorted.

        Raises:
            ValueError: an invalid or repeated value, or too many.
        """
        values: list[Any] = []
        for part in str(text).split(","):
            span = _RANGE.fullmatch(part.strip()) if self.is_whole else None
            if span is None:
                values.append(self.parse(part))
                continue
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise ValueError(f"The range {part.strip()} ends before it begins.")
            if len(values) + last - first >= _MOST_VALUES:
                raise ValueError(f"More than {_MOST_VALUES:,} values: give fewer.")
            values += map(self.parse, range(first, last + 1))
        twice = next((text for text, count in Counter(map(self.text, values)).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is named twice.")
        return tuple(sorted(values) if self.is_whole else values)

    def text(self, value: Any) -> str:
        """A value as text, which ``parse`` reads."""
        return "+".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)

    def _problem(self, said: str, error: ValidationError) -> str:
        reason = f"It {in_words(error.errors()[-1])}."  # of a word or a list: what is wrong with the list
        if self.is_list:
            return f"{reason} {self.field.description}"
        if self.words:
            close = difflib.get_close_matches(said, self.words, n=1)
            return f"{f'Did you mean {close[0]!r}? ' if close else ''}Choose from {', '.join(self.words)}."
        return reason


def _of(section: Section, kind: Any, *names: str) -> dict[str, Setting]:
    return {name: Setting(name, section, kind.model_fields[name]) for name in names or kind.model_fields}


#: Seeds as flags give them (``specs.run.run_seeds``); a RunSpec has only the first and the last.
_DATA_SEED = FieldInfo.from_annotated_attribute(
    int, Field(ge=0, description="Seed of the data only (pairs, names, groups).")
)
_SEEDS = {
    **_of("run", RunSpec, "seed"),
    "data_seed": Setting("data_seed", "run", _DATA_SEED),
    **_of("run", RunSpec, "train_seed"),
}

#: All settings of a run by name, except its model and association.
SETTINGS: Mapping[str, Setting] = {
    **_SEEDS,
    **_of("data", DataSpec),
    **_of("train", TrainSpec),
    **_of("model", ModelSpec, "dtype", "attention"),
}

#: Settings that a sweep can vary, by axis, besides models and associations; all runs share one precision.
AXES: Mapping[str, Setting] = {each.axis: each for each in SETTINGS.values() if each.name != "dtype"}


def section(name: Section, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that belong to a section."""
    return {key: value for key, value in settings.items() if SETTINGS[key].section == name}


def given(name: str, value: Any) -> Any:
    """A setting's value as given in Python; lists may also be given as text.

    Raises:
        UserError: no value, or an invalid one.
    """
    if value is None:
        raise UserError(f"'{name}' has no value. Leave it out for its default.")
    if not isinstance(value, str):
        if name in ("method", "prevent") and (name == "method" or not isinstance(value, list | tuple)):
            raise UserError(f"'{name}' must be a string, got {value!r}.")
        return value
    try:
        return SETTINGS[name].parse(value) if SETTINGS[name].is_list else value
    except ValueError as error:
        raise UserError(f"'{name}': {error}") from error
