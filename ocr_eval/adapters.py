"""LoRA adapters of many runs over one frozen network, each row of a batch going through its own.

    y_k = W x_k + s_k B_k (A_k x_k)          k: lane, that is run; W frozen and shared (Hu et al., arXiv 2106.09685)

The base's matrix products see the rows of all lanes at once; the thin products with A and B are batched over
lanes. Lanes share no trainable tensor, so every lane learns exactly what it would learn alone, and each has its
own rank, scale and optimizer. PEFT reads and writes the same files (``injection.py``).

Dimension letters:  K lanes,  N nodes a lane,  I inputs,  O outputs,  R the largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ocr_eval.errors import UserError

#: Which lanes a batch holds, as an index of the stacks: a slice where they are neighbours (no copy is made).
Lanes = slice | Tensor


@dataclass(frozen=True)
class LaneShape:
    """What may differ between the adapters of lanes: LoRA's r and alpha."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor of the update, alpha / r."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Stacks:
    """One of the two factors (A, or B transposed) for all lanes and layers: a row a lane, layer after layer.

    Attributes:
        master: fp32 weights. [K, P]
        grad: their gradients.
        compute: what the arithmetic reads: the master weights times each lane's factor, in its precision.
        factor: 1 for A and s for B. [K, 1]
    """

    master: Tensor
    grad: Tensor
    compute: Tensor
    factor: Tensor

    @classmethod
    def zeros(cls, size: int, factors: Sequence[float], dtype: torch.dtype, device: torch.device) -> Stacks:
        """All zero, for so many elements a lane."""
        master = torch.zeros(len(factors), size, device=device)
        factor = torch.tensor(factors, device=device)[:, None]
        return cls(master, torch.zeros_like(master), master.to(dtype, copy=True), factor)

    def refresh(self) -> None:
        """Take over the master weights into what computes."""
        self.compute.copy_(self.master * self.factor)

    def layer(self, start: int, rank: int, width: int) -> Stacks:
        """The part of one layer, [K, R, width], as views."""

        def part(whole: Tensor) -> Tensor:
            return whole[:, start : start + rank * width].view(len(whole), rank, width)

        return Stacks(part(self.master), part(self.grad), part(self.compute), self.factor[:, :, None])

    def add_gradient(self, lanes: Lanes, grad: Tensor) -> None:
        """Accumulate the gradient of what computes, for some lanes."""
        part = grad.to(self.grad.device) * self.factor[lanes]
        if isinstance(lanes, slice):
            self.grad[lanes] += part
        else:
            self.grad.index_add_(0, lanes, part.to(self.grad.dtype))


class LaneLinear(torch.nn.Module):
    """A frozen linear layer with the adapters of K lanes.

    Attributes:
        base: the layer.
        a: A of each lane, zero rows where a lane's rank is smaller. [K, R, I]
        b: B of each lane, transposed. [K, R, O]
        lanes: which lanes the next batch holds.
    """

    def __init__(self, base: torch.nn.Linear, a: Stacks, b: Stacks) -> None:
        super().__init__()
        self.base, self.a, self.b = base, a, b
        self.lanes: Lanes = slice(0, len(a.master))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the selected lanes through the base and each through its own adapter. [K, N, I] -> [K, N, O]."""
        y = self.base(x)
        if type(self.base) is not torch.nn.Linear:  # what a quantized layer returns may not be changed in place
            y = y.clone()
        adapted: Tensor = _LowRankUpdate.apply(y, x, _ANCHOR, self)
        return adapted


#: Takes no value and no gradient: it makes autograd call ``backward`` where neither y nor x needs a gradient.
_ANCHOR = torch.zeros((), requires_grad=True)


class _LowRankUpdate(torch.autograd.Function):
    """y + (x A^T) (s B)^T lane by lane, into y itself; gradients of A and B go to the layer's own buffers."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, layer: LaneLinear) -> Tensor:
        # A model spread over several devices has its adapters on the first; on one device nothing is moved.
        a_KRI, b_KRO = (stack.compute[layer.lanes].to(x.device) for stack in (layer.a, layer.b))
        h_KNR = torch.bmm(x, a_KRI.transpose(1, 2))
        ctx.layer, ctx.lanes = layer, layer.lanes
        ctx.save_for_backward(x, h_KNR, a_KRI, b_KRO)
        ctx.mark_dirty(y)
        return y.baddbmm_(h_KNR, b_KRO)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy_KNO,) = grads
        x_KNI, h_KNR, a_KRI, b_KRO = ctx.saved_tensors
        dh_KNR = torch.bmm(dy_KNO, b_KRO.transpose(1, 2))
        ctx.layer.a.add_gradient(ctx.lanes, torch.bmm(dh_KNR.transpose(1, 2), x_KNI))
        ctx.layer.b.add_gradient(ctx.lanes, torch.bmm(h_KNR.transpose(1, 2), dy_KNO))
        dx_KNI = torch.bmm(dh_KNR, a_KRI) if ctx.needs_input_grad[1] else None
        return dy_KNO, dx_KNI, None, None


