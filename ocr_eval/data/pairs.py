"""Associations of pairs, the structure of the paper: a subject's fact determines its entailment.

Every subject has a fact; train subjects also have an entailment in training:

    training set = facts of all subjects + entailments of train subjects
    probes       = facts and entailments of all subjects (the finding is the entailments of test subjects)

A file lists its pairs itself, or is *derived* from a parent by a fixed permutation of the parent's entailment answers
(the counterfactual of city-language is city-language under a 20-cycle). Pure; no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from ocr_eval.common import streams, yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Example, Probe, Quantity, Role, Task
from ocr_eval.specs.association import Association, TwoRelations, Variant, Word, repeated
from ocr_eval.specs.names import people
from ocr_eval.specs.run import DataSpec, Order
from ocr_eval.specs.strict import Strict

RelationName = Literal["fact", "entailment"]
Split = Literal["train", "test"]
RELATIONS: tuple[RelationName, ...] = ("fact", "entailment")

#: How many circles of answers are tried for the ``shuffled`` control; one in three or four is as even as possible.
_CIRCLES = 64


class PairAssociation(TwoRelations):
    """The two relations with templates, and the pairs (b_i, c_i).

    ``pairs`` is a list of (fact answer b_i, entailment answer c_i). In YAML it is the mapping ``b: c``.
    """

    variants: ClassVar[tuple[Variant, ...]] = get_args(Variant)
    pairs: Annotated[tuple[tuple[Word, Word], ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _check_pairs(self) -> PairAssociation:
        for side in RELATIONS:
            if answer := repeated(self.answers(side)):
                raise ValueError(f"the {side} answer '{answer}' occurs twice in pairs; list every answer once")
        return self

    @classmethod
    def from_yaml(cls, content: dict[str, Any], path: Path) -> PairAssociation:
        """Parse a file that lists its pairs or derives them."""
        return _read(content, path.resolve(), ancestors=())

    def answers(self, relation: RelationName) -> list[str]:
        """All answers of one side, in the order of the pairs."""
        side = RELATIONS.index(relation)
        return [pair[side] for pair in self.pairs]

    def size(self) -> dict[str, int]:
        """Number of pairs."""
        return {"pairs": len(self.pairs)}

    def as_text(self) -> str:
        """Templates by number, then the pairs."""
        lines = []
        for name, relation in (("fact", self.fact), ("entailment", self.entailment)):
            lines += [f"{name:10} {index}  {template}" for index, template in enumerate(relation.templates)]
        width = max(len(b) for b, _ in self.pairs)
        return "\n".join([*lines, "", *(f"{b:{width}}  {c}" for b, c in self.pairs)])

    def check(self, data: DataSpec) -> None:
        """There must be enough pairs, candidates and templates."""
        pairs = len(self.pairs)
        if data.n > pairs:
            raise ValueError(f"n = {data.n} is more than the {pairs} pairs of '{self.name}'; lower --n")
        if data.candidates == "ten" and data.n > 10:
            raise ValueError(f"ten candidates cannot hold {data.n} answers in use; give --candidates in-use or all")
        if data.candidates == "ten" and pairs < 10:
            raise ValueError(f"'{self.name}' has {pairs} pairs and cannot give ten candidates; use --candidates all")
        super().check(data)

    def whole(self, template: int) -> dict[str, Any]:
        """All pairs in use, with one subject each."""
        return {**super().whole(template), "n": len(self.pairs), "m_train": 0, "m_test": 1}

    def build(self, data: DataSpec, stream: str) -> Task:
        """Draw the pairs in use, names and groups. Group g, the unit of its subjects, has the g-th pair in use."""
        order = streams.permutation(f"{stream}/pairs", len(self.pairs))
        # The in-use answers, then distractors that no subject has: 10 - n of them, all of them, or none.
        count = {"in-use": data.n, "ten": 10, "all": len(order)}[data.candidates]
        ranked: dict[RelationName, tuple[str, ...]] = {}
        for relation in RELATIONS:
            answers = self.answers(relation)
            ranked[relation] = tuple(answers[i] for i in order[:count])
        subjects = list(_subjects(data, stream))
        taught_group = {subject: subject.group for subject in subjects if subject.split == "train"}
        if data.variant == "shuffled":  # each is dealt the group whose entailment it is taught
            dealt = chain.from_iterable(deal(f"{stream}/shuffle", data.n, data.m_train))
            taught_group = dict(zip(taught_group, dealt, strict=True))
        train, probes, in_use = [], [], tuple(range(data.n))
        for subject in subjects:
            unit = str(subject.group)
            prompts = {"fact": self.fact.prompts(subject.name), "entailment": self.entailment.prompts(subject.name)}
            statements: list[tuple[RelationName, int]] = []
            if data.variant != "no-fact":
                statements.append(("fact", subject.group))
            if subject.split == "train" and data.variant not in ("no-entailment", "regrouped"):
                statements.append(("entailment", taught_group[subject]))
            for template in data.templates:
                for relation, group in statements:
                    prompt, answer = prompts[relation][template], ranked[relation][group]
                    when = thirds(data.order, subject.split, relation)
                    train.append(Example(prompt, answer, 1.0, relation, subject.name, unit, when))
            for relation in RELATIONS:
                prompt, quantity = prompts[relation][data.probe_template], f"{subject.split}_{relation}"
                probes.append(Probe(prompt, ranked[relation], subject.group, in_use, quantity, unit, subject.name))
        return Task(tuple(train), tuple(probes), quantities(data))


class _OwnFile(TwoRelations):
    """A file that lists its pairs."""

    pairs: Annotated[dict[Word, Word], Field(min_length=2)]


class _Derivation(Strict):
    """Pair i takes the parent's entailment answer at position ``permutation[i]``."""

    parent: Annotated[str, Field(min_length=1)]
    permutation: list[int]


