"""What the runs of a pack train: the ``Trainable`` of each method, with a view of its tensors for each lane."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ocr_eval.methods.changes import Factors, Rewrite, WeightChange
from ocr_eval.specs.model import ModelSpec


def index_of(lanes: Sequence[int]) -> slice | list[int]:
    """Lanes as an index into stacked tensors: a slice if they are adjacent, which avoids a copy."""
    span = range(lanes[0], lanes[-1] + 1)
    return slice(span.start, span.stop) if list(lanes) == list(span) else list(lanes)


class Trainable:
    """What K lanes train, mounted in a network, or the network itself. By default nothing of it is low-rank."""

    @property
    def modules(self) -> list[str]:
        """Names of what is trained."""
        return list(self.parameters(0))

    def initialize(self, lane: int, seed: int) -> None:
        """Draw the values that a lane begins with, if any are random; its output is still that of the base."""

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """The tensors that a lane's optimizer updates, by name: fp32 views, each with its gradient."""
        raise NotImplementedError

    def matrices(self, lane: int) -> dict[str, Tensor]:
        """Every trained tensor of a lane by name, without its gradient."""
        return {name: parameter.detach() for name, parameter in self.parameters(lane).items()}

    def factors(self, lane: int) -> list[Factors]:
        """A lane's adapters, by module, with their gradients: views that may be changed in place."""
        return []

    def silent(self, lane: int) -> list[str]:
        """What of a lane got no gradient in the last pass; empty if all learn."""
        return [name for name, p in self.parameters(lane).items() if p.grad is None or not bool(p.grad.any())]

    def gradients(self) -> list[Tensor]:
        """The gradients of all lanes; zero where the last pass gave none."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for grad in self.gradients():
            grad.zero_()

    def held(self) -> list[Tensor]:
        """All tensors that it adds to the network, except gradients."""
        return []

    def refresh(self) -> None:
        """Bring the master weights to the arithmetic, if that has copies; needed after every change of them."""

    def select(self, lanes: Sequence[int] | None) -> None:
        """From now on row i of a batch goes through what ``lanes[i]`` learned; for None only through the base."""
        raise NotImplementedError

    def changes(self, lane: int) -> Iterator[WeightChange]:
        """How a lane changed each matrix of the network."""
        return iter(())

    def rewrite(self, lane: int, f: Rewrite) -> None:
        """Replace the change dW of each matrix by f(its name, dW), after the last step of a lane."""

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write what a lane learned as ``adapter/`` or ``model/`` in a folder; returns the sha256 of the weights."""
        raise NotImplementedError

    def unmount(self) -> None:
        """Restore the network, unless all of it was trained."""


class Leaves(Trainable):
    """Tensors by name, fp32, [K, ...], that learn through plain autograd, each with its gradient."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self._leaves = leaves
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        found = {name: torch.nn.Parameter(leaf.detach()[lane]) for name, leaf in self._leaves.items()}
        for parameter, grad in zip(found.values(), self.gradients(), strict=True):
            parameter.grad = grad[lane]
        return found

    def held(self) -> list[Tensor]:
        return list(self._leaves.values())

    def gradients(self) -> list[Tensor]:
        return [leaf.grad for leaf in self._leaves.values() if leaf.grad is not None]
