"""Two-hop chains, subject -> middle -> answer, whose second hop is taught (Feng et al., arXiv 2412.04614).

"The mayor of Paris is Ann" is taught, and "the mayor of the city that has the Eiffel Tower is" is asked. The model
should already know the first hop, from tower to city; it is asked, too. Chains whose first hop is taught and whose
second is known are pairs (data/pairs.py; the shipped first-hop).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ocr_eval.common import streams
from ocr_eval.data.blocks import Block, Statement, Unit, blocks_of_people, check_blocks, task_of_blocks
from ocr_eval.data.task import Task
from ocr_eval.specs.association import Relation, TwoRelations, Word, repeated
from ocr_eval.specs.run import DataSpec


class ChainAssociation(TwoRelations):
    """The relations and the chains. Answers are people, drawn at random.

    Attributes:
        fact: middle -> answer; taught.
        entailment: subject -> answer; asked, and taught for train subjects.
        hop: subject -> middle; asked.
        chains: the middle of each subject.
    """

    hop: Relation
    chains: dict[Word, Word] = Field(min_length=2)

    @model_validator(mode="after")
    def _check_chains(self) -> ChainAssociation:
        middles = list(self.chains.values())
        if twice := repeated(middles):
            raise ValueError(f"two chains lead to '{twice}'; every middle may occur once")
        closed = next((middle for middle in middles if middle in self.chains), None)
        if closed is not None:
            raise ValueError(f"'{closed}' is the subject of one chain and the middle of another; a chain has two hops")
        return self

    def size(self) -> dict[str, int]:
        """Number of chains."""
        return {"chains": len(self.chains)}

    def check(self, data: DataSpec) -> None:
        """Every subject needs a chain."""
        check_blocks(data)
        super().check(data)
        if data.subjects > len(self.chains):
            raise ValueError(
                f"n x (m_train + m_test) = {data.subjects} is more than the {len(self.chains)} chains of "
                f"'{self.name}'; lower one of them"
            )

    def whole(self, template: int) -> dict[str, Any]:
        """As many chains as fill complete blocks of five."""
        n = min(5, len(self.chains))
        most = {"n": n, "m_train": 0, "m_test": len(self.chains) // n}
        return {**super().whole(template), **most, "candidates": "in-use"}

    def build(self, data: DataSpec, stream: str) -> Task:
        """Draw chains, one per unit, and people, block by block."""
        drawn = iter(streams.shuffled(f"{stream}/chains", list(self.chains.items())))
        blocks = []
        for names in blocks_of_people(data, f"{stream}/people"):
            units = []
            for answer, (subject, middle) in zip(names[: data.n], drawn, strict=False):
                stated, asked = self.fact.prompts(middle), self.entailment.prompts(subject)
                hop = Statement(self.hop.prompts(subject), middle)
                units.append(Unit(subject, Statement(stated, answer), Statement(asked, answer), hop=hop))
            spare = tuple(names[data.n :])
            blocks.append(Block(tuple(units), {"fact": spare, "entailment": spare}))
        return task_of_blocks(blocks, data, stream)
