"""Attention for short rows on a CPU: what transformers' eager attention computes, without its copies.

The library repeats each key-value head for every query head that reads it, and makes a new tensor of scores each time
it scales, masks or converts them. Here the queries of a group (grouped-query attention, Ainslie et al., arXiv
2305.13245) are stacked as rows of one product with their key-value head, and the query is scaled instead of the
scores, of which there are many more. The function is the same; its rounding in bf16 is not.

Importing this module registers it with transformers as the attention implementation ``grouped``.

Dimension letters:  K rows of a batch,  H query heads,  V key-value heads,  G = H / V query heads per group,
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
        attention_mask: added to the scores; None for no mask. [K, 1, N, M or more]; or [K * C, 1, B, B] if rows have
            C clumps of B nodes, each attending only within itself (packing/batch.py).
        scaling: factor of the scores; D ** -0.5 if None.
        softcap: bound of the scores: c tanh(score / c), as in Gemma-2.
        kwargs: arguments of other implementations, ignored. Dropout is for training mode, in which no network here is.

    Returns:
        The heads' outputs, [K, N, H, D], contiguous; and None for the attention weights.
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
    if softcap is not None:  # in the library's order of operations, so that bf16 rounds alike
        scores_KVRM = scores_KVRM.mul_(scaling).div_(softcap).tanh_() * softcap
    if attention_mask is not None:
        # Repeat the mask for all rows instead of viewing the scores by group: autograd copies in-place writes to views.
        scores_KVRM.add_(attention_mask[..., :M].repeat(1, 1, H // V, 1))
    weights_KVRM = scores_KVRM.softmax(dim=-1, dtype=torch.float32).to(scores_KVRM.dtype)
    read_KVRD = weights_KVRM @ value
    return read_KVRD.view(K, H, N, -1).transpose(1, 2).contiguous(), None


def _clumps_as_rows(x: Tensor, clumps: int) -> Tensor:
    """[K, H, C * B, D] -> [K * C, H, B, D]; no copy if D and H are innermost in memory, as after a projection."""
    return x.unflatten(2, (clumps, -1)).transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, eager_mask)
