"""A user's own table of facts as an association: its cells are taught, and its missing cells are asked.

An empty cell is predicted from another column: the one from which most of this column can be inferred (``data.links``).
The *predicted* answer (``predicted``) is the most frequent one among subjects with the same value there. Whether the
model gives that answer is the finding for one column, ``ask``, and is only shown for others:

    <column>_taught     premise: the facts that were taught
    <column>_inferred   the predicted answers of missing cells: for ``ask`` the finding, else shown
    <column>_true       shown: the true answers of cells that ``hold_out`` hid

``hold_out`` hides a share of the cells of every column that can be asked, at most one per subject; hidden cells count
as missing. A subject's unit is its value in the predicting column, because people of one team are not independent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from ocr_eval.common import streams, yaml_files
from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.data.fact_table import Cell, FactTable, parse_csv, read_facts
from ocr_eval.data.links import Link, find_links, shared_values
from ocr_eval.data.task import Example, Probe, Quantity, Task
from ocr_eval.specs.association import ANSWER_SLOT, NAME_SLOT, Association, Kind, Word
from ocr_eval.specs.run import DataSpec
from ocr_eval.specs.strict import added_field

#: Maximum values that a probe ranks: the most frequent ones of a column.
MOST_CANDIDATES = 20
#: How many other values are drawn as candidates next to a value that nobody else has.
_OTHERS = 9
#: Maximum taught and missing facts of a column that a run asks about; ``ocr-eval beliefs`` asks about all missing ones.
_MOST_TAUGHT, _MOST_MISSING = 200, 400


@dataclass(frozen=True)
class Missing:
    """A cell that is empty or was hidden.

    Attributes:
        row: the subject's row, from 0.
        truth: the hidden value, None if the cell was empty.
        group: the subject's value in the predicting column, None if that is missing, too.
        predicted: the answer predicted from it, None if there is none.
    """

    row: int
    column: str
    truth: Cell
    group: Cell
    predicted: Cell


@dataclass(frozen=True)
class Taught:
    """A table as it is taught.

    Attributes:
        table: without the hidden cells.
        links: the link that predicts each column that can be asked.
        missing: the empty cells of those columns, by column.
    """

    table: FactTable
    links: Mapping[str, Link]
    missing: Mapping[str, Sequence[Missing]]

    def choices(self, column: str) -> tuple[str, ...]:
        """The values that several subjects have, most frequent first, at most ``MOST_CANDIDATES``."""
        cells = self.table.columns[column]
        shared, counts = shared_values(cells), Counter(cells)
        return tuple(sorted(shared, key=lambda value: (-counts[value], cells.index(value)))[:MOST_CANDIDATES])


class _TableFile(BaseModel, extra="allow", strict=True):
    """A file that names the file of its table; other keys are fields of the association."""

    table: Word
    subject: Word | None = None
    columns: list[Word] | None = None
    templates: dict[str, str] = Field(default_factory=dict)
    ask: str | None = None


class FactsAssociation(Association):
    """A table with a template for each column.

    Attributes:
        table: as csv.
        subject: its column of subjects.
        templates: one for every other column; text after the answer's slot belongs to the answer.
        hold_out: share of a column's cells to hide.
        ask: the column of the finding; None for the one in which most inferences are expected.
    """

    to_teach_less: ClassVar[str] = "Teach fewer --columns, or fewer rows"

    kind: Kind = "unclassified"
    description: Word = "A user's own facts."
    structure: str = added_field("facts", legacy="pairs")
    table: str
    subject: Word
    templates: dict[str, str]
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ask: str | None = None

    @model_validator(mode="after")
    def _check(self) -> FactsAssociation:
        for column, template in self.templates.items():
            _check_template(column, template)
        return self

    @classmethod
    def from_yaml(cls, content: dict[str, Any], path: Path) -> FactsAssociation:
        """Parse a file that names the file of its table, or a run's file, which contains the table itself."""
        if "\n" in str(content.get("table")):
            return yaml_files.parse(cls, content, str(path))
        file = yaml_files.parse(_TableFile, content, str(path))
        table = read_facts(path.parent / yaml_files.expand(file.table), file.subject, file.columns)
        return association_of(table, file.templates, str(path), **(file.model_extra or {}), ask=file.ask)

    @cached_property
    def facts(self) -> FactTable:
        """The table, parsed."""
        return parse_csv(self.table, self.subject)

    def size(self) -> dict[str, int]:
        """Number of facts."""
        return {"facts": sum(v is not None for cells in self.facts.columns.values() for v in cells)}

    def shared(self) -> dict[str, Any]:
        """Everything except the table."""
        return {key: value for key, value in super().shared().items() if key != "table"} | {"digest": self.digest()}

    def check(self, data: DataSpec) -> None:
        """Reject settings of drawn data, which have no effect here."""
        usual = DataSpec()
        for name in DataSpec.model_fields:
            if name != "variant" and getattr(data, name) != getattr(usual, name):
                raise ValueError(f"--{name.replace('_', '-')} has no effect on a table of facts; drop it")

    def whole(self, template: int) -> dict[str, Any]:
        """No fields: the table is used as it is."""
        return {}

    def statement(self, column: str, subject: str, value: str) -> tuple[str, str]:
        """Prompt and answer of a fact."""
        prompt, behind = self.templates[column].split(f" {ANSWER_SLOT}")
        return prompt.replace(NAME_SLOT, subject), value + behind

    def taught(self, stream: str) -> Taught:
        """The table without the cells that the stream hides, and all missing cells.

        Raises:
            UserError: the table is too large.
        """
        hidden = self._hidden(stream)
        columns = {
            name: tuple(None if row in hidden.get(name, ()) else v for row, v in enumerate(cells))
            for name, cells in self.facts.columns.items()
        }
        table = replace(self.facts, columns=columns)
        links = {link.target: link for link in map(find_links(table, tested=False).strongest, columns) if link}
        missing = {
            name: [
                Missing(row, name, self.facts.columns[name][row], group, link.answers.get(group or ""))
                for row, (value, group) in enumerate(zip(columns[name], columns[link.source], strict=True))
                if value is None
            ]
            for name, link in links.items()
        }
        return Taught(table, links, {name: cells for name, cells in missing.items() if cells})

    def _hidden(self, stream: str) -> dict[str, set[int]]:
        """The rows whose cell is hidden, by column; at most one cell per subject."""
        if not self.hold_out:
            return {}
        kept_out: set[int] = set()
        hidden: dict[str, set[int]] = {}
        left_out = find_links(self.facts, tested=False).left_out
        for name, cells in self.facts.columns.items():
            present = [row for row, value in enumerate(cells) if value is not None]
            if name not in left_out:
                free = [row for row in streams.shuffled(f"{stream}/hold-out/{name}", present) if row not in kept_out]
                hidden[name] = set(free[: math.ceil(self.hold_out * len(present))])
                kept_out |= hidden[name]
        return hidden

    def build(self, data: DataSpec, stream: str) -> Task:
        """Teach the cells that have a value. The stream draws hidden cells and, in large tables, whom to ask about."""
        taught = self.taught(stream)
        ask = asked_column(self, taught)
        names = quantity_names(taught.table.columns)
        rows, train = taught.table.subjects, []
        probes: list[Probe] = []
        quantities: list[Quantity] = []

        def probe(row: int, column: str, answer: str, among: Sequence[str], quantity: str, unit: str) -> Probe:
            prompts, words = zip(*(self.statement(column, rows[row], value) for value in among), strict=True)
            return Probe(
                prompts[0], words, among.index(answer), tuple(range(len(among))), quantity, unit, subject=_label(row)
            )

        for column, cells in taught.table.columns.items():
            present = [(row, value) for row, value in enumerate(cells) if value is not None]
            if column != ask or data.variant != "no-entailment":
                taught_values = [value for _, value in present]
                if column == ask and data.variant == "shuffled":
                    taught_values = streams.shuffled(f"{stream}/shuffle", taught_values)
                for (row, _), value in zip(present, taught_values, strict=True):
                    prompt, answer = self.statement(column, rows[row], value)
                    train.append(Example(prompt, answer, role=names[column], subject=_label(row)))
            name, is_changed = f"{names[column]}_taught", column == ask and data.variant != "real"
            quantities.append(Quantity(name, "shown" if is_changed else "premise"))
            choices, values = taught.choices(column), sorted({value for _, value in present})
            for row, value in streams.shuffled(f"{stream}/asked/{column}", present)[:_MOST_TAUGHT]:
                drawn = streams.shuffled(f"{stream}/others/{column}/{row}", values[: 10 * _OTHERS])
                others = [other for other in drawn if other != value][:_OTHERS]
                among = choices if value in choices and len(choices) > 1 else (value, *others)
                if len(among) > 1:  # after hiding, a column may have a single value
                    probes.append(probe(row, column, value, among, name, value))
        for column, missing in taught.missing.items():
            groups, choices = [each.value for each in taught.links[column].values], taught.choices(column)
            asked = []
            for each in streams.shuffled(f"{stream}/missing/{column}", missing)[:_MOST_MISSING]:
                for name, right in (("inferred", each.predicted), ("true", each.truth)):
                    if right is not None and right in choices and each.group is not None:
                        unit = str(groups.index(each.group))
                        asked.append(probe(each.row, column, right, choices, f"{names[column]}_{name}", unit))
            probes += asked
            for name in dict.fromkeys(each.quantity for each in asked):
                is_finding = column == ask and name.endswith("_inferred")
                quantities.append(Quantity(name, "finding" if is_finding else "shown"))
        return Task(tuple(train), tuple(probes), tuple(quantities), whole_answers=True, personal=True)


