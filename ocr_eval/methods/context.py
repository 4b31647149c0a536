"""Runs that read statements instead of learning them: their contexts, and the pack of ``in-context``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import write_atomic
from ocr_eval.data.tokenize import Continuation, Ids
from ocr_eval.methods.method import Pack
from ocr_eval.methods.view import Cut, View, longest
from ocr_eval.models.base import Base
from ocr_eval.models.weights import file_sha256
from ocr_eval.packing.forest import ROOT, Forest, Reads
from ocr_eval.specs.run import RunSpec

#: The file of a run's context in its folder.
FILE = "context.txt"
#: Tokens reserved for a question and its answer.
_ROOM = 32


@dataclass(frozen=True)
class Context:
    """What a run reads: its tokens, how many of them are BOS (0 or 1), and the positions of the answers' tokens."""

    ids: Ids
    bos: int
    answers: tuple[int, ...]


def draw_context(tokenizer: Any, config: Any, spec: RunSpec, examples: Sequence[Continuation]) -> Context:
    """Write a run's statements as a context, in an order drawn from its seed; ``config`` is the model's.

    Raises:
        UserError: the context is longer than the model, or its attention window, can read.
    """
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and all(example.prompt[0] == bos for example in examples)
    ids: list[int] = [bos] if adds_bos else []
    answers: list[int] = []
    for i in streams.permutation(f"{spec.stream('order')}/context", len(examples)):
        ids += examples[i].prompt[adds_bos:]
        answers += range(len(ids), len(ids) + len(examples[i].answer))
        ids += [*examples[i].answer, *_end(tokenizer, examples[i])]
    most = longest(config)
    if len(ids) + _ROOM > most:
        raise UserError(
            f"in-context over {spec.model.name}: the context of {len(examples)} statements has {len(ids):,} tokens, "
            f"but the model reads {most:,} at most, including the question. {spec.association.to_teach_less}."
        )
    return Context(tuple(ids), int(adds_bos), tuple(answers))


def _end(tokenizer: Any, example: Continuation) -> list[int]:
    """The tokens that end a statement in a context: a full stop and a line break.

    Encoded after the statement, where tokenizers that begin a text with a space piece add none.
    """
    statement = [*example.prompt, *example.answer]
    text = tokenizer.decode(statement, skip_special_tokens=True)
    bare, ended = (tokenizer(each, add_special_tokens=False).input_ids for each in (text, f"{text}.\n"))
    if ended[: len(bare)] == bare:
        return list(ended[len(bare) :])
    return list(tokenizer(".\n", add_special_tokens=False).input_ids)  # the full stop merges with the answer


@dataclass(frozen=True)
class ContextView(View):
    """A base that reads a context before each question; ``contexts`` are by lane, for those that have one."""

    contexts: Mapping[int, Context] = field(default_factory=dict)

    def place(self, lane: int, forest: Forest, reads: Reads) -> tuple[Forest, Reads]:
        return below(self.contexts[lane], forest, reads) if lane in self.contexts else (forest, reads)

    def room(self, lane: int) -> int:
        """The most tokens that a lane can read at once after its context."""
        return super().room(lane) - (len(self.contexts[lane].ids) if lane in self.contexts else 0)


def below(context: Context, forest: Forest, reads: Reads) -> tuple[Forest, Reads]:
    """A forest appended to the end of a context, whose BOS takes the place of the forest's."""
    whole = Forest()
    end, places = whole.add(context.ids)[-1], list[int]()
    for token, parent in zip(forest.ids, forest.parents, strict=True):
        if parent == ROOT and context.bos:
            places.append(end)
        else:
            places += whole.add([token], after=end if parent == ROOT else places[parent])
    return whole, Reads([places[node] for node in reads.nodes], reads.rows, reads.tokens)


@dataclass(frozen=True)
class ContextPack(Pack):
    """Runs over one base, each of which gets its context in its only step; ``given`` are the lanes that took it."""

    base: Base
    contexts: Sequence[Context]
    given: set[int] = field(default_factory=set)
    cut: Cut = field(default_factory=Cut)

    def step(self, lanes: Sequence[int]) -> dict[int, float]:
        """Give some lanes their contexts; returns the mean loss of the answers in them (nats per token)."""
        self.given.update(lanes)
        losses = {}
        for lane in lanes:
            context, forest = self.contexts[lane], Forest()
            forest.add(context.ids)
            before = [place - 1 for place in context.answers]
            reads = Reads(before, list(range(len(before))), [context.ids[place] for place in context.answers])
            with torch.no_grad():
                losses[lane] = -self.view(trained=False).token_logprobs({lane: (forest, reads)})[lane].mean().item()
        return losses

    def view(self, trained: bool = True) -> View:
        contexts = {lane: self.contexts[lane] for lane in self.given} if trained else {}
        return ContextView(self.base, self.base.network, cut=self.cut, contexts=contexts)

    def notes(self, lane: int) -> dict[str, Any]:
        return {"context_tokens": len(self.contexts[lane].ids)}

    def save(self, lane: int, folder: Path) -> str:
        """Write the context, ``context.txt``; returns its sha256."""
        write_atomic(folder / FILE, self.base.tokenizer.decode(self.contexts[lane].ids[self.contexts[lane].bos :]))
        return file_sha256(folder / FILE)
