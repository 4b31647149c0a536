"""Paths of shipped files (in a checkout or a wheel), and strict reading of YAML.

This is the only module that knows the layout of the repository. YAML is safe-loaded; repeated keys are
rejected here, unknown keys and wrong types by the pydantic model that a file is parsed into.
"""

import re
from collections.abc import Hashable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ocr_eval.common.errors import UserError, shown, unknown_name
from ocr_eval.common.files import read_bytes

_PACKAGE = Path(__file__).resolve().parent.parent
_SHIPPED = _PACKAGE / "_shipped"
_IN_CHECKOUT = {
    "templates": "data/templates",
    "models": "configs/models",
    "texts": "data/texts",
    "published.csv": "results/published.csv",
}

Model = TypeVar("Model", bound=BaseModel)


def shipped(part: str) -> Path:
    """The path of a shipped folder or file: ``templates``, ``models``, ``texts`` or ``published.csv``."""
    in_wheel = _SHIPPED / part
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / _IN_CHECKOUT[part]


def shipped_names(part: str) -> list[str]:
    """The names of the YAML files of a shipped folder, without their ending, sorted."""
    return sorted(path.stem for path in shipped(part).glob("*.yaml"))


def looks_like_path(name: str) -> bool:
    """Whether a ``--model`` or ``--assoc`` value is a path rather than a shipped name."""
    return name.endswith((".yaml", ".yml")) or name.startswith((".", "~", "/")) or "/" in name or "\\" in name


def expand(path: str) -> Path:
    """A user's path with ``~`` and ``~name`` expanded to home folders. Raises UserError: no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': unknown home folder. Write the path in full.") from error


def find_yaml(kind: str, part: str, name: str) -> Path:
    """The YAML file of a shipped name or at a user's path.

    Raises:
        UserError: no such shipped name (with a suggestion), or no such file.
    """
    if looks_like_path(name):
        path = expand(name)
        if not path.is_file():
            raise UserError(
                f"No {kind} file at '{name}'. Give the path of a YAML file or one of: {', '.join(shipped_names(part))}."
            )
        return path
    names = shipped_names(part)
    if name not in names:
        own = name if Path(name).exists() else f"{name}.yaml"
        raise unknown_name(kind, name, names, f"For your own, give its path: ./{own}.")
    return shipped(part) / f"{name}.yaml"


#: How many of a file's problems are listed.
_MOST_PROBLEMS = 8
#: Limits on a file: bytes, nesting depth, values (aliases expanded), and characters of a value that is not a string.
_MOST_BYTES, _DEEPEST, _MOST_VALUES, _LONGEST = 16 << 20, 50, 1_000_000, 100
_TAG = "tag:yaml.org,2002:"
_MADE = [_TAG + kind for kind in ("null", "bool", "int", "float", "timestamp")]
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """SafeLoader that reads ``1e-5`` as a float."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$|^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)$"),
    list("-+0123456789."),
)