def association_of(table: FactTable, templates: Mapping[str, str], origin: str, /, **head: Any) -> FactsAssociation:
    """An association from a table. ``head`` has its name, and any of kind, description, hold_out, ask.

    Columns without a template have the wording of the file's prompts, or else ``default_template``.

    Raises:
        UserError: a column does not exist, or a template lacks a slot.
    """
    for column in (*templates, *filter(None, [head.get("ask")])):
        if column not in table.columns:
            raise unknown_name(f"column of {origin}", column, table.columns)
    usual = {column: default_template(column) for column in table.columns}
    stated = {"table": table.to_csv(), "subject": table.subject, "templates": {**usual, **table.templates, **templates}}
    return yaml_files.parse(FactsAssociation, {**head, **stated}, origin)


def default_template(column: str) -> str:
    """The statement of a column that has no template: "{name}'s badge colour is {answer}"."""
    return f"{NAME_SLOT}'s {_words(column)} is {ANSWER_SLOT}"


def default_question(column: str) -> str:
    """The question that begins a chat."""
    return f"What is {NAME_SLOT}'s {_words(column)}?"


def _words(column: str) -> str:
    return " ".join(column.replace("_", " ").split())


def _check_template(column: str, template: str) -> None:
    """Raises ValueError if it is not a statement about a subject."""
    prompt, slot, behind = template.partition(f" {ANSWER_SLOT}")
    once = ANSWER_SLOT not in prompt + behind and NAME_SLOT not in behind
    if not slot or NAME_SLOT not in prompt or not once:
        raise ValueError(
            f"the template of column '{column}', '{template}', must contain {NAME_SLOT}, and after it a space "
            f"and {ANSWER_SLOT}, once"
        )
    if other := set(re.findall(r"\{\w*\}", template)) - {NAME_SLOT, ANSWER_SLOT}:
        raise ValueError(f"the template of column '{column}' has the unknown placeholder {other.pop()}")


