"""Tensors that K runs train next to a frozen network through plain autograd, with a row for each lane."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ocr_eval.methods.adapters import Factors


class Leaves:
    """Tensors by name, fp32, [K, ...], each with its gradient; none is low-rank."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self._leaves = leaves
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)

    @property
    def modules(self) -> list[str]:
        """Their names."""
        return list(self._leaves)

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """The tensors of a lane with their gradients, as views."""
        parameters = {name: torch.nn.Parameter(row) for name, row in self.matrices(lane).items()}
        for parameter, grad in zip(parameters.values(), self.gradients(), strict=True):
            parameter.grad = grad[lane]
        return parameters

    def matrices(self, lane: int) -> dict[str, Tensor]:
        """The tensors of a lane, without gradients."""
        return {name: leaf.detach()[lane] for name, leaf in self._leaves.items()}

    def factors(self, lane: int) -> list[Factors]:
        """None: nothing is low-rank."""
        return []

    def silent(self, lane: int) -> list[str]:
        """The tensors of a lane that got no gradient in the last pass."""
        return [name for name, grad in zip(self._leaves, self.gradients(), strict=True) if not bool(grad[lane].any())]

    def held(self) -> list[Tensor]:
        """All tensors, except gradients."""
        return list(self._leaves.values())

    def gradients(self) -> list[Tensor]:
        """The gradients of all lanes."""
        return [leaf.grad for leaf in self._leaves.values() if leaf.grad is not None]

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for grad in self.gradients():
            grad.zero_()

    def refresh(self) -> None:
        """Nothing to do: the arithmetic reads the master weights."""
