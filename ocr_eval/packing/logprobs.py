"""Log-probabilities of a few tokens from logits over the whole vocabulary.

A log-softmax in fp32 over everything that a pass reads would be the largest tensor of the pass, several times over
with its gradient, and on a CPU most of its time would go into fresh pages of memory. Here rows are processed in
blocks, and only the logits themselves are kept for the backward pass:

    d log p(t) / d logit(v) = [v = t] - p(v)

Dimension letters:  S rows of logits,  V tokens of the vocabulary,  T expected tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

#: Approximate logits per block of rows: on a CPU few enough for its caches, elsewhere enough to keep the device busy.
_BLOCK = {"cpu": 2**20}
_BLOCK_ELSEWHERE = 2**24


def block_rows(vocabulary: int, device: str) -> int:
    """Rows of logits per block on a type of device."""
    return max(1, _BLOCK.get(device, _BLOCK_ELSEWHERE) // vocabulary)


def read_logprobs(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Log-probability of each expected token (nats, fp32), with the log-softmax in fp32; differentiable. [T]

    Args:
        logits_SV: logits in any precision; their gradient has the same.
        rows_T: the row of logits that predicts each expected token.
        at_once: rows per block (``block_rows``).
    """
    return _ReadLogprobs.apply(logits_SV, rows_T, tokens_T, at_once)


@torch.no_grad()
def read_ranks(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Midrank of each expected token in the whole vocabulary, 0 for the best, and its log-probability. [T, 2]

    Arguments as in ``read_logprobs``. Logits are compared in their own precision, in which they may tie. With b better
    tokens, w worse and t others that tie, the midrank is b + t / 2 = (b - w + V - 1) / 2.
    """
    ranks_T = torch.empty(len(rows_T), device=logits_SV.device)
    for row, logits_V in enumerate(logits_SV.unbind()):  # one at a time: several would not fit into a CPU's caches
        here_T, row_V = rows_T == row, logits_V.float()
        better_less_worse = (row_V - row_V[tokens_T[here_T], None]).sign_().sum(dim=1)
        ranks_T[here_T] = (better_less_worse + len(row_V) - 1) / 2
    return torch.stack([ranks_T, read_logprobs(logits_SV, rows_T, tokens_T, at_once)], dim=1)


def read_best(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """The most probable token in the place of each expected token. [T]"""
    return logits_SV.argmax(dim=1)[rows_T]


@torch.no_grad()
def read_sampled(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Whether greedy decoding gives each expected token, and its log-probability when sampling from the 40 most
    probable tokens at a temperature of 0.5; -inf if it is not one of them. [T, 2]
    """
    top_SK, which_SK = logits_SV.float().topk(min(40, logits_SV.shape[1]), dim=1)
    logprobs_TK = (top_SK / 0.5).log_softmax(dim=1)[rows_T]
    is_it_TK = which_SK[rows_T] == tokens_T[:, None]
    logprobs_T = torch.where(is_it_TK, logprobs_TK, -torch.inf).amax(dim=1)
    return torch.stack([is_it_TK[:, 0].float(), logprobs_T], dim=1)


def read_distribution(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """Log-probabilities of the whole vocabulary in each expected token's place (nats, fp32); differentiable. [T, V]"""
    return logits_SV[rows_T].float().log_softmax(dim=1)


#: A function that reads something about expected tokens from logits.
Reader = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class _ReadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
        ctx.save_for_backward(logits_SV, rows_T, tokens_T)
        ctx.at_once = at_once
        logprobs_T = torch.zeros(len(rows_T), device=logits_SV.device)
        for start, block in _blocks(torch.log_softmax, logits_SV, at_once):
            is_here, row = _places(rows_T, start, len(block))
            logprobs_T = torch.where(is_here, block[row, tokens_T], logprobs_T)
        return logprobs_T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits_SV, rows_T, tokens_T = ctx.saved_tensors
        (grad_T,) = gradients
        of_row_S1 = torch.zeros(len(logits_SV), 1, device=grad_T.device).index_add_(0, rows_T, grad_T[:, None])
        grad_SV = torch.empty_like(logits_SV)
        for start, block in _blocks(torch.softmax, logits_SV, ctx.at_once):
            rows = slice(start, start + len(block))
            block.mul_(-of_row_S1[rows])
            is_here, row = _places(rows_T, start, len(block))
            block.index_put_((row, tokens_T), torch.where(is_here, grad_T, 0.0), accumulate=True)
            grad_SV[rows] = block
        return grad_SV, None, None, None


def _blocks(function: Callable[..., Tensor], logits_SV: Tensor, at_once: int) -> Iterator[tuple[int, Tensor]]:
    """The softmax or log-softmax of rows in fp32, block by block, after the first row of each; valid until the next.

    Memory is reused, because fresh memory for every block would cost more than the computation.
    """
    shape = (2, min(at_once, len(logits_SV)), logits_SV.shape[1])
    copy, result = torch.empty(shape, device=logits_SV.device)
    for start in range(0, len(logits_SV), at_once):
        logits = logits_SV[start : start + at_once]
        yield start, function(copy[: len(logits)].copy_(logits), dim=-1, out=result[: len(logits)])


def _places(rows_T: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Which expected tokens are read in a block of ``count`` rows, and in which row of it (arbitrary for the others).

    No shape depends on values, so that fake tensors (planning/simulation.py) can run the same code.
    """
    row_T = rows_T - start
    return (row_T >= 0) & (row_T < count), row_T.clamp(0, count - 1)
