"""The one forward pass: a token forest in, log-probabilities of the expected tokens out.

Training and scoring both read a network through this function, so what is trained is what is scored.
"""

from __future__ import annotations

import torch
from peft.helpers import disable_input_dtype_casting

from ocr_eval.forest import Forest, Reads
from ocr_eval.models import Base


def token_logprobs(base: Base, network: torch.nn.Module, forest: Forest, reads: Reads) -> torch.Tensor:
    """Log-probability (nats, fp32) of each expected token of ``reads``; differentiable.

    Logits exist only at the read positions; the log-softmax is in fp32.

    Args:
        base: gives device and precision.
        network: the base, or the base seen through an adapter.
        forest: the packed sequences.
        reads: where logits are read and which tokens are expected there.
    """
    device = base.device
    # The adapters' fp32 masters are cast by autocast; PEFT need not cast every input to fp32 and back as well.
    with base.autocast(), disable_input_dtype_casting(network, active=base.dtype != torch.float32):
        logits_RV = network(
            **forest.tensors(device, base.dtype),
            logits_to_keep=torch.tensor(reads.nodes, device=device),
            use_cache=False,
        ).logits[0]
    logprobs_RV = torch.log_softmax(logits_RV.float(), dim=-1)
    return logprobs_RV[torch.tensor(reads.rows, device=device), torch.tensor(reads.tokens, device=device)]
