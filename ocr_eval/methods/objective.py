"""What a learner minimizes: an ``Objective`` turns the log-probabilities of a batch's answers into a scalar.

The default is the mean cross-entropy over the batch's answer tokens, weighted by example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ocr_eval.common import streams
from ocr_eval.data.tokenize import Continuation, Ids
from ocr_eval.methods.dpo import Settings

#: The answers that are read after each example's prompt, its own first.
Answers = list[list[Ids]]


@dataclass(frozen=True)
class BatchSize:
    """What means are over: the whole batch, however it is split into parts and over processes."""

    tokens: int
    examples: int


class Objective:
    """Cross-entropy. ``reads_base`` asks for the untouched base's values, too, which cost a second forward pass."""

    reads_base: ClassVar[bool] = False

    def answers(self, batch: Sequence[Continuation], epoch: int) -> Answers:
        """What to read for each example."""
        return [[example.answer] for example in batch]

    def loss(
        self, batch: Sequence[Continuation], asked: Answers, logprobs_T: Tensor, base_T: Tensor | None, size: BatchSize
    ) -> Tensor:
        """The share of some examples in a batch's loss, a scalar in nats.

        Args:
            asked: what ``answers`` returned for them.
            logprobs_T: log-probabilities of the tokens of these answers, in order.
            base_T: the same under the base, if this objective ``reads_base``.
        """
        return -weighted(logprobs_T, batch).sum() / size.tokens


def weighted(logprobs_T: Tensor, batch: Sequence[Continuation]) -> Tensor:
    """The log-probability of each answer token, times its example's weight."""
    if all(example.weight == 1.0 for example in batch):
        return logprobs_T
    return logprobs_T * logprobs_T.new_tensor([example.weight for example in batch for _ in example.answer])


class Preference(Objective):
    """The loss of methods/dpo.py; every epoch draws one of the wrong answers of each example from the order stream."""

    reads_base = True

    def __init__(self, settings: Settings, rejected: Mapping[Continuation, Sequence[Ids]], order: str) -> None:
        self._settings, self._rejected, self._order = settings, rejected, order

    def answers(self, batch: Sequence[Continuation], epoch: int) -> Answers:
        """The right one, and a wrong one if there is any."""

        def drawn(example: Continuation) -> list[Ids]:
            wrong = self._rejected[example]
            stream = f"{self._order}/rejected-{epoch}/{example.prompt}/{example.answer}"
            return [wrong[streams.integer(stream) % len(wrong)]] if wrong else []

        return [[example.answer, *drawn(example)] for example in batch]

    def loss(
        self, batch: Sequence[Continuation], asked: Answers, logprobs_T: Tensor, base_T: Tensor | None, size: BatchSize
    ) -> Tensor:
        assert base_T is not None
        lengths = [len(ids) for of in asked for ids in of]
        own = iter(logprobs_T.split(lengths))
        ratio = iter(part.sum() for part in (logprobs_T - base_T).split(lengths))
        terms = []
        for example, of in zip(batch, asked, strict=True):
            right, *wrong = [(next(own).sum(), next(ratio)) for _ in of]
            term = -self._settings.sft * right[0] / size.tokens
            if wrong:
                term = term + softplus(-self._settings.beta * (right[1] - wrong[0][1])) / size.examples
            terms.append(example.weight * term)
        return torch.stack(terms).sum()
