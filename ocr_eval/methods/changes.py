"""How training changed the weights of a network, matrix by matrix; low-rank changes are kept as factors.

Dimension letters:  R rank,  I inputs,  O outputs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: (name of a tensor, its change) -> the change that replaces it.
Rewrite = Callable[[str, Tensor], Tensor]


def layer_of(module: str) -> int:
    """The number of a module's layer, -1 if it is in none."""
    found = re.search(r"\.layers\.(\d+)\.", module)
    return int(found[1]) if found else -1


def in_fp64(x: Tensor) -> Tensor:
    """A tensor in fp64, on its device if that is a CUDA device, else on the CPU: MPS has no fp64."""
    return x.double() if x.device.type == "cuda" else x.cpu().double()


@dataclass(frozen=True)
class LowRank:
    """dW = scale * B A, with A [R, I], B transposed [R, O], and scale = alpha / r."""

    module: str
    a: Tensor
    b: Tensor
    scale: float

    def dense(self) -> Tensor:
        """dW. [O, I]"""
        return self.scale * self.b.T @ self.a

    def singular_values(self) -> Tensor:
        """As many as the rank: those of the R x R core that QR decompositions of B and A leave."""
        core_b, core_a = (torch.linalg.qr(factor.cpu().double().T, mode="r").R for factor in (self.b, self.a))
        return torch.linalg.svdvals(self.scale * core_b @ core_a.T)


@dataclass(frozen=True)
class Factors(LowRank):
    """A lane's adapter over one module: A and B in fp32, and their gradients in the same shapes."""

    grad_a: Tensor
    grad_b: Tensor


@dataclass(frozen=True)
class Dense:
    """A change of any rank; ``dense`` computes dW [O, I], fp32, whenever it is called."""

    module: str
    dense: Callable[[], Tensor]

    def singular_values(self) -> Tensor:
        """From the eigenvalues of the smaller Gram matrix: exact to 1e-8 of the largest, and far faster than an SVD."""
        change = in_fp64(self.dense())
        gram = change @ change.T if len(change) <= change.shape[1] else change.T @ change
        return torch.linalg.eigvalsh(gram).clamp_min_(0).sqrt_().flip(0)


#: The change dW of one matrix [O, I], the weight of ``module``: ``dense()`` is dW in fp32, ``singular_values()`` are in
#: fp64, the largest first.
WeightChange = LowRank | Dense
