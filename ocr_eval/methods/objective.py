"""What a learner minimizes: an ``Objective`` turns the log-probabilities of a batch's answers into a scalar.

The default is the mean cross-entropy over the batch's answer tokens, weighted by example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ocr_eval.data.tokenize import Continuation, Ids


@dataclass(frozen=True)
class BatchSize:
    """What means are over: the whole batch, however it is split into parts and over processes."""

    tokens: int
    examples: int


class Objective:
    """Cross-entropy.

    Attributes:
        reads_base: whether ``loss`` also takes the untouched base's values, which cost a second forward pass.
    """

    reads_base: ClassVar[bool] = False

    def answers(self, batch: Sequence[Continuation], epoch: int) -> list[list[Ids]]:
        """The answers to read after each example's prompt, its own first."""
        return [[example.answer] for example in batch]

    def loss(
        self,
        batch: Sequence[Continuation],
        answers: Sequence[Sequence[Ids]],
        logprobs_T: Tensor,
        base_T: Tensor | None,
        size: BatchSize,
    ) -> Tensor:
        """The share of some examples in a batch's loss, a scalar in nats.

        Args:
            answers: what ``answers`` returned for them.
            logprobs_T: log-probabilities of the tokens of these answers, in order.
            base_T: the same under the base, if this objective ``reads_base``.
        """
        return -weighted(logprobs_T, batch).sum() / size.tokens


def weighted(logprobs_T: Tensor, batch: Sequence[Continuation]) -> Tensor:
    """The log-probability of each answer token, times its example's weight."""
    if all(example.weight == 1.0 for example in batch):
        return logprobs_T
    return logprobs_T * logprobs_T.new_tensor([example.weight for example in batch for _ in example.answer])
