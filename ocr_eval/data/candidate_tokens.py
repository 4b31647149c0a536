"""``data candidates``: can an association be scored on a model? Checks how its tokenizer splits the candidates.

First-token scoring tells candidates apart by one token, so their first tokens must be distinct, and the boundary
between prompt and answer must split cleanly. A first token that is hardly a word (a lone space, a letter) is
generic: it is distinct here, but many other words begin with it, too.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Probe, Task, task_of
from ocr_eval.data.tokenize import continuations, encode, same_first_token
from ocr_eval.specs.association import Association
from ocr_eval.specs.run import DataSpec


@dataclass(frozen=True)
class PromptAudit:
    """The candidates after one prompt.

    Attributes:
        quantity: what the prompt asks for.
        pieces: the tokens of each candidate; empty if the boundary does not split.
        generic: candidates whose first token is generic.
        clashes: groups of candidates that share their first token; empty if first-token scoring is possible.
        unsplit: why the boundary does not split cleanly, None if it does.
    """

    quantity: str
    prompt: str
    pieces: dict[str, tuple[str, ...]] = field(default_factory=dict)
    generic: tuple[str, ...] = ()
    clashes: tuple[tuple[str, ...], ...] = ()
    unsplit: str | None = None

    @property
    def multi_token(self) -> list[str]:
        """Candidates of more than one token."""
        return [answer for answer, pieces in self.pieces.items() if len(pieces) > 1]


@dataclass(frozen=True)
class Audit:
    """How a tokenizer splits an association's candidates.

    Attributes:
        bos: the token that it puts before every text, None if it adds none.
        whole_answers: whether answers that begin with the same token are scored over all their tokens.
    """

    bos: str | None
    prompts: tuple[PromptAudit, ...]
    whole_answers: bool = False

    @property
    def first_token_scorable(self) -> bool:
        """Whether every boundary splits and all first tokens are distinct."""
        return all(not prompt.clashes and prompt.unsplit is None for prompt in self.prompts)

    @property
    def scorable(self) -> bool:
        """Whether first-token scoring can rank all candidates, if need be over all tokens of those that clash."""
        splits = all(tried.unsplit is None for tried in self.prompts)
        return self.first_token_scorable or (self.whole_answers and splits)

    @property
    def verdict(self) -> str:
        """Whether it can be scored, to follow the association's name."""
        how = "" if self.first_token_scorable else "; answers that begin alike are scored over all their tokens"
        return f"can be scored first-token{how}" if self.scorable else "CANNOT be scored first-token"

    def as_text(self, title: str) -> str:
        """The audit as lines for a terminal."""
        lines = [f"{title}: {self.verdict}; BOS {'none' if self.bos is None else self.bos}"]
        for tried in self.prompts:
            counts = Counter(map(len, tried.pieces.values()))
            tokens = ", ".join(f"{n} of {length} token{'s'[: length > 1]}" for length, n in sorted(counts.items()))
            lines.append(f"  {tried.quantity:16} '{tried.prompt} ...': {tokens or tried.unsplit}")
            lines += [f"    same first token: {' = '.join(clash)}" for clash in tried.clashes]
            if tried.generic:
                generic = ", ".join(f"{answer} ({' '.join(tried.pieces[answer])})" for answer in tried.generic)
                lines.append(f"    generic first piece: {generic}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """A plain object for audit.json and --json."""
        return {
            "bos": self.bos,
            "first_token_scorable": self.first_token_scorable,
            "prompts": [{**asdict(tried), "multi_token": tried.multi_token} for tried in self.prompts],
        }


def refuse_known_words(tokenizer: Any, association: Association) -> None:
    """Check that a model cannot know the association's invented words.

    Raises:
        UserError: one is a single token; vocabularies have those only for text that is frequent.
    """
    alone, *within = encode(tokenizer, ["The", *(f"The {word}" for word in association.nonce)])
    for word, ids in zip(association.nonce, within, strict=True):
        if len(ids) - len(alone) < 2:
            raise UserError(
                f"Association '{association.name}' uses '{word}' as an invented word, but it is one token of this "
                "model, which may know it. Invent another."
            )


def audit_association(tokenizer: Any, association: Association) -> Audit:
    """Audit all answers of an association after every template.

    Raises:
        UserError: the model may know one of its invented words.
    """
    refuse_known_words(tokenizer, association)
    protocols = [DataSpec(**association.whole(template)) for template in range(association.wordings)]
    return _audit(tokenizer, (task_of(association, data, "audit") for data in protocols))


def audit_task(tokenizer: Any, task: Task) -> Audit:
    """Audit the candidates of a run, after the first prompt of each quantity that has them."""
    return _audit(tokenizer, [task])


def _audit(tokenizer: Any, tasks: Iterable[Task]) -> Audit:
    tried: list[PromptAudit] = []
    whole_answers = False
    for task in tasks:
        whole_answers |= task.whole_answers
        firsts: dict[tuple[str, tuple[str, ...]], Probe] = {}
        for probe in task.probes:
            firsts.setdefault((probe.quantity, probe.candidates), probe)
        tried += [_audit_prompt(tokenizer, probe) for probe in firsts.values()]
    first, second = encode(tokenizer, ["a", "b"])  # these share at most a BOS token
    bos = tokenizer.convert_ids_to_tokens([first[0]])[0] if first[0] == second[0] else None
    return Audit(bos, tuple(tried), whole_answers)


def _audit_prompt(tokenizer: Any, probe: Probe) -> PromptAudit:
    try:
        cut = continuations(tokenizer, [(probe.prompt, answer) for answer in probe.candidates])
    except UserError as error:
        return PromptAudit(probe.quantity, probe.prompt, unsplit=str(error))
    ids = {answer: tokens.answer for answer, tokens in zip(probe.candidates, cut, strict=True)}
    return PromptAudit(
        probe.quantity,
        probe.prompt,
        pieces={answer: tuple(tokenizer.convert_ids_to_tokens(list(own))) for answer, own in ids.items()},
        generic=tuple(
            answer for answer, own in ids.items() if len(answer) > 1 and len(tokenizer.decode([own[0]]).strip()) <= 1
        ),
        clashes=tuple(same_first_token(probe.candidates, list(ids.values()))),
    )
