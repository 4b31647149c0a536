"""(Task, tokenizer) -> token sequences. The only owner of the prompt/answer boundary.

The rule: ``answer ids = encode(prompt + " " + answer)[len(encode(prompt)):]``. Encoding " answer" alone
gives a lone space piece under some SentencePiece variants, and then all answers share their first token.
A BOS token is added if the tokenizer adds one when it encodes, and only then.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Half, Probe, Task

Ids = tuple[int, ...]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    eos_token_id: int | None

    def __call__(self, text: list[str]) -> Any:
        """Encode texts; the result has ``input_ids``."""


@dataclass(frozen=True)
class Continuation:
    """The tokens of a prompt and of one answer after it, neither empty. The other fields are those of ``Example``."""

    prompt: Ids
    answer: Ids
    weight: float = 1.0
    thirds: tuple[int, ...] = ()
    half: Half | None = None


@dataclass(frozen=True)
class ProbeTokens:
    """One probe: its prompt's tokens, and each candidate's tokens after it.

    Attributes:
        prompt: the prompt's token ids, with BOS if the tokenizer adds one.
        candidates: a tuple of ids for each candidate, in the probe's order.
    """

    probe: Probe
    prompt: Ids
    candidates: tuple[Ids, ...]

    @cached_property
    def begin_alike(self) -> bool:
        """Whether candidates share a first token, so that it takes all their tokens to tell them apart."""
        return len({ids[0] for ids in self.candidates}) < len(self.candidates)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Token ids of each text, with BOS if the tokenizer adds one, without a final EOS."""
    rows = [tuple(row) for row in tokenizer(list(texts)).input_ids]
    eos = tokenizer.eos_token_id
    return [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in rows]


def windows(ids: Ids, bos: int | None, size: int) -> list[Ids]:
    """A text's tokens in pieces of at most ``size``; each begins with BOS if the text does."""
    begin = ids[:1] if ids[0] == bos else ()
    step = size - len(begin)
    return [(*begin, *ids[start : start + step]) for start in range(len(begin), len(ids), step)]


def continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Tokens of (prompt, answer) pairs, cut at the boundary.

    Raises:
        UserError: the answer adds no token, or the prompt's tokens are not a prefix of the sentence's.
    """
    prompts = encode(tokenizer, [prompt for prompt, _ in pairs])
    wholes = encode(tokenizer, [f"{prompt} {answer}" for prompt, answer in pairs])
    result = []
    for (prompt, answer), prompt_ids, whole in zip(pairs, prompts, wholes, strict=True):
        if not prompt_ids or whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
            raise UserError(
                f"This tokenizer does not split '{prompt} {answer}' between prompt and answer: the prompt's tokens "
                f"are not a prefix of the sentence's. Reword the template to have a plain word before the answer."
            )
        result.append(Continuation(prompt_ids, whole[len(prompt_ids) :]))
    return result


def training_tokens(tokenizer: Tokenizer, task: Task) -> list[Continuation]:
    """Tokens of every training example, in the order of ``task.train``."""
    cut = continuations(tokenizer, [(example.prompt, example.answer) for example in task.train])
    return [
        replace(tokens, weight=example.weight, thirds=example.thirds, half=example.half)
        for tokens, example in zip(cut, task.train, strict=True)
    ]


def probe_tokens(tokenizer: Tokenizer, task: Task) -> list[ProbeTokens]:
    """Tokens of every probe with all its candidates, in the order of ``task.probes``.

    Raises:
        UserError: two candidates share their first token (names them), which first-token scoring cannot tell
            apart, unless the task allows it; or a boundary that does not split.
    """
    found = tokens_of(tokenizer, task.probes)
    if not task.whole_answers:
        firsts: dict[tuple[Ids, ...], Probe] = {}
        for each in found:
            firsts.setdefault(each.candidates, each.probe)
        for ids, probe in firsts.items():
            check_first_tokens(probe, ids)
    return found


def tokens_of(tokenizer: Tokenizer, probes: Sequence[Probe]) -> list[ProbeTokens]:
    """Tokens of probes with all their candidates. Raises UserError: a boundary that does not split."""
    cut = iter(continuations(tokenizer, [(probe.prompt, each) for probe in probes for each in probe.candidates]))
    found = []
    for probe in probes:
        of_probe = [next(cut) for _ in probe.candidates]
        found.append(ProbeTokens(probe, of_probe[0].prompt, tuple(each.answer for each in of_probe)))
    return found


def check_first_tokens(probe: Probe, ids: Sequence[Sequence[Hashable]]) -> None:
    """Raises UserError if two candidates share their first token, which first-token scoring cannot tell apart."""
    clashes = [" = ".join(words) for words in same_first_token(probe.candidates, ids)]
    if clashes:
        raise UserError(
            f"After '{probe.prompt}' some candidates begin with the same token for this tokenizer "
            f"({'; '.join(clashes)}), so first-token scoring cannot tell them apart. "
            "Replace one of each in the association."
        )


def same_first_token(answers: Sequence[str], ids: Sequence[Sequence[Hashable]]) -> list[tuple[str, ...]]:
    """Groups of answers that share their first token."""
    by_first: dict[Hashable, list[str]] = {}
    for answer, answer_ids in zip(answers, ids, strict=True):
        by_first.setdefault(answer_ids[0], []).append(answer)
    return [tuple(words) for words in by_first.values() if len(words) > 1]
