"""Attention for short rows on a CPU: what transformers' eager attention computes, without its copies.

The library repeats each key-value head for every query head that reads it, and scales, masks and converts the scores
in a tensor of their own each time. Here the queries of a group (grouped-query attention, Ainslie et al., arXiv
2305.13245) are stacked as rows of one product with their key-value head, the query is scaled in place of the scores,
which are many more. The function is the same, its rounding in bf16 is not.

Importing this module makes it known to transformers as the attention implementation ``grouped``.

Dimension letters:  K rows of a batch,  H query heads,  V key-value heads,  G = H / V query heads of a group,
N queries,  M keys,  D width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in the signature of transformers' attention functions.

    Args:
        query: [K, H, N, D].
        key: [K, V, M, D].
        value: [K, V, M, D]; its heads may have another width.
        attention_mask: added to the scores; None for no mask. [K, 1, N, M or more]; or [K * C, 1, B, B] where rows
            are of C clumps of B nodes, which see only themselves (packing/batch.py).
        scaling: factor of the scores; D ** -0.5 if None.
        softcap: bound of the scores: c tanh(score / c), as of Gemma-2.
        kwargs: what other implementations take; dropout is of training mode, in which no network here is.

    Returns:
        What the heads read, [K, N, H, D], contiguous; and no attention weights.
    """
    if attention_mask is not None and len(attention_mask) > len(query):
        clumps = len(attention_mask) // len(query)
        query, key, value = (_clumps_as_rows(tensor, clumps) for tensor in (query, key, value))
        read, _ = grouped_attention(module, query, key, value, attention_mask, scaling, softcap)
        return read.unflatten(0, (-1, clumps)).flatten(1, 2), None
    (K, H, N, D), (V, M) = query.shape, key.shape[1:3]
    scaling = D**-0.5 if scaling is None else scaling
    stacked_KVRD = (query * scaling if softcap is None else query).reshape(K, V, H // V * N, D)  # R = G N rows
    scores_KVRM = stacked_KVRD @ key.transpose(2, 3)
    if softcap is not None:  # in the library's order, so that bf16 rounds alike
        scores_KVRM = scores_KVRM.mul_(scaling).div_(softcap).tanh_() * softcap
    if attention_mask is not None:
        # One mask for all groups' rows, not a view of the scores by group: in place of a view, autograd copies.
        scores_KVRM.add_(attention_mask[..., :M].repeat(1, 1, H // V, 1))
    weights_KVRM = scores_KVRM.softmax(dim=-1, dtype=torch.float32).to(scores_KVRM.dtype)
    read_KVRD = weights_KVRM @ value
    return read_KVRD.view(K, H, N, -1).transpose(1, 2).contiguous(), None


def _clumps_as_rows(x: Tensor, clumps: int) -> Tensor:
    """[K, H, C * B, D] -> [K * C, H, B, D]; no copy where D and H lie innermost, as projections leave them."""
    return x.unflatten(2, (clumps, -1)).transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)
