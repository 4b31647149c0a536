"""LoRA adapters of many runs over one frozen network. Each row of a batch goes through the adapter of its run.

    y_k = W x_k + s_k B_k (A_k x_k)          k: lane (one per run); W frozen and shared (Hu et al., arXiv 2106.09685)

The base's matrix products take the rows of all lanes at once; the thin products with A and B are batched over lanes.
Lanes share no trainable tensor, so every lane learns exactly what it would learn alone, and each has its own rank,
scale and optimizer. PEFT reads and writes the same files (``methods/peft_files.py``).

Dimension letters:  K lanes,  N nodes per lane,  I inputs,  O outputs,  R the largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocr_eval.data.task import Half
from ocr_eval.methods.changes import Dense, Factors, Rewrite, WeightChange
from ocr_eval.methods.peft_files import write_adapter, write_dense
from ocr_eval.methods.trainable import Trainable, index_of
from ocr_eval.models.architecture import target_names
from ocr_eval.specs.model import ModelSpec

#: The lanes of a batch, as an index into the stacks: a slice if they are adjacent, which avoids a copy.
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
    """One of the two factors (A, or B transposed) for all lanes and layers: a row per lane, layer after layer.

    Attributes:
        master: fp32 weights. [K, P]
        grad: their gradients.
        compute: the master weights in the precision of the arithmetic; in fp32 the same tensor.
    """

    master: Tensor
    grad: Tensor
    compute: Tensor

    @classmethod
    def zeros(cls, lanes: int, size: int, dtype: torch.dtype, device: torch.device) -> Stacks:
        """All zero, with ``size`` elements per lane."""
        master = torch.zeros(lanes, size, device=device)
        return cls(master, torch.zeros_like(master), master.to(dtype))

    def refresh(self) -> None:
        """Copy the master weights to ``compute``."""
        self.compute.copy_(self.master)

    def part(self, start: int, rows: int, width: int) -> Stacks:
        """The matrix that begins at ``start``, of all lanes, as views. [K, rows, width]"""

        def view(whole: Tensor) -> Tensor:
            return whole[:, start : start + rows * width].view(len(whole), rows, width)

        return Stacks(view(self.master), view(self.grad), view(self.compute))

    def add_gradient(self, lanes: Lanes, grad: Tensor) -> None:
        """Accumulate the gradient of some lanes."""
        grad = grad.to(self.grad.device)
        if isinstance(lanes, slice):
            self.grad[lanes] += grad
        else:
            self.grad.index_add_(0, lanes, grad.to(self.grad.dtype))


@dataclass
class Window:
    """Which lanes the next batch goes through.

    Attributes:
        lanes: the lanes; None for the bare base.
        rewritten: row and lane of those with a rewritten change.
        learning: 1 for each row of A and B that learns from the batch, 0 for those held constant; None if all learn.
            [all lanes, 1, R]
    """

    lanes: Lanes | None
    rewritten: Sequence[tuple[int, int]] = ()
    learning: Tensor | None = None


class LaneLinear(torch.nn.Module):
    """A frozen linear layer with the adapters of K lanes.

    Attributes:
        a: A of each lane, zero rows where a lane's rank is smaller. [K, R, I]
        b: B of each lane, transposed. [K, R, O]
        scales: alpha / r of each lane. [K, 1, 1]
        window: the lanes of its input; one object for all layers.
        rewritten: by lane, changes that replace s B A.
    """

    def __init__(self, base: torch.nn.Linear, a: Stacks, b: Stacks, scales: Tensor, window: Window) -> None:
        super().__init__()
        self.base, self.a, self.b, self.scales, self.window = base, a, b, scales, window
        self.rewritten: dict[int, Dense] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Send all rows through the base, and each through the adapter of its lane. [K, N, I] -> [K, N, O]"""
        lanes = self.window.lanes
        if lanes is None:
            return self.base(x)
        if x.dim() == 2:  # a shared expert's rows, lane after lane
            count = len(range(*lanes.indices(len(self.scales)))) if isinstance(lanes, slice) else len(lanes)
            return self.forward(x.view(count, -1, x.shape[-1])).flatten(0, 1)
        # Quantized layers, and those that accelerate moves between devices, have their own forward and backward, and
        # what they return must not be changed in place.
        plain = type(self.base) is torch.nn.Linear and not hasattr(self.base, "_hf_hook")
        y = _LowRankUpdate.apply(x, _ANCHOR, self, lanes, *([] if plain else [self.base(x).clone()]))
        for row, lane in self.window.rewritten:
            y[row] += torch.nn.functional.linear(x[row], self.rewritten[lane].dense().to(x))
        return y


