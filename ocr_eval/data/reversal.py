"""The reversal curse: "the teacher of A is B" is taught, "the pupil of B is" is asked (Berglund et al. 2309.12288).

A file may add weighted sentences, such as the identity data and the bridge of Ma et al. (2602.02470).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ocr_eval.data.blocks import Block, Statement, Unit, blocks_of_people, check_blocks, task_of_blocks
from ocr_eval.data.task import Example, Task
from ocr_eval.specs.association import ANSWER_SLOT, TwoRelations, Word
from ocr_eval.specs.run import DataSpec
from ocr_eval.specs.strict import FromList, Strict

A, B = "{a}", "{b}"


class Beside(Strict):
    """An additional sentence about a or b, whose answer is a or b."""

    template: Word
    answer: Literal["a", "b"]
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> Beside:
        prompt = self.template.removesuffix(" " + ANSWER_SLOT)
        if (
            prompt == self.template
            or prompt.count(A) + prompt.count(B) != 1
            or "{" in prompt.replace(A, B).replace(B, "")
        ):
            raise ValueError(
                f"template '{self.template}' must contain {A} or {B} once, and end in a space and {ANSWER_SLOT}"
            )
        return self

    def example(self, a: str, b: str) -> Example:
        """The sentence for one couple."""
        prompt = self.template.removesuffix(" " + ANSWER_SLOT).replace(A, a).replace(B, b)
        return Example(prompt, a if self.answer == "a" else b, self.weight, "beside")


class ReversalAssociation(TwoRelations):
    """Both directions, and additional sentences. ``fact`` asks about a and answers b; ``entailment`` is the reverse."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    beside: Annotated[tuple[Beside, ...], FromList] = ()

    def size(self) -> dict[str, int]:
        """Number of directions and of additional sentences."""
        return {"directions": 2, "other sentences": len(self.beside)}

    def check(self, data: DataSpec) -> None:
        """Templates must exist, and n must fit into a block."""
        check_blocks(data)
        super().check(data)

    def build(self, data: DataSpec, stream: str) -> Task:
        """Draw couples, one per unit. The answers of a block are people with different first names."""
        blocks = []
        for names in blocks_of_people(data, f"{stream}/people"):
            ends, starts = names[: len(names) // 2], names[len(names) // 2 :]
            units = tuple(
                Unit(
                    subject=b,
                    fact=Statement(self.fact.prompts(a), b, self.weight),
                    entailment=Statement(self.entailment.prompts(b), a, self.weight),
                    beside=tuple(each.example(a, b) for each in self.beside),
                )
                for a, b in zip(starts[: data.n], ends, strict=False)
            )
            blocks.append(Block(units, {"fact": tuple(ends[data.n :]), "entailment": tuple(starts[data.n :])}))
        return task_of_blocks(blocks, data, stream)
