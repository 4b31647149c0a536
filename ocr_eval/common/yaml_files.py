"""Where shipped files are (checkout or wheel), and the strict reading of YAML.

This is the only module that knows the layout of the repository. YAML is safe-loaded; repeated keys are
refused here, unknown keys and wrong types by the pydantic model that a file is parsed into.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ocr_eval.common.errors import UserError, unknown_name

_PACKAGE = Path(__file__).resolve().parent.parent
_SHIPPED = _PACKAGE / "_shipped"
_IN_CHECKOUT = {
    "templates": "data/templates",
    "models": "configs/models",
    "published.csv": "results/published.csv",
}

Model = TypeVar("Model", bound=BaseModel)


def shipped(part: str) -> Path:
    """The path of a shipped folder or file: ``templates``, ``models`` or ``published.csv``."""
    in_wheel = _SHIPPED / part
    return in_wheel if in_wheel.exists() else _PACKAGE.parent / _IN_CHECKOUT[part]


def shipped_names(part: str) -> list[str]:
    """The names of the YAML files of a shipped folder, without their ending, sorted."""
    return sorted(path.stem for path in shipped(part).glob("*.yaml"))


def looks_like_path(name: str) -> bool:
    """Whether a ``--model`` or ``--assoc`` value names a file or folder and not a shipped entry."""
    return name.endswith((".yaml", ".yml")) or name.startswith((".", "~", "/")) or "/" in name or "\\" in name


def expand(path: str) -> Path:
    """A path of the user's, ``~`` and ``~name`` being home folders.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"'{path}': no home folder of that name is known. Write the path in full.") from error


def find_yaml(kind: str, part: str, name: str) -> Path:
    """The YAML file for a shipped name or a path of the user's.

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
        raise unknown_name(kind, name, names, f"One of your own is given by its path: ./{name}.yaml.")
    return shipped(part) / f"{name}.yaml"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key in place of keeping the last one, and reads ``1e-5`` as a float."""


def _no_repeated_keys(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"'{key}' is repeated", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _no_repeated_keys)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$|^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        UserError: not readable, not YAML, a repeated key, or not a mapping; names the file and the line.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{path}:{line} {error.problem}. Correct the file and start again.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({error}).") from error
    if content is None:
        raise UserError(f"{path}: is empty. It should hold 'key: value' lines.")
    if not isinstance(content, dict):
        raise UserError(f"{path}: should hold 'key: value' lines, and holds {_what(content)}.")
    return content


def parse(model: type[Model], content: dict[str, Any], origin: str, strict: bool | None = None) -> Model:
    """Turn a mapping into a pydantic model, all problems in one line.

    Args:
        model: what to build; its own strictness holds unless ``strict`` says otherwise.
        content: the mapping.
        origin: what to name in the error, e.g. the file.
        strict: False for files of our own making, where JSON's lists stand for tuples.

    Raises:
        UserError: names the origin, each key and what is wrong with it.
    """
    try:
        return model.model_validate(content, strict=strict)
    except ValidationError as error:
        # of what is wrong within a value, no more is said of the whole
        details = error.errors()
        inner = [d for d in details if not any(_within(other["loc"], d["loc"]) for other in details)]
        raise UserError(f"{origin}: " + "; ".join(map(_problem, inner)) + ".") from error


def _within(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _what(value: Any) -> str:
    """What YAML made of a word."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, date):
        return f"the date {value}"
    return "a list" if isinstance(value, list) else repr(value)


def _problem(detail: Any) -> str:
    """One pydantic complaint in the words of the file."""
    location = [str(part) for part in detail["loc"]]
    value = detail["input"]
    advice = "quote the word (YAML takes No, on, yes for booleans)" if isinstance(value, bool) else "quote it"
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
    return f"'{key}': {detail['msg'][0].lower()}{detail['msg'][1:]}, got {value!r}"
