"""LoRA adapters of many runs over one frozen network, each row of a batch going through its own.

    y_k = W x_k + s_k B_k (A_k x_k)          k: lane, that is run; W frozen and shared (Hu et al., arXiv 2106.09685)

The base's matrix products see the rows of all lanes at once; the thin products with A and B are batched over lanes,
and those with A over the layers that read the same input. Lanes share no trainable tensor, so every lane learns exactly
what it would learn alone, and each has its own rank, scale and optimizer. PEFT reads and writes the same files
(``methods/peft_files.py``).

Dimension letters:  K lanes,  N nodes a lane,  I inputs,  O outputs,  R the largest rank,  G layers of one input,
Q = G * R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocr_eval.methods.changes import LowRank
from ocr_eval.methods.peft_files import write_adapter
from ocr_eval.models.architecture import target_names
from ocr_eval.specs.model import ModelSpec

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
        compute: what the arithmetic reads: the master weights in its precision; in fp32 they themselves.
    """

    master: Tensor
    grad: Tensor
    compute: Tensor

    @classmethod
    def zeros(cls, lanes: int, size: int, dtype: torch.dtype, device: torch.device) -> Stacks:
        """All zero, with ``size`` elements a lane."""
        master = torch.zeros(lanes, size, device=device)
        return cls(master, torch.zeros_like(master), master.to(dtype))

    def refresh(self) -> None:
        """Take over the master weights into what computes."""
        self.compute.copy_(self.master)

    def part(self, start: int, rows: int, width: int) -> Stacks:
        """Some rows of all lanes, [K, rows, width], as views."""

        def view(whole: Tensor) -> Tensor:
            return whole[:, start : start + rows * width].view(len(whole), rows, width)

        return Stacks(view(self.master), view(self.grad), view(self.compute))

    def add_gradient(self, lanes: Lanes, grad: Tensor) -> None:
        """Accumulate the gradient of what computes, for some lanes."""
        grad = grad.to(self.grad.device)
        if isinstance(lanes, slice):
            self.grad[lanes] += grad
        else:
            self.grad.index_add_(0, lanes, grad.to(self.grad.dtype))


class LaneLinear(torch.nn.Module):
    """A frozen linear layer with the adapters of K lanes.

    Attributes:
        base: the layer.
        a: A of each lane, zero rows where a lane's rank is smaller. [K, R, I]
        b: B of each lane, transposed. [K, R, O]
        siblings: the layers that read the same input, of which this is one.
    """

    def __init__(self, base: torch.nn.Linear, a: Stacks, b: Stacks, siblings: Siblings) -> None:
        super().__init__()
        self.base, self.a, self.b, self.siblings = base, a, b, siblings
        self._index = siblings.add(base, b)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the selected lanes through the base and each through its own adapter. [K, N, I] -> [K, N, O]."""
        return self.siblings.output(self._index, x)


class Siblings:
    """Adapted layers that read the same input, as query, key and value projections do; or one that has its own.

    The first that is asked computes for all, so that the products with A, which are thin, are one for all of them,
    and so is the gradient of the input.

    Attributes:
        bases: the layers.
        a: A of each lane, layer after layer. [K, G * R, I] for G layers
        bs: B of each lane, transposed, of every layer. [K, R, O]
        scales: alpha / r of each lane. [K, 1, 1]
        lanes: which lanes the next batch holds; None for the bare base.
    """

    def __init__(self, a: Stacks, scales: Tensor) -> None:
        self.bases: list[torch.nn.Linear] = []
        self.a, self.scales = a, scales
        self.bs: list[Stacks] = []
        self.lanes: Lanes | None = slice(0, len(scales))
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}

    def add(self, base: torch.nn.Linear, b: Stacks) -> int:
        """Take in another layer; its index."""
        self.bases.append(base)
        self.bs.append(b)
        return len(self.bases) - 1

    def output(self, index: int, x: Tensor) -> Tensor:
        """What a layer makes of an input; what the others make of it is kept until they are asked."""
        if self.lanes is None:
            bare: Tensor = self.bases[index](x)
            return bare
        if self._input is not x or index not in self._outputs:
            # A quantized layer, or one that is moved from device to device, computes and differentiates for itself;
            # what it returns may not be changed in place.
            plain = all(type(base) is torch.nn.Linear and not hasattr(base, "_hf_hook") for base in self.bases)
            given = [] if plain else [base(x).clone() for base in self.bases]
            self._input, self._outputs = x, dict(enumerate(_LowRankUpdates.apply(x, _ANCHOR, self, *given)))
        y = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return y

    def forget(self) -> None:
        """Drop what is kept of the last input."""
        self._input = None
        self._outputs = {}


#: Takes no value and no gradient: it makes autograd call ``backward`` where neither y nor x needs a gradient.
_ANCHOR = torch.zeros((), requires_grad=True)


class _LowRankUpdates(torch.autograd.Function):
    """y + (s x A^T) B^T lane by lane for sibling layers; gradients of A and B go to the layers' own buffers.

    y = x W^T is computed here, or given and changed in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, siblings: Siblings, *given: Tensor) -> Any:
        bases, lanes = siblings.bases, siblings.lanes
        # A model spread over several devices has its adapters on the first; on one device nothing is moved.
        a_KQI, *bs_KRO = (stacks.compute[lanes].to(x.device) for stacks in (siblings.a, *siblings.bs))
        scales = siblings.scales[lanes].to(x.device)
        h_KNQ = torch.bmm(x, a_KQI.transpose(1, 2)).mul_(scales)
        ctx.siblings, ctx.lanes, ctx.is_given = siblings, lanes, bool(given)
        ctx.save_for_backward(x, h_KNQ, scales, a_KQI, *bs_KRO)
        ctx.mark_dirty(*given)
        ys = given or [torch.nn.functional.linear(x, base.weight, base.bias) for base in bases]
        hs_KNR = h_KNQ.chunk(len(bases), dim=-1)
        return tuple(y.baddbmm_(h_KNR, b_KRO) for y, h_KNR, b_KRO in zip(ys, hs_KNR, bs_KRO, strict=True))

    @staticmethod
    def backward(ctx: Any, *dys_KNO: Any) -> Any:
        x_KNI, h_KNQ, scales, a_KQI, *bs_KRO = ctx.saved_tensors
        bases, bs = ctx.siblings.bases, ctx.siblings.bs
        for b, h_KNR, dy_KNO in zip(bs, h_KNQ.chunk(len(bs), dim=-1), dys_KNO, strict=True):
            b.add_gradient(ctx.lanes, torch.bmm(h_KNR.transpose(1, 2), dy_KNO))
        dhs_KNR = [torch.bmm(dy, b_KRO.transpose(1, 2)) for dy, b_KRO in zip(dys_KNO, bs_KRO, strict=True)]
        dh_KNQ = torch.cat(dhs_KNR, dim=-1).mul_(scales)
        ctx.siblings.a.add_gradient(ctx.lanes, torch.bmm(dh_KNQ.transpose(1, 2), x_KNI))
        if not ctx.needs_input_grad[0]:
            dx_KNI = None
        elif ctx.is_given:
            dx_KNI = torch.bmm(dh_KNQ, a_KQI)
        else:
            dx_KNI = dys_KNO[0] @ bases[0].weight
            for base, dy_KNO in zip(bases[1:], dys_KNO[1:], strict=True):
                dx_KNI.flatten(0, 1).addmm_(dy_KNO.flatten(0, 1), base.weight)
            dx_KNI.baddbmm_(dh_KNQ, a_KQI)
        return dx_KNI, None, None, *(dys_KNO if ctx.is_given else ())