class Adapters:
    """The adapters of K lanes, mounted in a network until ``unmount``.

    Attributes:
        shapes: rank and alpha of each lane.
        layers: every adapted layer by the name of the linear module it stands for.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        targets: str | Sequence[str],
        shapes: Sequence[LaneShape],
        dtype: torch.dtype,
    ) -> None:
        self.shapes = tuple(shapes)
        self._network = network
        modules = {name: network.get_submodule(name) for name in target_names(network, targets)}
        linear = {name: module for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
        rank, device = max(shape.rank for shape in shapes), next(iter(linear.values())).weight.device
        inputs = sum(module.in_features for module in linear.values())
        outputs = sum(module.out_features for module in linear.values())
        self._a = Stacks.zeros(rank * inputs, [1.0 for _ in shapes], dtype, device)
        self._b = Stacks.zeros(rank * outputs, [shape.scale for shape in shapes], dtype, device)
        self.layers: dict[str, LaneLinear] = {}
        start_a = start_b = 0
        for name, module in linear.items():
            a, b = self._a.layer(start_a, rank, module.in_features), self._b.layer(start_b, rank, module.out_features)
            self.layers[name] = LaneLinear(module, a, b)
            network.set_submodule(name, self.layers[name])
            start_a, start_b = start_a + rank * module.in_features, start_b + rank * module.out_features

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules."""
        return list(self.layers)

    def unmount(self) -> None:
        """Put the bare linear modules back; the network is then as it was before."""
        for name, layer in self.layers.items():
            self._network.set_submodule(name, layer.base)

    def initialize(self, lane: int, seed: int) -> None:
        """Draw a lane's A matrices as PEFT does (Kaiming uniform, a = sqrt 5) and leave B at zero."""
        generator = torch.Generator().manual_seed(seed)
        for tensors in self.tensors(lane).values():
            a_RI = torch.empty(tensors[0].shape)
            torch.nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5), generator=generator)
            tensors[0].copy_(a_RI)
        self.refresh()

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """All A and all B of a lane, with their gradients: the two tensors that its optimizer changes."""
        parameters = {}
        for name, stacks in (("lora_A", self._a), ("lora_B", self._b)):
            parameters[name] = torch.nn.Parameter(stacks.master[lane])
            parameters[name].grad = stacks.grad[lane]
        return parameters

    def tensors(self, lane: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A [r, I] and B transposed [r, O] of a lane by the name of the adapted module, as views."""
        rank = self.shapes[lane].rank
        return {name: (layer.a.master[lane, :rank], layer.b.master[lane, :rank]) for name, layer in self.layers.items()}

    def matrices(self, lane: int) -> dict[str, Tensor]:
        """Every trained matrix of a lane by name."""
        return {
            f"{name}.{part}": t for name, ab in self.tensors(lane).items() for part, t in zip("AB", ab, strict=True)
        }

    def silent(self, lane: int) -> list[str]:
        """Modules whose B no gradient of the last pass reached, in a lane; empty when all learn.

        At the first step B is zero and with it the gradient of every A, so only B can tell.
        """
        return [name for name, layer in self.layers.items() if not bool(layer.b.grad[lane].any())]

    def refresh(self) -> None:
        """Take over the master weights into what computes; due after every change of them."""
        self._a.refresh()
        self._b.refresh()

    def gradients(self) -> list[Tensor]:
        """The gradients of all lanes."""
        return [self._a.grad, self._b.grad]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._a.grad.zero_()
        self._b.grad.zero_()

    @contextmanager
    def window(self, lanes: Sequence[int]) -> Iterator[None]:
        """Within it, row i of a batch goes through the adapter of ``lanes[i]``."""
        first, last = lanes[0], lanes[-1]
        neighbours = list(lanes) == list(range(first, last + 1))
        index = slice(first, last + 1) if neighbours else torch.tensor(lanes, device=self._a.master.device)
        for layer in self.layers.values():
            layer.lanes = index
        yield


def target_names(network: torch.nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear modules that get an adapter, by PEFT's rule: a module's last name, or all but the head.

    Raises:
        UserError: a target that the network does not have.
    """
    head = network.get_output_embeddings() if isinstance(network, PreTrainedModel) else None
    linear = [
        name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    ]
    if targets == "all-linear":
        return linear
    wanted = [targets] if isinstance(targets, str) else list(targets)
    for target in wanted:
        if not any(_matches(name, target) for name in linear):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"The model has no linear module '{target}'; it has {there}. Correct 'targets'.")
    return [name for name in linear if any(_matches(name, target) for target in wanted)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
