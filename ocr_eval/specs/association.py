"""Associations: YAML files that state which facts are taught and what may be inferred from them.

Every association has a structure, ``pairs`` by default: a subclass of ``Association`` that adds fields to the file and
builds the training examples and probes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, model_validator

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import STRUCTURES
from ocr_eval.specs.strict import FromList, Strict, added_field, form

if TYPE_CHECKING:
    from ocr_eval.specs.run import DataSpec

Kind = Literal["causal", "spurious", "counterfactual", "unclassified"]
Variant = Literal["real", "no-entailment", "shuffled", "no-fact", "regrouped"]
#: Characters that would change a line or a terminal, or that mark an encoding error.
CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd"
Word = Annotated[
    str,
    form(rf"(?!\s)[^{CONTROL}]+(?<!\s)", "text on one line, without spaces around it or control characters"),
]
Name = Annotated[
    str,
    form("[a-z0-9][a-z0-9._-]{0,63}", "up to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"),
]

#: Fields of an association that affect nothing that is taught or asked.
_ABOUT = ("name", "kind", "description", "nonce")
NAME_SLOT, ANSWER_SLOT = "{name}", "{answer}"
#: How the files of tables of facts end (data/fact_table.py).
TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


class Relation(Strict):
    """One relation: paraphrase templates of a statement; the first is the published form."""

    templates: Annotated[tuple[Word, ...], Field(min_length=1), FromList]

    @model_validator(mode="after")
    def _check_templates(self) -> Relation:
        for template in self.templates:
            check_template(template)
        if repeated(self.templates):
            raise ValueError("a template occurs twice; list each once")
        return self

    def prompt(self, template: int, subject: str) -> str:
        """The statement about a subject up to its answer; never ends in a space."""
        return statement(self.templates[template], subject)

    def prompts(self, subject: str) -> tuple[str, ...]:
        """``prompt`` in every template."""
        return tuple(statement(template, subject) for template in self.templates)


class Association(Strict):
    """The fields that all associations share; each structure adds its own in a subclass.

    Attributes:
        variants: the data variants that the structure supports.
        to_teach_less: which flags reduce what is taught.
        nonce: invented words in its text. A model that has one as a single token is rejected, because it may know it.
    """

    variants: ClassVar[tuple[Variant, ...]] = ("real", "no-entailment", "shuffled")
    to_teach_less: ClassVar[str] = "Lower --n, --m-train or --m-test"
    name: Name
    kind: Kind
    description: Word
    structure: str = added_field("pairs", legacy="pairs")
    nonce: Annotated[tuple[Word, ...], FromList] = added_field((), legacy=())

    @model_validator(mode="after")
    def _check_nonce(self) -> Association:
        written = json.dumps(self.content(), ensure_ascii=False)
        if absent := [word for word in self.nonce if word not in written]:
            raise ValueError(f"the nonce word '{absent[0]}' is nowhere in the file; leave it out")
        return self

    def __hash__(self) -> int:
        return hash(self.name)  # a structure may have fields that do not hash

    @classmethod
    def from_yaml(cls, content: dict[str, Any], path: Path) -> Self:
        """Parse the content of a file. Structures whose files are not simply their fields override this.

        Raises:
            UserError: the file is invalid.
        """
        return yaml_files.parse(cls, content, str(path))

    def content(self) -> dict[str, Any]:
        """The fields that determine what is taught and asked; excludes name, kind, description and nonce words."""
        return {key: value for key, value in self.identity().items() if key not in _ABOUT}

    def shared(self) -> dict[str, Any]:
        """What experiment trackers receive: everything, except for a user's own table."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Twelve hex digits over ``content``."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def wordings(self) -> int:
        """How many templates each statement can be taught or asked in."""
        return 1

    def size(self) -> dict[str, int]:
        """How much it contains, e.g. ``{"pairs": 20}``."""
        return {}

    def as_text(self) -> str:
        """Its content in readable form."""
        return yaml.safe_dump(self.content(), sort_keys=False, allow_unicode=True, width=110).rstrip()

    def check(self, data: DataSpec) -> None:
        """Check that a data protocol fits this association. Raises ValueError: it does not (says what to change)."""

    def build(self, data: DataSpec, stream: str) -> Any:
        """Draw what is taught and asked, a ``data.task.Task``, from the run's data stream."""
        raise NotImplementedError

    def whole(self, template: int) -> dict[str, Any]:
        """The fields of a data protocol that uses all answers, in one template; for audits."""
        return {"candidates": "all", "templates": (template,), "probe_template": template}


class TwoRelations(Association):
    """An association of two relations: a fact, which is taught, and an entailment, which is asked."""

    fact: Relation
    entailment: Relation

    @property
    def wordings(self) -> int:
        """The number of templates that both relations have."""
        return min(len(self.fact.templates), len(self.entailment.templates))

    def check(self, data: DataSpec) -> None:
        """Both relations must have every template that the protocol names."""
        for side, relation in (("fact", self.fact), ("entailment", self.entailment)):
            for index in (*data.templates, data.probe_template):
                if index >= len(relation.templates):
                    raise ValueError(
                        f"there is no template {index}: the {side} of '{self.name}' has "
                        f"{len(relation.templates)}, counted from 0"
                    )


def check_template(template: str) -> None:
    """Raises ValueError if it is not a statement about a subject that ends in its answer."""
    if template.count(NAME_SLOT) != 1:
        raise ValueError(f"template '{template}' must contain {NAME_SLOT} exactly once")
    if not template.endswith(" " + ANSWER_SLOT) or template.count(ANSWER_SLOT) != 1:
        raise ValueError(f"template '{template}' must end in a space and {ANSWER_SLOT}, and contain it once")
    if set("{}") & set(template.replace(NAME_SLOT, "").replace(ANSWER_SLOT, "")):
        raise ValueError(f"template '{template}' has a placeholder other than {NAME_SLOT} and {ANSWER_SLOT}")


def statement(template: str, subject: str) -> str:
    """The statement about a subject up to its answer; never ends in a space."""
    return template.removesuffix(" " + ANSWER_SLOT).replace(NAME_SLOT, subject)


def repeated(words: Iterable[str]) -> str | None:
    """The first word that occurs more than once, None if none does."""
    return next((word for word, times in Counter(words).items() if times > 1), None)


def load_association(name_or_path: str) -> Association:
    """Read an association by shipped name or by path.

    Raises:
        UserError: unknown name or structure (with a suggestion), an unreadable or invalid file, or one that has the
            name of a shipped association but other content.
    """
    if name_or_path.lower().endswith(TABLE_ENDINGS):
        raise UserError(
            f"'{name_or_path}' is a table of facts, not an association. Give it as --facts {name_or_path}, or as "
            "'table:' in a YAML file with 'structure: facts'."
        )
    path = yaml_files.find_yaml("association", "templates", name_or_path)
    content = yaml_files.read_yaml(path)
    try:
        kind = association_type(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    association = kind.from_yaml(content, path)
    if yaml_files.looks_like_path(name_or_path) and association.name in yaml_files.shipped_names("templates"):
        shipped = load_association(association.name)
        if association.model_copy(update={"description": shipped.description}) != shipped:
            raise UserError(
                f"{path}: the shipped association '{shipped.name}' is a different one. Give yours another name "
                "('name:'), so that tables can tell them apart."
            )
    return association


def association_type(content: dict[str, Any]) -> type[Association]:
    """The class of the structure that a file names. Raises UserError: no such structure (with a suggestion)."""
    return STRUCTURES.get(str(content.get("structure", "pairs")))