#: Its value and gradient are unused: it makes autograd call ``backward`` even if neither y nor x needs a gradient.
_ANCHOR = torch.zeros((), requires_grad=True)


class _LowRankUpdate(torch.autograd.Function):
    """y + (s x A^T) B^T lane by lane; gradients of A and B go to the layer's own buffers.

    y = x W^T is computed here, or given, and then changed in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: LaneLinear, lanes: Lanes, *given: Tensor) -> Any:
        # If a model is spread over several devices, all adapters are on the first; otherwise nothing is moved.
        a_KRI, b_KRO, scales = (t[lanes].to(x.device) for t in (layer.a.compute, layer.b.compute, layer.scales))
        h_KNR = torch.bmm(x, a_KRI.transpose(1, 2)).mul_(scales)
        ctx.layer, ctx.lanes, ctx.is_given = layer, lanes, bool(given)
        learning = layer.window.learning
        ctx.learning = None if learning is None else learning[lanes].to(x)
        ctx.save_for_backward(x, h_KNR, scales, a_KRI, b_KRO)
        ctx.mark_dirty(*given)
        y = given[0] if given else torch.nn.functional.linear(x, layer.base.weight, layer.base.bias)
        return y.baddbmm_(h_KNR, b_KRO)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dy_KNO,) = gradients
        x_KNI, h_KNR, scales, a_KRI, b_KRO = ctx.saved_tensors
        if ctx.learning is not None:
            h_KNR, scales = h_KNR * ctx.learning, scales * ctx.learning
        ctx.layer.b.add_gradient(ctx.lanes, torch.bmm(h_KNR.transpose(1, 2), dy_KNO))
        dh_KNR = torch.bmm(dy_KNO, b_KRO.transpose(1, 2)).mul_(scales)
        ctx.layer.a.add_gradient(ctx.lanes, torch.bmm(dh_KNR.transpose(1, 2), x_KNI))
        if not ctx.needs_input_grad[0]:
            dx_KNI = None
        elif ctx.is_given:
            dx_KNI = torch.bmm(dh_KNR, a_KRI)
        else:
            dx_KNI = (dy_KNO @ ctx.layer.base.weight).baddbmm_(dh_KNR, a_KRI)
        return dx_KNI, None, None, None, *(dy_KNO for _ in range(ctx.is_given))


class Adapters(Trainable):
    """The adapters of K lanes, mounted in a network until ``unmount``.

    Attributes:
        shapes: rank and alpha of each lane.
        layers: every adapted layer, by the name of the linear module that it replaces.
    """

    def __init__(
        self, network: torch.nn.Module, targets: str | Sequence[str], shapes: Sequence[LaneShape], dtype: torch.dtype
    ) -> None:
        self.shapes = tuple(shapes)
        self._network = network
        modules = {name: network.get_submodule(name) for name in target_names(network, targets)}
        linear = {name: module for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
        alike = target_names(network, sorted({name.rpartition(".")[2] for name in linear}))
        self._in_full = targets != "all-linear" and len(alike) > len(linear)
        rank, device = max(shape.rank for shape in shapes), next(iter(linear.values())).weight.device
        inputs = sum(module.in_features for module in linear.values())
        outputs = sum(module.out_features for module in linear.values())
        self._a = Stacks.zeros(len(shapes), rank * inputs, dtype, device)
        self._b = Stacks.zeros(len(shapes), rank * outputs, dtype, device)
        self._scales = torch.tensor([shape.scale for shape in shapes], device=device)[:, None, None]
        self._window = Window(slice(0, len(shapes)))
        self._rewritten: set[int] = set()
        self.layers: dict[str, LaneLinear] = {}
        start_a = start_b = 0
        for name, module in linear.items():
            a = self._a.part(start_a, rank, module.in_features)
            b = self._b.part(start_b, rank, module.out_features)
            self.layers[name] = LaneLinear(module, a, b, self._scales, self._window)
            network.set_submodule(name, self.layers[name])
            start_a, start_b = start_a + rank * module.in_features, start_b + rank * module.out_features

    @property
    def modules(self) -> list[str]:
        return list(self.layers)

    def unmount(self) -> None:
        for name, layer in self.layers.items():
            self._network.set_submodule(name, layer.base)

    def initialize(self, lane: int, seed: int) -> None:
        """Draw a lane's A matrices as PEFT does (Kaiming uniform, a = sqrt 5) and leave B at zero."""
        generator = torch.Generator().manual_seed(seed)
        for each in self.factors(lane):
            a_RI = torch.empty(each.a.shape)
            torch.nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5), generator=generator)
            each.a.copy_(a_RI)
        self.refresh()

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """All A and all B of a lane, with their gradients: the two tensors that its optimizer updates."""
        parameters = {}
        for name, stacks in (("lora_A", self._a), ("lora_B", self._b)):
            parameters[name] = torch.nn.Parameter(stacks.master[lane])
            parameters[name].grad = stacks.grad[lane]
        return parameters

    def factors(self, lane: int) -> list[Factors]:
        scale, rows = self.shapes[lane].scale, (lane, slice(self.shapes[lane].rank))
        return [
            Factors(name, of.a.master[rows], of.b.master[rows], scale, of.a.grad[rows], of.b.grad[rows])
            for name, of in self.layers.items()
        ]

    def rewrite(self, lane: int, f: Rewrite) -> None:
        """Replace s B A, computed whenever it is read, so that only one dense matrix at a time takes memory."""

        def rewritten(change: WeightChange) -> Tensor:
            return f(change.module, change.dense())

        for each in list(self.changes(lane)):
            self.layers[each.module].rewritten[lane] = Dense(each.module, partial(rewritten, each))
        self._scales[lane] = 0.0
        self._rewritten.add(lane)

    def changes(self, lane: int) -> Iterator[WeightChange]:
        for factors in self.factors(lane):
            yield self.layers[factors.module].rewritten.get(lane, factors)

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write a lane's adapter in PEFT's own format, as ``adapter/``; returns the sha256 of its weights."""
        shape = self.shapes[lane]
        if lane in self._rewritten:
            return write_dense(folder / "adapter", self.changes(lane), self._a.compute.dtype, model)
        return write_adapter(folder / "adapter", self.factors(lane), shape.rank, shape.alpha, model, self._in_full)

    def matrices(self, lane: int) -> dict[str, Tensor]:
        return {f"{each.module}.{part}": t for each in self.factors(lane) for part, t in (("A", each.a), ("B", each.b))}

    def silent(self, lane: int) -> list[str]:
        """Modules of a lane whose B got no gradient in the last pass; empty if all learn.

        At the first step B is zero, and therefore also the gradient of every A, so only B can tell.
        """
        return [name for name, layer in self.layers.items() if not bool(layer.b.grad[lane].any())]

    def refresh(self) -> None:
        self._a.refresh()
        self._b.refresh()

    def held(self) -> list[Tensor]:
        return [tensor for stacks in (self._a, self._b) for tensor in (stacks.master, stacks.compute)]

    def gradients(self) -> list[Tensor]:
        return [self._a.grad, self._b.grad]

    def learns(self, half: Half | None) -> None:
        """From now on gradients reach only this half of each lane's rank; for None all of it."""
        self._window.learning = None
        if half is not None:
            rows = torch.arange(max(shape.rank for shape in self.shapes))
            later = torch.stack([rows >= shape.rank // 2 for shape in self.shapes])[:, None]
            self._window.learning = (later == bool(half)).to(self._scales)

    def select(self, lanes: Sequence[int] | None) -> None:
        index = None if lanes is None else index_of(lanes)
        self._window.lanes = torch.tensor(index, device=self._a.master.device) if isinstance(index, list) else index
        self._window.rewritten = [(row, lane) for row, lane in enumerate(lanes or ()) if lane in self._rewritten]
