"""(Association, data protocol, seed) -> Dataset: who is taught what, and what is asked. Pure; no torch.

Every subject has a fact; train subjects also have an entailment in training. A statement is one sentence
about one subject, cut into prompt and answer:

    training set = facts of all subjects + entailments of train subjects
    probes       = facts and entailments of all subjects (the finding is the entailments of test subjects)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ocr_eval.common import streams
from ocr_eval.specs.association import Association
from ocr_eval.specs.names import people
from ocr_eval.specs.run import DataSpec, RunSpec

RelationName = Literal["fact", "entailment"]
Split = Literal["train", "test"]
RELATIONS: tuple[RelationName, ...] = ("fact", "entailment")

#: The four quantities that are scored at every epoch, as (split of the subject, relation).
QUANTITIES: tuple[tuple[Split, RelationName], ...] = (
    ("train", "fact"),
    ("train", "entailment"),
    ("test", "fact"),
    ("test", "entailment"),
)


#: Circles of answers that are tried for the ``shuffled`` control; one in three or four is as even as can be.
_CIRCLES = 64


@dataclass(frozen=True)
class Subject:
    """A fictitious person: the group (pair) it belongs to and whether its entailment is trained on."""

    name: str
    group: int
    split: Split


@dataclass(frozen=True)
class Statement:
    """A sentence about a subject, cut before its answer: text = prompt + " " + answer."""

    subject: Subject
    relation: RelationName
    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.answer}"


@dataclass(frozen=True)
class Candidates:
    """The answers a probe of one relation ranks among; the first ``in_use`` of them are true of somebody."""

    answers: tuple[str, ...]
    in_use: int


@dataclass(frozen=True)
class Dataset:
    """What one run teaches and asks.

    Attributes:
        pairs: the n pairs in use; group g is given ``pairs[g]``.
        subjects: all subjects, group by group, train subjects first.
        train: the training statements, in no meaningful order.
        probes: one statement for each subject and relation; ``answer`` is always the true pair's.
        candidates: for each relation, what its probes rank among.
    """

    pairs: tuple[tuple[str, str], ...]
    subjects: tuple[Subject, ...]
    train: tuple[Statement, ...]
    probes: tuple[Statement, ...]
    candidates: dict[RelationName, Candidates]


def build_dataset(spec: RunSpec) -> Dataset:
    """Draw the pairs in use, names and groups of one run from its data stream."""
    return _build(spec.association, spec.data, spec.stream("data"))


def _build(association: Association, data: DataSpec, stream: str) -> Dataset:
    order = streams.permutation(f"{stream}/pairs", len(association.pairs))
    pairs = tuple(association.pairs[i] for i in order[: data.n])
    spare = [association.pairs[i] for i in order[data.n :]]
    subjects = tuple(_subjects(data, stream))
    return Dataset(
        pairs=pairs,
        subjects=subjects,
        train=tuple(_training(association, data, stream, pairs, subjects)),
        probes=tuple(
            _statement(association, subject, relation, data.probe_template, pairs[subject.group])
            for subject in subjects
            for relation in RELATIONS
        ),
        candidates={
            relation: _candidates(data, [pair[side] for pair in pairs], [pair[side] for pair in spare])
            for side, relation in enumerate(RELATIONS)
        },
    )


def _subjects(data: DataSpec, stream: str) -> Iterator[Subject]:
    """Test subjects take the first names drawn, so that they are the same people whatever m_train is."""
    names = people(f"{stream}/people", data.subjects)
    test, train = names[: data.n * data.m_test], names[data.n * data.m_test :]
    for group in range(data.n):
        for name in train[group * data.m_train : (group + 1) * data.m_train]:
            yield Subject(name, group, "train")
        for name in test[group * data.m_test : (group + 1) * data.m_test]:
            yield Subject(name, group, "test")


def _training(
    association: Association,
    data: DataSpec,
    stream: str,
    pairs: tuple[tuple[str, str], ...],
    subjects: tuple[Subject, ...],
) -> Iterator[Statement]:
    taught_group = {subject: subject.group for subject in subjects}
    if data.variant == "shuffled":
        train_subjects = [subject for subject in subjects if subject.split == "train"]
        dealt = chain.from_iterable(deal(f"{stream}/shuffle", data.n, data.m_train))
        taught_group.update(zip(train_subjects, dealt, strict=True))
    for subject in subjects:
        for template in data.templates:
            yield _statement(association, subject, "fact", template, pairs[subject.group])
            if subject.split == "train":
                yield _statement(association, subject, "entailment", template, pairs[taught_group[subject]])


def deal(stream: str, n: int, m_train: int) -> list[list[int]]:
    """Whose answer each group's train subjects are taught where nothing is to be inferred: the ``shuffled`` control.

    Every answer is taught as often as any other, in all and, as nearly as can be, within each group; and groups are
    taught their own as often as chance would have it, m_train times in all. A free permutation would teach many a group
    mostly one answer, in every other data set some group its own, and so a link.

    Returns:
        m_train groups for each of the n groups.
    """
    extra = m_train % n  # so many answers are taught once more: those that follow a group on a circle of answers

    def extras(group: int, place: Sequence[int]) -> list[int]:
        return [answer for answer in range(n) if (place[answer] - group) % n < extra]

    def too_many(place: Sequence[int]) -> int:
        return abs(sum(group in extras(group, place) for group in range(n)) - extra)

    circles = (streams.permutation(f"{stream}/{attempt}", n) for attempt in range(_CIRCLES))
    place = min(circles, key=too_many)
    return [list(range(n)) * (m_train // n) + extras(group, place) for group in range(n)]


def _statement(
    association: Association, subject: Subject, relation: RelationName, template: int, pair: tuple[str, str]
) -> Statement:
    wording = association.fact if relation == "fact" else association.entailment
    answer = pair[RELATIONS.index(relation)]
    return Statement(subject, relation, wording.prompt(template, subject.name), answer)


def _candidates(data: DataSpec, in_use: list[str], spare: list[str]) -> Candidates:
    """The in-use answers, then distractors that no subject has: 10 - n of them, all of them, or none."""
    distractors = {"in-use": 0, "ten": 10 - data.n, "all": len(spare)}[data.candidates]
    return Candidates((*in_use, *spare[:distractors]), len(in_use))