class _Document:
    """One document, built event by event so that untrusted YAML costs no more than its length (no alias bombs)."""

    def __init__(self, content: bytes) -> None:
        self._loader = _Loader(content)
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0

    def read(self) -> Any:
        """The document's value, None if it is empty.

        Raises:
            yaml.YAMLError: not YAML, a second document, a repeated key, an invalid value, or a limit exceeded.
        """
        self._loader.get_event()  # stream start
        if self._loader.check_event(yaml.StreamEndEvent):
            return None
        self._loader.get_event()
        value = self._value(self._loader.get_event(), 0)
        self._loader.get_event()
        if not self._loader.check_event(yaml.StreamEndEvent):
            raise _wrong("a second document begins; a file can have only one", self._loader.peek_event())
        return value

    def _value(self, event: Any, depth: int) -> Any:
        before = self._values
        self._values += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _wrong(f"alias *{event.anchor} has no anchor &{event.anchor} before it", event)
            value, size = self._anchors[event.anchor]
            self._values += size
        elif isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif depth == _DEEPEST or event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
            raise _wrong(f"tag {event.tag} is not allowed" if depth < _DEEPEST else "is nested too deeply", event)
        else:
            value = self._mapping(depth) if isinstance(event, yaml.MappingStartEvent) else list(self._items(depth))
        if self._values > _MOST_VALUES:
            raise _wrong(f"more than {_MOST_VALUES:,} values, aliases included", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _items(self, depth: int) -> Iterator[Any]:
        while not isinstance(event := self._loader.get_event(), yaml.CollectionEndEvent):
            yield self._value(event, depth + 1)

    def _mapping(self, depth: int) -> dict[Hashable, Any]:
        found: dict[Hashable, Any] = {}
        while not isinstance(event := self._loader.get_event(), yaml.CollectionEndEvent):
            key = self._value(event, depth + 1)
            if not isinstance(key, Hashable):
                raise _wrong("a key must be a word", event)
            if key in found:
                raise _wrong(f"{shown(key)} is repeated", event)
            found[key] = self._value(self._loader.get_event(), depth + 1)
        return found

    def _scalar(self, event: Any) -> Any:
        tag = event.tag or self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag in ("!", f"{_TAG}str"):
            if "\0" in event.value:
                raise _wrong("a string contains a NUL character", event)
            return event.value
        if tag not in _MADE or len(event.value) > _LONGEST:
            raise _wrong(f"{shown(event.value)} cannot be read with tag {tag}; quote the word", event)
        try:
            return self._loader.yaml_constructors[tag](self._loader, yaml.ScalarNode(tag, event.value))
        except (LookupError, AttributeError, ValueError, ArithmeticError) as error:
            raise _wrong(
                f"{shown(event.value)} is not a valid {tag.removeprefix(_TAG)}; quote the word", event
            ) from error


def _wrong(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        UserError: unreadable, not YAML, beyond a limit, a repeated key, or not a mapping; names file and line.
    """
    try:
        content = read_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    return mapping(content, path)


def mapping(text: bytes, path: Path) -> dict[str, Any]:
    """The one YAML mapping in the content of a file.

    Raises:
        UserError: not YAML, beyond a limit, a repeated key, or not a mapping; names file and line.
    """
    try:
        content = _Document(text).read()
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{path}:{line} {error.problem}. Correct the file and start again.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({error}).") from error
    if content is None:
        raise UserError(f"{path} is empty. It should contain 'key: value' lines.")
    if not isinstance(content, dict):
        raise UserError(f"{path} should contain 'key: value' lines, but contains {_what(content)}.")
    return content


def parse(model: type[Model], content: dict[str, Any], origin: str, strict: bool | None = None) -> Model:
    """Validate a mapping as a pydantic model, with all problems in one line.

    ``strict=False`` overrides the model's own strictness, for files that we wrote: JSON has lists in place of tuples.

    Raises:
        UserError: names the origin, each key and what is wrong with it.
    """
    try:
        return model.model_validate(content, strict=strict)
    except ValidationError as error:
        raise UserError(f"{origin}: {problems(error, content)}.") from error


def problems(error: ValidationError, content: Any) -> str:
    """What is wrong with the content of a file, in terms of the file."""
    found: list[Any] = [{**detail, "loc": _keys(detail, content)} for detail in error.errors(include_url=False)]
    # an error inside a value replaces the error of the value as a whole
    outer = {detail["loc"][:depth] for detail in found for depth in range(len(detail["loc"]))}
    inner = [detail for detail in found if detail["loc"] not in outer]
    more = f"; and {len(inner) - _MOST_PROBLEMS:,} more" if len(inner) > _MOST_PROBLEMS else ""
    return "; ".join(map(_problem, inner[:_MOST_PROBLEMS])) + more


def _keys(detail: Any, content: Any) -> tuple[int | str, ...]:
    """The keys that lead to a value: pydantic's location without its names for the members of a union."""
    location: tuple[int | str, ...] = detail["loc"]
    if "[key]" in location:
        return location
    keys = []
    for place, part in enumerate(location):
        is_missing = detail["type"] == "missing" and place == len(location) - 1
        if isinstance(part, int) or is_missing or (isinstance(content, dict) and part in content):
            keys.append(part)
            try:
                content = content[part]
            except (TypeError, LookupError):  # a missing entry, or one value in place of a list
                content = None
    return tuple(keys)


def _what(value: Any) -> str:
    """How YAML read a value, in words."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, date):
        return f"the date {value}"
    return "a list" if isinstance(value, list) else shown(value)


#: pydantic's errors in words, by their type.
_IN_WORDS = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "should contain 'key: value' lines"),
    **dict.fromkeys(("list_type", "tuple_type"), "should be a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
    "string_type": "should be text",
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": "has characters that are not allowed there",
    "too_short": "should have {min_length} or more entries",
    "too_long": "should have {max_length} or fewer entries",
    "union_tag_invalid": "should have as {discriminator} one of {expected_tags}",
    "union_tag_not_found": "should have the key {discriminator}",
}


def in_words(detail: Any) -> str:
    """What a value should be, by one of pydantic's errors: "should be an integer"."""
    if detail["type"] in _IN_WORDS:
        return _IN_WORDS[detail["type"]].format(**detail.get("ctx", {}))
    return re.sub(r"^\w+ (?=should )", "", detail["msg"])


def _problem(detail: Any) -> str:
    """One pydantic error, in terms of the file."""
    location = [str(part) for part in detail["loc"]]
    value = detail["input"]
    advice = "quote the word (YAML reads No, on and yes as booleans)" if isinstance(value, bool) else "quote it"
    if location[-1:] == ["[key]"] or detail["type"] == "invalid_key":
        whose = ".".join(location[:-2]) if location[-1:] == ["[key]"] else ""
        if not isinstance(value, str):
            return f"a key{f' of {whose!r}' if whose else ''} is read as {_what(value)}; {advice}"
        location.pop()
    key = ".".join(location) or "the file"
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    if detail["type"] == "missing":
        return f"key '{key}' is missing"
    if value is None:
        return f"'{key}' has no value"
    if isinstance(value, bool) or (detail["type"] == "string_type" and isinstance(value, int | float | date)):
        return f"'{key}' is read as {_what(value)}; {advice}"
    if detail["type"] == "value_error":
        return f"'{key}': {detail['ctx']['error']}" if detail["loc"] else str(detail["ctx"]["error"])
    return f"'{key}' {in_words(detail)}, got {shown(list(value) if isinstance(value, tuple) else value)}"