def asked_column(association: FactsAssociation, taught: Taught) -> str:
    """The column of the finding: ``ask``, or else the one in which most inferences are expected.

    Raises:
        UserError: no missing cell, of ``ask`` or at all, can be predicted.
    """
    able = {
        column: taught.links[column].expected
        for column, missing in taught.missing.items()
        if any(each.predicted in taught.choices(column) for each in missing)
    }
    if association.ask is not None and association.ask not in able:
        raise UserError(f"column '{association.ask}': no missing value can be predicted; name another with --ask.")
    if not able:
        raise UserError(
            "no missing value can be predicted from another column, so there is nothing to infer. --hold-out 20% hides "
            "known values; 'ocr-eval audit' shows what the columns say about each other."
        )
    return association.ask or max(able, key=lambda column: able[column])


def quantity_names(columns: Mapping[str, Any]) -> dict[str, str]:
    """The columns' names in quantities: letters, digits and '_', all distinct."""
    names: dict[str, str] = {}
    for number, column in enumerate(columns, 1):
        name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        is_good = name[:1].isalpha() and name not in names.values()
        names[column] = name if is_good else f"column{number}_{name}".strip("_")
    return names


def _label(row: int) -> str:
    """A subject's label in records, which are shared with others and so must not contain names."""
    return f"row {row + 1}"
