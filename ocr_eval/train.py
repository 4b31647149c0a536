"""One epoch of an injection. Neither scores nor writes.

The loss is the mean cross-entropy over the batch's answer tokens, in fp32. Logits are computed only where
an answer token is predicted; a batch is one token forest, so nothing is padded (forest.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ocr_eval.errors import RunFailed
from ocr_eval.forest import ForestBuilder, read_answers
from ocr_eval.forward import token_logprobs
from ocr_eval.injection import Injection, gradient_faults
from ocr_eval.models import Base
from ocr_eval.progress import ticking
from ocr_eval.tokens import Continuation


def train_epoch(base: Base, injection: Injection) -> float:
    """Train one epoch and return its mean loss in nats an answer token, measured before each step.

    Raises:
        RunFailed: the loss is no longer finite, or no gradient reaches part of the adapter.
    """
    network, parameters = injection.network, list(injection.parameters.values())
    network.train()
    epoch = injection.epochs_done + 1
    total_loss, total_tokens = 0.0, 0
    batches = injection.batches()
    with ticking(len(batches), f"epoch {epoch}/{injection.train.epochs}") as ticker:
        for batch in batches:
            loss, tokens = batch_loss(base, network, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise RunFailed(f"The loss became {value} in epoch {epoch}. Lower --lr (now {injection.train.lr:g}).")
            base.accelerator.backward(loss)
            if injection.epochs_done == 0 and total_tokens == 0:
                _check_gradients(injection)
            base.accelerator.clip_grad_norm_(parameters, injection.train.max_grad_norm)
            injection.optimizer.step()
            injection.optimizer.zero_grad(set_to_none=True)
            total_loss += value * tokens
            total_tokens += tokens
            ticker.tick()
    injection.epochs_done = epoch
    return total_loss / total_tokens


def batch_loss(base: Base, network: torch.nn.Module, batch: Sequence[Continuation]) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy (nats) over the answer tokens of a batch, and how many there are."""
    builder = ForestBuilder()
    reads, _ = read_answers(builder, [(example.prompt, [example.answer]) for example in batch])
    return -token_logprobs(base, network, builder.build(), reads).mean(), len(reads.tokens)


def _check_gradients(injection: Injection) -> None:
    faults = gradient_faults(injection.parameters)
    if faults:
        raise RunFailed(
            f"No gradient reaches {len(faults)} of {len(injection.parameters)} adapter tensors, first {faults[0]}."
        )
