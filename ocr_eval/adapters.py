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


class LaneLinear(torch.nn.Module):
    """A frozen linear layer with the adapters of K lanes.

    Attributes:
        master_a: A of each lane, fp32, zero rows where a lane's rank is smaller. [K, R, I]
        master_b: B of each lane, transposed. [K, R, O]
        grad_a, grad_b: their gradients.
        a, b: A and s B in the precision of the arithmetic, as the last ``refresh`` left them.
        lanes: which lanes the next batch holds.
    """

    def __init__(self, base: torch.nn.Linear, shapes: Sequence[LaneShape], dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        lanes, rank, device = len(shapes), max(shape.rank for shape in shapes), base.weight.device
        self.master_a = torch.zeros(lanes, rank, base.in_features, device=device)
        self.master_b = torch.zeros(lanes, rank, base.out_features, device=device)
        self.grad_a, self.grad_b = torch.zeros_like(self.master_a), torch.zeros_like(self.master_b)
        self.a, self.b = self.master_a.to(dtype, copy=True), self.master_b.to(dtype, copy=True)
        self.scale = torch.tensor([shape.scale for shape in shapes], device=device)[:, None, None]
        self.lanes: Lanes = slice(0, lanes)

    def refresh(self) -> None:
        """Take over the master weights into what computes."""
        self.a.copy_(self.master_a)
        self.b.copy_(self.master_b * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the selected lanes through the base and each through its own adapter. [K, N, I] -> [K, N, O]."""
        y = self.base(x)
        if type(self.base) is not torch.nn.Linear:  # what a quantized layer returns may not be changed in place
            y = y.clone()
        adapted: Tensor = _LowRankUpdate.apply(y, x, _ANCHOR, self)
        return adapted

    def add_gradients(self, lanes: Lanes, grad_a: Tensor, grad_b: Tensor) -> None:
        """Accumulate the gradients of A and of s B for some lanes."""
        for total, part in ((self.grad_a, grad_a), (self.grad_b, grad_b.float() * self.scale[lanes])):
            if isinstance(lanes, slice):
                total[lanes] += part
            else:
                total.index_add_(0, lanes, part.float())


#: Takes no value and no gradient: it makes autograd call ``backward`` where neither y nor x needs a gradient.
_ANCHOR = torch.zeros((), requires_grad=True)


class _LowRankUpdate(torch.autograd.Function):
    """y + (x A^T) (s B)^T lane by lane, into y itself; gradients of A and B go to the layer's own buffers."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, layer: LaneLinear) -> Tensor:
        a_KRI, b_KRO = layer.a[layer.lanes], layer.b[layer.lanes]
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
        ctx.layer.add_gradients(
            ctx.lanes, torch.bmm(dh_KNR.transpose(1, 2), x_KNI), torch.bmm(h_KNR.transpose(1, 2), dy_KNO)
        )
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
        self.layers: dict[str, LaneLinear] = {}
        for name in target_names(network, targets):
            module = network.get_submodule(name)
            assert isinstance(module, torch.nn.Linear)
            self.layers[name] = LaneLinear(module, shapes, dtype)
            network.set_submodule(name, self.layers[name])

    def unmount(self) -> None:
        """Put the bare linear modules back; the network is then as it was before."""
        for name, layer in self.layers.items():
            self._network.set_submodule(name, layer.base)

    def initialize(self, lane: int, seed: int) -> None:
        """Draw a lane's A matrices as PEFT does (Kaiming uniform, a = sqrt 5) and leave B at zero."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            a_RI = torch.empty(self.shapes[lane].rank, layer.base.in_features)
            torch.nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5), generator=generator)
            layer.master_a[lane, : len(a_RI)] = a_RI.to(layer.master_a.device)
        self.refresh()

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """A lane's own tensors by PEFT's names, as views with their gradients: what its optimizer changes.

        B stands transposed: [r, O].
        """
        rank = self.shapes[lane].rank
        parameters = {}
        for name, layer in self.layers.items():
            for part, master, grad in (
                ("lora_A", layer.master_a, layer.grad_a),
                ("lora_B", layer.master_b, layer.grad_b),
            ):
                parameter = torch.nn.Parameter(master[lane, :rank])
                parameter.grad = grad[lane, :rank]
                parameters[f"{name}.{part}"] = parameter
        return parameters

    def refresh(self) -> None:
        """Take over the master weights into what computes; due after every change of them."""
        for layer in self.layers.values():
            layer.refresh()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for layer in self.layers.values():
            layer.grad_a.zero_()
            layer.grad_b.zero_()

    @contextmanager
    def window(self, lanes: Sequence[int]) -> Iterator[None]:
        """Within it, row i of a batch goes through the adapter of ``lanes[i]``."""
        first, last = lanes[0], lanes[-1]
        neighbours = list(lanes) == list(range(first, last + 1))
        for layer in self.layers.values():
            layer.lanes = slice(first, last + 1) if neighbours else torch.tensor(lanes, device=layer.master_a.device)
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
