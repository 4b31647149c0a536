"""Log-probabilities of a few tokens from logits over the whole vocabulary.

A log-softmax in fp32 over all that a pass reads would be the largest thing that the pass holds, several times over
with its gradient. Here rows are taken a few at a time, and each block is computed again for the backward pass, so that
what is kept for it is the logits themselves.

Dimension letters:  S rows of logits,  V tokens of the vocabulary,  T expected tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Logits of a block of rows, about: on a CPU few enough for its caches, elsewhere enough to keep it busy.
_BLOCK = {"cpu": 2**20}
_BLOCK_ELSEWHERE = 2**24


def block_rows(vocabulary: int, device: str) -> int:
    """How many rows of logits are taken at a time on a type of device."""
    return max(1, _BLOCK.get(device, _BLOCK_ELSEWHERE) // vocabulary)


def read_logprobs(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Log-probability of each expected token (nats, fp32), with the log-softmax in fp32; differentiable. [T]

    No shape depends on the values, so that fake tensors (planning/simulation.py) can take the same way.

    Args:
        logits_SV: logits in any precision; their gradient has the same.
        rows_T: the row of logits that predicts each expected token.
        tokens_T: the expected tokens.
        at_once: how many rows are taken at a time (``block_rows``).
    """
    logprobs_T = torch.zeros(len(rows_T), device=logits_SV.device)
    for number, block_BV in enumerate(logits_SV.split(at_once)):
        row_T = rows_T - number * at_once
        is_here = (row_T >= 0) & (row_T < len(block_BV))
        row_T = row_T.clamp(0, len(block_BV) - 1)
        here_T = checkpoint(_read, block_BV, row_T, tokens_T, use_reentrant=False, preserve_rng_state=False)
        logprobs_T = torch.where(is_here, here_T, logprobs_T)
    return logprobs_T


@torch.no_grad()
def read_ranks(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Midrank of each expected token in the whole vocabulary, 0 for the best, and its log-probability. [T, 2]

    Takes what ``read_logprobs`` does; ranks are those of the logits, which tie in their own precision. With b better
    tokens, w worse and t others that tie, it is b + t / 2 = (b - w + V - 1) / 2.
    """
    ranks_T = torch.empty(len(rows_T), device=logits_SV.device)
    for row, logits_V in enumerate(logits_SV.unbind()):  # a CPU's caches hold one, and would not hold several
        here_T, row_V = rows_T == row, logits_V.float()
        better_less_worse = (row_V - row_V[tokens_T[here_T], None]).sign_().sum(dim=1)
        ranks_T[here_T] = (better_less_worse + len(row_V) - 1) / 2
    return torch.stack([ranks_T, read_logprobs(logits_SV, rows_T, tokens_T, at_once)], dim=1)


#: What reads expected tokens off logits.
Reader = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def _read(logits_BV: Tensor, rows_T: Tensor, tokens_T: Tensor) -> Tensor:
    return logits_BV.log_softmax(-1, dtype=torch.float32)[rows_T, tokens_T]