class _DerivedFile(Association):
    """A file that permutes the entailment answers of a parent."""

    derived: _Derivation


def _read(content: dict[str, Any], path: Path, ancestors: tuple[Path, ...]) -> PairAssociation:
    if "derived" not in content:
        own = yaml_files.parse(_OwnFile, content, str(path))
        return _association(own, own, own.pairs.items(), path)
    derived = yaml_files.parse(_DerivedFile, content, str(path))
    origin, permutation = derived.derived.parent, derived.derived.permutation
    try:
        if yaml_files.looks_like_path(origin):
            origin = str(path.parent / yaml_files.expand(origin))
        found = yaml_files.find_yaml("association", "templates", origin).resolve()
    except UserError as error:
        raise UserError(f"{path}: 'derived.parent': {error}") from error
    if found in (path, *ancestors):
        raise UserError(f"{found} is derived from itself. The chain of parents must end in a file with pairs.")
    parent = _read(yaml_files.read_yaml(found), found, (path, *ancestors))
    if sorted(permutation) != list(range(len(parent.pairs))):
        raise UserError(
            f"{path}: 'derived.permutation' must contain each of 0 to {len(parent.pairs) - 1} once, "
            f"one position per pair of '{parent.name}'."
        )
    entailed = parent.answers("entailment")
    if permutation == sorted(permutation):
        raise UserError(f"{path}: 'derived.permutation' moves nothing, so all pairs are the parent's.")
    pairs = [(b, entailed[source]) for b, source in zip(parent.answers("fact"), permutation, strict=True)]
    return _association(derived, parent, pairs, path)


def _association(
    file: Association, wordings: TwoRelations, pairs: Iterable[tuple[str, str]], path: Path
) -> PairAssociation:
    head = {key: getattr(file, key) for key in Association.model_fields}
    content = {**head, "fact": wordings.fact, "entailment": wordings.entailment, "pairs": tuple(pairs)}
    return yaml_files.parse(PairAssociation, content, str(path))


@dataclass(frozen=True)
class _Subject:
    """A fictitious person: its group (pair), and whether its entailment is taught."""

    name: str
    group: int
    split: Split


def quantities(data: DataSpec) -> tuple[Quantity, ...]:
    """What is scored, by split and relation; also for older records, which do not state it themselves.

    Facts and train entailments must be learned before held-out entailments mean anything; in the controls some are
    not taught, or others than those that are asked.
    """
    fact: Role = "shown" if data.variant == "no-fact" else "premise"
    entailment: Role = "premise" if data.variant in ("real", "no-fact") else "shown"
    of_train = (Quantity("train_fact", fact), Quantity("train_entailment", entailment)) if data.m_train else ()
    return (*of_train, Quantity("test_fact", fact), Quantity("test_entailment", "finding"))


def thirds(order: Order, split: Split, relation: RelationName) -> tuple[int, ...]:
    """The thirds of training in which a statement is taught; empty if everything is taught throughout.

    As in Feng et al. (arXiv 2412.04614): first the link between facts and entailments, through train subjects, then
    the facts of test subjects. For their grafting, all facts come before all entailments.
    """
    if order == "together":
        return ()
    if order == "entailments-last":
        return (0,) if relation == "fact" else (1, 2)
    if split == "test":
        return (2,)
    return (0, 1) if order == "joint" else (0 if order.startswith(relation) else 1,)


def _subjects(data: DataSpec, stream: str) -> Iterator[_Subject]:
    """All subjects, group by group, train subjects first.

    Test subjects get the names drawn first, so that they are the same people for every m_train.
    """
    names = iter(people(f"{stream}/people", data.subjects))
    test = [list(islice(names, data.m_test)) for _ in range(data.n)]
    for place, of_test in enumerate(test):
        group = (place + (data.variant == "regrouped")) % data.n
        yield from (_Subject(name, group, "train") for name in islice(names, data.m_train))
        yield from (_Subject(name, group, "test") for name in of_test)


def deal(stream: str, n: int, m_train: int) -> list[list[int]]:
    """Deal out train entailments for the ``shuffled`` control, so that there is nothing to infer.

    Every answer is taught equally often in total and, as nearly as possible, within each group; groups are taught their
    own answer as often as chance predicts, m_train times in total. A random permutation would often teach a group
    mostly one answer (in every other data set, some group its own), and so a link.

    Returns:
        For each of the n groups, the m_train groups whose answers its train subjects are taught.
    """
    extra = m_train % n  # how many answers a group is taught once more: those that follow it on a circle of answers

    def extras(group: int, place: Sequence[int]) -> list[int]:
        return [answer for answer in range(n) if (place[answer] - group) % n < extra]

    def too_many(place: Sequence[int]) -> int:
        return abs(sum(group in extras(group, place) for group in range(n)) - extra)

    circles = (streams.permutation(f"{stream}/{attempt}", n) for attempt in range(_CIRCLES))
    place = min(circles, key=too_many)
    return [list(range(n)) * (m_train // n) + extras(group, place) for group in range(n)]
