"""Associations: two relations, their templates and a list of pairs (b, c), read from YAML.

An association file states its pairs itself, or is *derived* from a parent by a fixed permutation of the
parent's entailment answers (the counterfactual of city-language is city-language under a 20-cycle).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.specs.strict import Strict

Kind = Literal["causal", "spurious", "counterfactual"]
Word = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, pattern=r"^\S(.*\S)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]

NAME_SLOT, ANSWER_SLOT = "{name}", "{answer}"


class Relation(Strict):
    """One relation: paraphrase templates of a statement; the first is the published form."""

    templates: Annotated[list[Word], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_templates(self) -> Relation:
        for template in self.templates:
            if template.count(NAME_SLOT) != 1:
                raise ValueError(f"template '{template}' must hold {NAME_SLOT} exactly once")
            if not template.endswith(" " + ANSWER_SLOT) or template.count(ANSWER_SLOT) != 1:
                raise ValueError(f"template '{template}' must end in a space and {ANSWER_SLOT}, and hold it once")
            if "{" in template.replace(NAME_SLOT, "").replace(ANSWER_SLOT, ""):
                raise ValueError(f"template '{template}' has a placeholder other than {NAME_SLOT} and {ANSWER_SLOT}")
        if len(set(self.templates)) < len(self.templates):
            raise ValueError("a template stands twice")
        return self

    def prompt(self, template: int, subject: str) -> str:
        """The statement about a subject up to its answer; never ends in a space."""
        return self.templates[template].removesuffix(" " + ANSWER_SLOT).replace(NAME_SLOT, subject)


class Association(Strict):
    """The two relations with templates, the pairs (b_i, c_i), and the kind of the link.

    ``pairs`` is a list of (fact answer b_i, entailment answer c_i). In YAML it is the mapping ``b: c``.
    """

    name: Name
    kind: Kind
    description: Word
    fact: Relation
    entailment: Relation
    pairs: tuple[tuple[Word, Word], ...]

    @model_validator(mode="after")
    def _check_pairs(self) -> Association:
        if len(self.pairs) < 2:
            raise ValueError("an association needs at least two pairs")
        for side, answers in (("fact", self.answers("fact")), ("entailment", self.answers("entailment"))):
            for answer in answers:
                if answers.count(answer) > 1:
                    raise ValueError(f"the {side} answer '{answer}' stands twice in pairs; every answer may occur once")
        return self

    def content(self) -> dict[str, Any]:
        """What is taught and asked: all but name, kind and description."""
        return self.model_dump(mode="json", exclude={"name", "kind", "description"})

    def digest(self) -> str:
        """Twelve hex digits over ``content``."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:12]

    def answers(self, relation: Literal["fact", "entailment"]) -> list[str]:
        """All answers of one side, in the order of the pairs."""
        side = 0 if relation == "fact" else 1
        return [pair[side] for pair in self.pairs]


class _OwnFile(Strict):
    """An association that states its pairs."""

    name: Name
    kind: Kind
    description: Word
    fact: Relation
    entailment: Relation
    pairs: Annotated[dict[Word, Word], Field(min_length=2)]


class _Derivation(Strict):
    """Pair i takes the parent's entailment answer at position ``permutation[i]``."""

    parent: Annotated[str, StringConstraints(min_length=1)]
    permutation: list[int]


class _DerivedFile(Strict):
    """An association that is a parent with its entailment answers permuted."""

    name: Name
    kind: Kind
    description: Word
    derived: _Derivation


def load_association(name_or_path: str) -> Association:
    """Read an association by shipped name or by path.

    Raises:
        UserError: unknown name (with a suggestion), unreadable file, a file that breaks a rule, or one that takes the
            name of a shipped association and is another.
    """
    path = yaml_files.find_yaml("association", "templates", name_or_path)
    association = _read(path, ancestors=())
    if yaml_files.looks_like_path(name_or_path) and association.name in yaml_files.shipped_names("templates"):
        shipped = load_association(association.name)
        if association.model_copy(update={"description": shipped.description}) != shipped:
            raise UserError(
                f"{path}: the shipped association '{shipped.name}' is another. Give yours a name of its own ('name:'), "
                "or tables would take one for the other."
            )
    return association


def _read(path: Path, ancestors: tuple[Path, ...]) -> Association:
    path = path.resolve()
    if path in ancestors:
        raise UserError(f"{path}: is derived from itself. Let the chain of parents end in a file with pairs.")
    content = yaml_files.read_yaml(path)
    if "derived" not in content:
        own = yaml_files.parse(_OwnFile, content, str(path))
        return _build(own, own.fact, own.entailment, list(own.pairs.items()), path)
    derived = yaml_files.parse(_DerivedFile, content, str(path))
    origin, permutation = derived.derived.parent, derived.derived.permutation
    try:
        if yaml_files.looks_like_path(origin):
            origin = str(path.parent / yaml_files.expand(origin))
        found = yaml_files.find_yaml("association", "templates", origin)
    except UserError as error:
        raise UserError(f"{path}: 'derived.parent': {error}") from error
    parent = _read(found, (*ancestors, path))
    if sorted(permutation) != list(range(len(parent.pairs))):
        raise UserError(
            f"{path}: 'derived.permutation' must hold each of 0 to {len(parent.pairs) - 1} once, "
            f"a position for each pair of '{parent.name}'."
        )
    entailed = parent.answers("entailment")
    pairs = [(b, entailed[source]) for b, source in zip(parent.answers("fact"), permutation, strict=True)]
    return _build(derived, parent.fact, parent.entailment, pairs, path)


def _build(
    head: _OwnFile | _DerivedFile,
    fact: Relation,
    entailment: Relation,
    pairs: list[tuple[str, str]],
    path: Path,
) -> Association:
    content = {
        "name": head.name,
        "kind": head.kind,
        "description": head.description,
        "fact": fact,
        "entailment": entailment,
        "pairs": tuple(pairs),
    }
    return yaml_files.parse(Association, content, str(path))
