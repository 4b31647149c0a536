"""Can an association be scored on a model? What its tokenizer makes of the candidates, before any training.

First-token scoring tells candidates apart by one token, so their first tokens must be distinct, and prompt and
answer must be cut cleanly. A first token that is hardly a word (a lone space, a letter) is generic: it is
distinct here, but its probability is shared with many other words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.data.dataset import RELATIONS, Dataset, RelationName
from ocr_eval.data.tokenize import Ids, continuations, encode
from ocr_eval.specs.association import Association


@dataclass(frozen=True)
class AnswerAudit:
    """One candidate: its tokens after the prompt, and whether the first is a generic piece."""

    answer: str
    pieces: tuple[str, ...]
    generic: bool


@dataclass(frozen=True)
class RelationAudit:
    """The candidates of one relation after one prompt.

    Attributes:
        relation: fact or entailment.
        prompt: the prompt that was tried.
        answers: each candidate.
        clashes: groups of candidates with one first token; empty when first-token scoring can be done.
        unsplit: why the boundary does not split cleanly, None when it does.
    """

    relation: RelationName
    prompt: str
    answers: tuple[AnswerAudit, ...]
    clashes: tuple[tuple[str, ...], ...]
    unsplit: str | None


@dataclass(frozen=True)
class Audit:
    """What a tokenizer makes of an association.

    Attributes:
        bos: the token it puts before every text, None if it adds none.
        relations: an audit for each relation and prompt that was tried.
    """

    bos: str | None
    relations: tuple[RelationAudit, ...]

    @property
    def first_token_scorable(self) -> bool:
        """Whether every boundary splits and all first tokens are distinct."""
        return all(not relation.clashes and relation.unsplit is None for relation in self.relations)

    def as_text(self, title: str) -> str:
        """The audit as lines for a terminal."""
        can = "can" if self.first_token_scorable else "CANNOT"
        lines = [f"{title}: {can} be scored first-token; BOS {'none' if self.bos is None else self.bos}"]
        for relation in self.relations:
            counts = Counter(len(answer.pieces) for answer in relation.answers)
            tokens = ", ".join(f"{n} of {length} token{'s'[: length > 1]}" for length, n in sorted(counts.items()))
            lines.append(f"  {relation.relation:10} '{relation.prompt} ...': {tokens or relation.unsplit}")
            lines += [f"    one first token: {' = '.join(clash)}" for clash in relation.clashes]
            generic = [f"{a.answer} ({' '.join(a.pieces)})" for a in relation.answers if a.generic]
            if generic:
                lines.append(f"    generic first piece: {', '.join(generic)}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """A plain object for audit.json and --json."""
        return {
            "bos": self.bos,
            "first_token_scorable": self.first_token_scorable,
            "relations": [
                {
                    "relation": relation.relation,
                    "prompt": relation.prompt,
                    "clashes": [list(clash) for clash in relation.clashes],
                    "unsplit": relation.unsplit,
                    "multi_token": [a.answer for a in relation.answers if len(a.pieces) > 1],
                    "generic": [a.answer for a in relation.answers if a.generic],
                    "pieces": {a.answer: list(a.pieces) for a in relation.answers},
                }
                for relation in self.relations
            ],
        }


def audit_association(tokenizer: Any, association: Association, subject: str = "Anna Hill") -> Audit:
    """Audit all answers of an association after every template."""
    relations = []
    for name in RELATIONS:
        wording = association.fact if name == "fact" else association.entailment
        for template in range(len(wording.templates)):
            prompt = wording.prompt(template, subject)
            relations.append(_audit_relation(tokenizer, name, prompt, association.answers(name)))
    return Audit(_bos(tokenizer), tuple(relations))


def audit_dataset(tokenizer: Any, dataset: Dataset) -> Audit:
    """Audit the candidates of a run after the first prompt of each relation."""
    relations = []
    for name in RELATIONS:
        prompt = next(probe.prompt for probe in dataset.probes if probe.relation == name)
        relations.append(_audit_relation(tokenizer, name, prompt, dataset.candidates[name].answers))
    return Audit(_bos(tokenizer), tuple(relations))


def _audit_relation(tokenizer: Any, relation: RelationName, prompt: str, answers: Sequence[str]) -> RelationAudit:
    try:
        cut = continuations(tokenizer, [(prompt, answer) for answer in answers])
    except UserError as error:
        return RelationAudit(relation, prompt, (), (), str(error))
    by_first: dict[int, list[str]] = {}
    for answer, tokens in zip(answers, cut, strict=True):
        by_first.setdefault(tokens.answer[0], []).append(answer)
    return RelationAudit(
        relation,
        prompt,
        tuple(_audit_answer(tokenizer, answer, c.answer) for answer, c in zip(answers, cut, strict=True)),
        tuple(tuple(words) for words in by_first.values() if len(words) > 1),
        None,
    )


def _audit_answer(tokenizer: Any, answer: str, ids: Ids) -> AnswerAudit:
    pieces = tuple(tokenizer.convert_ids_to_tokens(list(ids)))
    text = tokenizer.decode([ids[0]]).strip()
    generic = len(text) <= 1 and len(answer) > 1
    return AnswerAudit(answer, pieces, generic)


def _bos(tokenizer: Any) -> str | None:
    """The token before every text, seen by encoding two texts that share no token."""
    first, second = encode(tokenizer, ["a", "b"])
    same = first[0] == second[0]
    tokens: list[str] = tokenizer.convert_ids_to_tokens([first[0]])
    return tokens[0] if same else None
