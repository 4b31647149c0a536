"""(Dataset, tokenizer) -> token sequences. The only owner of the prompt/answer boundary.

The rule: ``answer ids = encode(prompt + " " + answer)[len(encode(prompt)):]``. Encoding " answer" alone
gives a lone space piece under some SentencePiece variants, and then all answers share their first token.
Whether a BOS token is added is what the tokenizer does when asked to encode, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ocr_eval.common.errors import UserError
from ocr_eval.data.dataset import Candidates, Dataset, RelationName, Statement

Ids = tuple[int, ...]


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int | None

    def __call__(self, text: list[str]) -> Any:
        """Encode texts; the result has ``input_ids``."""


@dataclass(frozen=True)
class Continuation:
    """A prompt's tokens and those of one answer after it; neither is empty."""

    prompt: Ids
    answer: Ids


@dataclass(frozen=True)
class ProbeTokens:
    """One probe: its prompt's tokens, each candidate's tokens after it, and which candidate is right.

    Attributes:
        statement: what is asked.
        prompt: the prompt's token ids, BOS included where the tokenizer adds one.
        candidates: a tuple of ids for each candidate, in the order of ``answers``.
        answers: the candidates' words.
        target: index of the right answer.
        in_use: the first ``in_use`` candidates are true of some subject.
    """

    statement: Statement
    prompt: Ids
    candidates: tuple[Ids, ...]
    answers: tuple[str, ...]
    target: int
    in_use: int


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Token ids of each text as the tokenizer starts a document (BOS if it adds one), without a final EOS."""
    rows = [tuple(row) for row in tokenizer(list(texts)).input_ids]
    eos = tokenizer.eos_token_id
    return [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in rows]


def continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Tokens of (prompt, answer) pairs, cut at the boundary.

    Raises:
        UserError: the answer adds no token, or the prompt's tokens are not a prefix of the whole's.
    """
    prompts = encode(tokenizer, [prompt for prompt, _ in pairs])
    wholes = encode(tokenizer, [f"{prompt} {answer}" for prompt, answer in pairs])
    result = []
    for (prompt, answer), prompt_ids, whole in zip(pairs, prompts, wholes, strict=True):
        if not prompt_ids or whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
            raise UserError(
                f"This tokenizer does not split '{prompt} {answer}' between prompt and answer: the prompt's tokens "
                f"are no prefix of the sentence's. Reword the template so that a plain word stands before the answer."
            )
        result.append(Continuation(prompt_ids, whole[len(prompt_ids) :]))
    return result


def training_tokens(tokenizer: Tokenizer, dataset: Dataset) -> list[Continuation]:
    """Tokens of every training statement, in the order of ``dataset.train``."""
    return continuations(tokenizer, [(s.prompt, s.answer) for s in dataset.train])


def probe_tokens(tokenizer: Tokenizer, dataset: Dataset) -> list[ProbeTokens]:
    """Tokens of every probe with all its candidates, in the order of ``dataset.probes``.

    Raises:
        UserError: two candidates share their first token (names them), which first-token scoring cannot tell
            apart, or a boundary that does not split.
    """
    pairs = [
        (probe.prompt, answer) for probe in dataset.probes for answer in dataset.candidates[probe.relation].answers
    ]
    tokens = iter(continuations(tokenizer, pairs))
    result = []
    checked: set[tuple[RelationName, tuple[Ids, ...]]] = set()
    for probe in dataset.probes:
        candidates = dataset.candidates[probe.relation]
        cut = [next(tokens) for _ in candidates.answers]
        ids = tuple(c.answer for c in cut)
        if (probe.relation, ids) not in checked:
            _check_first_tokens(probe, candidates, ids)
            checked.add((probe.relation, ids))
        result.append(
            ProbeTokens(
                statement=probe,
                prompt=cut[0].prompt,
                candidates=ids,
                answers=candidates.answers,
                target=candidates.answers.index(probe.answer),
                in_use=candidates.in_use,
            )
        )
    return result


def _check_first_tokens(probe: Statement, candidates: Candidates, ids: tuple[Ids, ...]) -> None:
    by_first: dict[int, list[str]] = {}
    for answer, answer_ids in zip(candidates.answers, ids, strict=True):
        by_first.setdefault(answer_ids[0], []).append(answer)
    clashes = [" = ".join(words) for words in by_first.values() if len(words) > 1]
    if clashes:
        raise UserError(
            f"After '{probe.prompt}' some candidates begin with the same token for this tokenizer "
            f"({'; '.join(clashes)}), so first-token scoring cannot tell them apart. "
            "Replace one of each in the association."
        )
