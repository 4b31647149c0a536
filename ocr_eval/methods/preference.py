"""The objective of ``dpo`` (methods/dpo.py)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ocr_eval.common import streams
from ocr_eval.data.tokenize import Continuation, Ids
from ocr_eval.methods.dpo import Settings
from ocr_eval.methods.objective import BatchSize, Objective


class Preference(Objective):
    """The loss of methods/dpo.py.

    Args:
        rejected: the wrong answers of each example; every epoch draws one of them.
        order: name of the run's order stream.
    """

    reads_base = True

    def __init__(self, settings: Settings, rejected: Mapping[Continuation, Sequence[Ids]], order: str) -> None:
        self._settings, self._rejected, self._order = settings, rejected, order

    def answers(self, batch: Sequence[Continuation], epoch: int) -> list[list[Ids]]:
        """The right one, and a wrong one if there is any."""

        def drawn(example: Continuation) -> list[Ids]:
            wrong = self._rejected[example]
            stream = f"{self._order}/rejected-{epoch}/{example.prompt}/{example.answer}"
            return [wrong[streams.integer(stream) % len(wrong)]] if wrong else []

        return [[example.answer, *drawn(example)] for example in batch]

    def loss(
        self,
        batch: Sequence[Continuation],
        answers: Sequence[Sequence[Ids]],
        logprobs_T: Tensor,
        base_T: Tensor | None,
        size: BatchSize,
    ) -> Tensor:
        """Both terms."""
        assert base_T is not None
        lengths = [len(ids) for of in answers for ids in of]
        own = iter(logprobs_T.split(lengths))
        ratio = iter(part.sum() for part in (logprobs_T - base_T).split(lengths))
        terms = []
        for example, of in zip(batch, answers, strict=True):
            right, *wrong = [(next(own).sum(), next(ratio)) for _ in of]
            term = -self._settings.sft * right[0] / size.tokens
            if wrong:
                term = term + softplus(-self._settings.beta * (right[1] - wrong[0][1])) / size.examples
            terms.append(example.weight * term)
        return torch.stack(terms).sum()
