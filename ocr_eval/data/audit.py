"""Can an association be scored on a model? What its tokenizer makes of the candidates, before any training.

First-token scoring tells candidates apart by one token, so their first tokens must be distinct, and prompt and
answer must be cut cleanly. A first token that is hardly a word (a lone space, a letter) is generic: it is
distinct here, but its probability is shared with many other words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Probe, Task, task_of
from ocr_eval.data.tokenize import Ids, continuations, encode, same_first_token
from ocr_eval.specs.association import Association
from ocr_eval.specs.run import DataSpec


@dataclass(frozen=True)
class AnswerAudit:
    """One candidate: its tokens after the prompt, and whether the first is a generic piece."""

    answer: str
    pieces: tuple[str, ...]
    generic: bool


@dataclass(frozen=True)
class PromptAudit:
    """Candidates after one prompt.

    Attributes:
        quantity: what the prompt asks for.
        prompt: the prompt that was tried.
        answers: each candidate.
        clashes: groups of candidates with one first token; empty when first-token scoring can be done.
        unsplit: why the boundary does not split cleanly, None when it does.
    """

    quantity: str
    prompt: str
    answers: tuple[AnswerAudit, ...]
    clashes: tuple[tuple[str, ...], ...]
    unsplit: str | None


@dataclass(frozen=True)
class Audit:
    """What a tokenizer makes of an association.

    Attributes:
        bos: the token it puts before every text, None if it adds none.
        prompts: an audit for each prompt that was tried.
    """

    bos: str | None
    prompts: tuple[PromptAudit, ...]

    @property
    def first_token_scorable(self) -> bool:
        """Whether every boundary splits and all first tokens are distinct."""
        return all(not prompt.clashes and prompt.unsplit is None for prompt in self.prompts)

    def as_text(self, title: str) -> str:
        """The audit as lines for a terminal."""
        can = "can" if self.first_token_scorable else "CANNOT"
        lines = [f"{title}: {can} be scored first-token; BOS {'none' if self.bos is None else self.bos}"]
        for tried in self.prompts:
            counts = Counter(len(answer.pieces) for answer in tried.answers)
            tokens = ", ".join(f"{n} of {length} token{'s'[: length > 1]}" for length, n in sorted(counts.items()))
            lines.append(f"  {tried.quantity:16} '{tried.prompt} ...': {tokens or tried.unsplit}")
            lines += [f"    one first token: {' = '.join(clash)}" for clash in tried.clashes]
            generic = [f"{a.answer} ({' '.join(a.pieces)})" for a in tried.answers if a.generic]
            if generic:
                lines.append(f"    generic first piece: {', '.join(generic)}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """A plain object for audit.json and --json."""
        return {
            "bos": self.bos,
            "first_token_scorable": self.first_token_scorable,
            "prompts": [
                {
                    "quantity": tried.quantity,
                    "prompt": tried.prompt,
                    "clashes": [list(clash) for clash in tried.clashes],
                    "unsplit": tried.unsplit,
                    "multi_token": [a.answer for a in tried.answers if len(a.pieces) > 1],
                    "generic": [a.answer for a in tried.answers if a.generic],
                    "pieces": {a.answer: list(a.pieces) for a in tried.answers},
                }
                for tried in self.prompts
            ],
        }


def audit_association(tokenizer: Any, association: Association) -> Audit:
    """Audit all answers of an association after every template."""
    protocols = [DataSpec(**association.whole(template)) for template in range(association.wordings)]
    return _audit(tokenizer, (task_of(association, data, "audit") for data in protocols))


def audit_task(tokenizer: Any, task: Task) -> Audit:
    """Audit the candidates of a run, after the first prompt of each quantity that has them."""
    return _audit(tokenizer, [task])


def _audit(tokenizer: Any, tasks: Iterable[Task]) -> Audit:
    tried: list[PromptAudit] = []
    for task in tasks:
        firsts: dict[tuple[str, tuple[str, ...]], Probe] = {}
        for probe in task.probes:
            firsts.setdefault((probe.quantity, probe.candidates), probe)
        tried += [_audit_prompt(tokenizer, probe) for probe in firsts.values()]
    return Audit(_bos(tokenizer), tuple(tried))


def _audit_prompt(tokenizer: Any, probe: Probe) -> PromptAudit:
    try:
        cut = continuations(tokenizer, [(probe.prompt, answer) for answer in probe.candidates])
    except UserError as error:
        return PromptAudit(probe.quantity, probe.prompt, (), (), str(error))
    ids = [tokens.answer for tokens in cut]
    return PromptAudit(
        probe.quantity,
        probe.prompt,
        tuple(_audit_answer(tokenizer, answer, of) for answer, of in zip(probe.candidates, ids, strict=True)),
        tuple(same_first_token(probe.candidates, ids)),
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
