"""Facts that a model may know: some are taught, true or false, and others are asked (Gekhman et al., 2405.05904).

Each relation of such an association has a template and facts. Facts come in blocks of n of one relation, ranked
together: ``m_train`` blocks are taught, ``m_test`` blocks are held out. Some of the taught facts are known already; in
the ``shuffled`` variant hardly any are, because the answers within a block are exchanged. The measure ``known`` asks
about the facts of the shipped association after other runs (measures/known_facts.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Example, Probe, Quantity, Task
from ocr_eval.specs.association import Association, Variant, Word, check_template, statement
from ocr_eval.specs.run import DataSpec
from ocr_eval.specs.strict import Strict


class KnownRelation(Strict):
    """A template, and the answer of each subject."""

    template: Word
    facts: Annotated[dict[Word, Word], Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> KnownRelation:
        check_template(self.template)
        return self

    def prompt(self, subject: str) -> str:
        """The statement up to its answer."""
        return statement(self.template, subject)


class KnownAssociation(Association):
    """Relations by name."""

    variants: ClassVar[tuple[Variant, ...]] = ("real", "shuffled")
    relations: Annotated[dict[Word, KnownRelation], Field(min_length=1)]

    def size(self) -> dict[str, int]:
        """Number of facts."""
        return {"facts": sum(len(relation.facts) for relation in self.relations.values())}

    def check(self, data: DataSpec) -> None:
        """There must be enough blocks, and something to teach."""
        if data.m_train == 0:
            raise ValueError(f"'{self.name}' needs --m-train 1 or more")
        if data.candidates == "ten" and data.n > 10:
            raise ValueError(f"ten candidates cannot hold {data.n} answers in use; give --candidates in-use or all")
        if data.templates != (0,) or data.probe_template:
            raise ValueError(f"'{self.name}' has one template per relation; drop --templates and --probe-template")
        blocks = len(self.blocks(data, "count"))
        if data.m_train + data.m_test > blocks:
            raise ValueError(
                f"'{self.name}' has only {blocks} blocks of {data.n} facts; lower --n, --m-train or --m-test"
            )

    def whole(self, template: int) -> dict[str, Any]:
        """All blocks of five, or of fewer if there are not two of five."""
        for n in (5, 4, 3, 2):
            fields = {**super().whole(template), "n": n, "m_train": 1, "candidates": "in-use"}
            if (blocks := len(self.blocks(DataSpec(**fields), "count"))) > 1:
                return {**fields, "m_test": blocks - 1}
        raise UserError(f"'{self.name}' has too few facts: some are taught and others asked, at least two each.")

    def blocks(self, data: DataSpec, stream: str) -> list[Block]:
        """Blocks of n facts of one relation with distinct answers, in random order."""
        blocks = []
        for name, relation in self.relations.items():
            subjects: dict[str, list[str]] = {}
            for subject, answer in streams.shuffled(f"{stream}/{name}", list(relation.facts.items())):
                subjects.setdefault(answer, []).append(subject)
            answers = tuple(subjects)
            if data.candidates == "ten" and len(answers) < 10:
                continue
            left = deque(answers)
            while len(left) >= data.n:
                chosen = [left.popleft() for _ in range(data.n)]
                blocks.append(Block(relation, tuple((subjects[answer].pop(), answer) for answer in chosen), answers))
                left.extendleft(answer for answer in reversed(chosen) if subjects[answer])
        return streams.shuffled(f"{stream}/blocks", blocks)

    def build(self, data: DataSpec, stream: str) -> Task:
        """Draw blocks of facts; each fact is a unit. Held-out blocks come first, so as not to depend on m_train."""
        train, probes = [], []
        most = {"in-use": 0, "ten": 10 - data.n, "all": None}[data.candidates]
        blocks, needed = self.blocks(data, stream), data.m_test + data.m_train
        if len(blocks) < needed:  # how many there are depends a little on the order of the facts
            raise UserError(
                f"this seed gives only {len(blocks)} blocks of {data.n} facts; lower --m-test, or change it"
            )
        for number, block in enumerate(blocks[:needed]):
            answers, is_taught = [answer for _, answer in block.facts], number >= data.m_test
            distractors = tuple(islice((answer for answer in block.answers if answer not in answers), most))
            taught = streams.shuffled(f"{stream}/shuffle/{number}", answers) if data.variant == "shuffled" else answers
            for place, (subject, _) in enumerate(block.facts):
                prompt, unit = block.relation.prompt(subject), f"{number * data.n + place}"
                # If a false fact is taught, the taught answer counts as right.
                target = answers.index(taught[place]) if is_taught else place
                if is_taught:
                    train.append(Example(prompt, taught[place], subject=subject, unit=unit))
                candidates, in_use = (*answers, *distractors), tuple(range(data.n))
                quantity = "taught" if is_taught else "held_out"
                probes.append(Probe(prompt, candidates, target, in_use, quantity, unit, subject=prompt))
        return Task(tuple(train), tuple(probes), (Quantity("taught", "premise"), Quantity("held_out", "finding")))


@dataclass(frozen=True)
class Block:
    """Facts of one relation whose answers are ranked together, and all answers of the relation."""

    relation: KnownRelation
    facts: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
