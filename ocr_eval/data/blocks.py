"""Blocks: the layout of data in which every answer is true of one subject only, so that subjects form no groups.

Each subject is a unit with a fact, which is taught, and an entailment. Subjects come in *blocks* of n, and a probe
ranks the n answers of its block. The entailments of ``m_test`` blocks are held out, those of ``m_train`` blocks are
taught. Quantities, variants and orders are those of pairs (data/pairs.py).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.data.pairs import RELATIONS, RelationName, Split, quantities, thirds
from ocr_eval.data.task import Example, Probe, Quantity, Task
from ocr_eval.specs.names import ANSWER_NAMES, LAST_NAMES
from ocr_eval.specs.run import DataSpec


@dataclass(frozen=True)
class Statement:
    """A prompt in each wording, and the answer."""

    prompts: tuple[str, ...]
    answer: str
    weight: float = 1.0


@dataclass(frozen=True)
class Unit:
    """One subject.

    Attributes:
        fact: what is taught about it.
        entailment: what the fact implies; asked, and taught for train subjects.
        beside: further sentences that are taught with the fact.
        hop: what the model should already know, if the entailment depends on it; only asked.
    """

    subject: str
    fact: Statement
    entailment: Statement
    beside: tuple[Example, ...] = ()
    hop: Statement | None = None

    def of(self, relation: RelationName) -> Statement:
        """One of the two statements."""
        return self.fact if relation == "fact" else self.entailment


@dataclass(frozen=True)
class Block:
    """Units whose answers are ranked together, and the distractors that ``candidates: ten`` adds to them."""

    units: tuple[Unit, ...]
    distractors: dict[RelationName, tuple[str, ...]]


def blocks_of_people(data: DataSpec, stream: str) -> list[list[str]]:
    """For each block, 20 people (2 n if n > 10) with distinct first tokens, as candidates need. Nobody occurs twice.

    Raises:
        UserError: there are not enough names.
    """
    used, names = Counter[str](), []
    last_names = {first: streams.shuffled(f"{stream}/last/{first}", LAST_NAMES) for first in ANSWER_NAMES}
    for block in range(data.m_test + data.m_train):
        firsts = streams.shuffled(f"{stream}/first/{block}", ANSWER_NAMES)[: 2 * max(data.n, 10)]
        if any(used[first] == len(LAST_NAMES) for first in firsts):
            raise UserError(f"names run out after {block:,} blocks of people; lower --m-test or --m-train")
        names.append([f"{first} {last_names[first][used[first]]}" for first in firsts])
        used.update(firsts)
    return names


def check_blocks(data: DataSpec) -> None:
    """Check that a data protocol fits blocks. Raises ValueError: it does not (says what to change)."""
    if data.n > len(ANSWER_NAMES) // 2:
        raise ValueError(f"n = {data.n}: a block holds at most {len(ANSWER_NAMES) // 2} people; lower --n")
    if data.candidates == "all":
        raise ValueError("--candidates all would rank the answers of all blocks; give --candidates in-use or ten")
    if data.candidates == "ten" and data.n > 10:
        raise ValueError(f"ten candidates cannot hold {data.n} answers in use; give --candidates in-use")


def task_of_blocks(blocks: Sequence[Block], data: DataSpec, stream: str) -> Task:
    """What is taught and asked about blocks; the first ``m_test`` are held out."""
    train: list[Example] = []
    probes: list[Probe] = []
    for number, block in enumerate(blocks):
        split: Split = "test" if number < data.m_test else "train"
        places = tuple(range(len(block.units)))
        taught: Sequence[int] = places
        if data.variant == "shuffled":
            taught = streams.permutation(f"{stream}/shuffle/{number}", len(places))
        for place, unit in enumerate(block.units):
            label = str(number * data.n + place)
            statements: list[tuple[RelationName, str]] = [("fact", unit.fact.answer)]
            if split == "train" and data.variant != "no-entailment":
                statements.append(("entailment", block.units[taught[place]].entailment.answer))
            for relation, answer in statements:
                statement, when = unit.of(relation), thirds(data.order, split, relation)
                train += [
                    Example(statement.prompts[i], answer, statement.weight, relation, unit.subject, label, when)
                    for i in data.templates
                ]
            train += [replace(each, thirds=thirds(data.order, split, "fact")) for each in unit.beside]
            for relation in RELATIONS:
                answers = tuple(each.of(relation).answer for each in block.units)
                if data.candidates == "ten":
                    answers += block.distractors[relation][: 10 - data.n]
                prompt, quantity = unit.of(relation).prompts[data.probe_template], f"{split}_{relation}"
                probes.append(Probe(prompt, answers, place, places, quantity, label, unit.subject))
            if unit.hop is not None:
                known = tuple(each.hop.answer for each in block.units if each.hop)
                probes.append(Probe(unit.hop.prompts[0], known, place, places, "hop", label, unit.subject))
    asked = quantities(data)
    return Task(tuple(train), tuple(probes), (*asked, Quantity("hop", "shown")) if blocks[0].units[0].hop else asked)
