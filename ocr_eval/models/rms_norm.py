"""RMS norms of frozen weight: the library's numbers, in half the passes over memory and with half of it kept.

    y = x / rms(x) * w,    rms(x)^2 = mean(x^2) + eps        (Zhang and Sennrich, arXiv 1910.07467)

Autograd takes the library's formula one operation at a time and keeps two fp32 copies of x for the backward pass. Where
no gradient of w is wanted, x itself and a number a row are enough:

    dx = (g - n mean(g n)) / rms(x),    n = x / rms(x),    g = dy w
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

#: transformers' classes that round x / rms(x) to the precision of x and then multiply by the weight.
ROUNDED_FIRST = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
#: Those that multiply by one more than the weight in fp32 and then round.
ROUNDED_LAST = frozenset({"Gemma2RMSNorm", "Gemma3RMSNorm"})


def hasten(network: torch.nn.Module) -> None:
    """Let the norms of known formula compute as above for as long as their weights are frozen; leave all others.

    A norm stays the object that it is, with its parameters, names and hooks, and becomes of a subclass of its own
    class. Whatever asks what it is or how to initialize or save it gets the library's answer; where accelerate has
    wrapped its forward (layers spread over several GPUs), that stays as well.
    """
    for module in network.modules():
        kind: Any = type(module)
        if kind.__name__ in ROUNDED_FIRST | ROUNDED_LAST:
            module.__class__ = _hastened(kind)


@functools.cache
def _hastened(norm: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return type(f"Hastened{norm.__name__}", (_Hastened, norm), {"rounded_first": norm.__name__ in ROUNDED_FIRST})


class _Hastened(torch.nn.Module):
    """Goes before one of the library's norms among the parents of a class."""

    rounded_first: bool
    weight: torch.nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """As the library's, which also does it where the weight is trained or in another precision than x."""
        if self.weight.requires_grad or self.weight.dtype != x.dtype:
            y: Tensor = super().forward(x)
        else:
            eps = self.variance_epsilon if self.rounded_first else self.eps
            y = _Norm.apply(x, self.weight, eps, self.rounded_first)
        return y


class _Norm(torch.autograd.Function):
    """The norm over the last dimension of x [..., E], bit for bit as the library's; differentiable in x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rounded_first: bool) -> Tensor:
        normed = x.to(torch.float32, copy=True)
        inverse_rms = normed.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse_rms, weight)
        ctx.rounded_first = rounded_first
        normed.mul_(inverse_rms)
        return normed.to(x.dtype).mul_(weight) if rounded_first else normed.mul_(1.0 + weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dy,) = gradients
        x, inverse_rms, weight = ctx.saved_tensors
        g = (dy * weight).float() if ctx.rounded_first else dy.float() * (1.0 + weight.float())
        normed = x.to(torch.float32, copy=True).mul_(inverse_rms)
        along = (g * normed).mean(-1, keepdim=True)
        return g.addcmul_(normed, along, value=-1).mul_(inverse_rms).to(x.dtype), None, None, None