#: Last names of modules that read the same input.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def _families(linear: Mapping[str, torch.nn.Linear]) -> list[list[str]]:
    """Names of modules by their common input, in order."""
    families: dict[tuple[object, ...], list[str]] = {}
    for name, module in linear.items():
        parent, _, last = name.rpartition(".")
        kin = next((kin for kin in _SIBLINGS if last in kin), name)
        families.setdefault((parent, kin, module.in_features), []).append(name)
    return list(families.values())


@dataclass(frozen=True)
class Factors:
    """The adapter of a lane over one module: its change is ``scale`` times B A.

    Attributes:
        module: name of the module.
        a: fp32 A. [r, I]
        b: fp32 B, transposed. [r, O]
        grad_a, grad_b: their gradients.
        scale: alpha / r.
    """

    module: str
    a: Tensor
    b: Tensor
    grad_a: Tensor
    grad_b: Tensor
    scale: float


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
        self._a = Stacks.zeros(len(shapes), rank * inputs, dtype, device)
        self._b = Stacks.zeros(len(shapes), rank * outputs, dtype, device)
        scales = torch.tensor([shape.scale for shape in shapes], device=device)[:, None, None]
        self.layers: dict[str, LaneLinear] = {}
        self._siblings: list[Siblings] = []
        start_a = start_b = 0
        for family in _families(linear):
            width = linear[family[0]].in_features
            siblings = Siblings(self._a.part(start_a, len(family) * rank, width), scales)
            self._siblings.append(siblings)
            for name in family:
                module = linear[name]
                a, b = self._a.part(start_a, rank, width), self._b.part(start_b, rank, module.out_features)
                self.layers[name] = LaneLinear(module, a, b, siblings)
                network.set_submodule(name, self.layers[name])
                start_a, start_b = start_a + rank * width, start_b + rank * module.out_features

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

    def factors(self, lane: int) -> list[Factors]:
        """The adapters of a lane, module by module, with their gradients: views, to be changed in place."""
        shape = self.shapes[lane]
        rows = lane, slice(shape.rank)
        return [
            Factors(
                name, layer.a.master[rows], layer.b.master[rows], layer.a.grad[rows], layer.b.grad[rows], shape.scale
            )
            for name, layer in self.layers.items()
        ]

    def changes(self, lane: int) -> Iterator[LowRank]:
        """The change of each adapted matrix, s B A."""
        for each in self.factors(lane):
            yield LowRank(each.module, each.a, each.b, each.scale)

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write a lane's adapter in PEFT's own format, as ``adapter/``; the sha256 of its weights."""
        shape = self.shapes[lane]
        return write_adapter(folder / "adapter", self.tensors(lane), shape.rank, shape.alpha, model)

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
        with self._read_through(
            slice(first, last + 1) if neighbours else torch.tensor(lanes, device=self._a.master.device)
        ):
            yield

    def bare(self) -> AbstractContextManager[None]:
        """Within it, every row goes through the base alone."""
        return self._read_through(None)

    @contextmanager
    def _read_through(self, lanes: Lanes | None) -> Iterator[None]:
        for siblings in self._siblings:
            siblings.lanes = lanes
        try:
            yield
        finally:
            for siblings in self._siblings:
                siblings.forget()
