"""The memory of a training step and of a scoring pass, found by running them on tensors that hold no values.

PyTorch's fake tensors have shapes, dtypes and lifetimes and no storage. A real network of the architecture makes a
real step on them (forward, backward through the adapters, optimizer), while a dispatch mode adds up every storage
that comes to life and takes off every one that dies. What the step would hold at its peak is then known to the
byte, for any architecture, before a weight exists; a step of an 8B model takes a few seconds.

Dimension letters:  K lanes,  N nodes of a lane's token forest,  R positions of a lane where logits are read.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from ocr_eval.architecture import build, linear_modules
from ocr_eval.models import DTYPES
from ocr_eval.specs import ModelSpec, TrainSpec

Part = Literal["weights", "adapters", "optimizer", "gradients", "activations", "logits"]
PARTS: tuple[Part, ...] = ("weights", "adapters", "optimizer", "gradients", "activations", "logits")


@dataclass(frozen=True)
class Geometry:
    """The largest pass of a kind.

    Attributes:
        lanes: runs that are trained at once over one base. [K]
        nodes: nodes of a lane's token forest. [N]
        reads: positions of a lane whose logits are computed. [R]
        tokens: expected tokens that are read there.
    """

    lanes: int
    nodes: int
    reads: int
    tokens: int


def training_peaks(
    spec: ModelSpec, config: PretrainedConfig, train: TrainSpec, geometry: Geometry, state_bytes: float
) -> list[Counter[Part]]:
    """Bytes of each part at the peak of a training step, before the first gradient is there and after.

    Before it, memory grows with every layer by its activations; after it, by a layer's gradients less its activations.
    So each of the two is linear in the number of layers, but for which end of the second is the higher.

    Args:
        spec: gives precision and attention.
        config: the architecture.
        train: gives method, rank and targets.
        geometry: the largest batch.
        state_bytes: optimizer state of a trainable parameter.
    """
    with FakeTensorMode(), torch.device("cpu"):
        network, trainable = _network(spec, config, train, geometry.lanes)
        meter = _Meter(trainable, config.vocab_size)
        if train.method != "full":
            meter.hold("adapters", trainable)
        meter.hold("weights", [*network.parameters(), *network.buffers()])
        state = [torch.empty(int(p.numel() * state_bytes), dtype=torch.uint8) for p in trainable]
        meter.hold("optimizer", state)
        with meter:
            loss = -_logprobs(spec, config, network, geometry).mean()
            meter.phase = "gradients"
            loss.backward()
    return [meter.before_gradients, meter.after]


def scoring_peak(spec: ModelSpec, config: PretrainedConfig, train: TrainSpec, geometry: Geometry) -> Counter[Part]:
    """Bytes of each part at the peak of a scoring pass; nothing is kept from layer to layer."""
    with FakeTensorMode(), torch.device("cpu"):
        network, trainable = _network(spec, config, train, geometry.lanes)
        meter = _Meter(trainable, config.vocab_size)
        meter.hold("adapters" if train.method != "full" else "weights", trainable)
        meter.hold("weights", [*network.parameters(), *network.buffers()])
        with meter, torch.no_grad():
            _logprobs(spec, config, network, geometry)
    return meter.before_gradients


def _network(
    spec: ModelSpec, config: PretrainedConfig, train: TrainSpec, lanes: int
) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """The network as it is trained, and its trainable parameters."""
    if train.method == "full":
        network = build(spec, config, torch.float32).requires_grad_(True)
        return network, list(network.parameters())
    network = build(spec, config)
    trainable = []
    for name, linear in linear_modules(network).items():
        base: torch.nn.Module = _FourBit(linear) if train.method == "qlora" else linear
        parent, _, leaf = name.rpartition(".")
        if train.targets == "all-linear" or leaf in train.targets:
            adapted = _Adapted(base, linear, lanes, train.rank)
            trainable += [adapted.A, adapted.B]
            base = adapted
        setattr(network.get_submodule(parent), leaf, base)
    return network, trainable


class _Adapted(torch.nn.Module):
    """A linear with LoRA, a lane a row, its masters in fp32."""

    def __init__(self, base: torch.nn.Module, linear: torch.nn.Linear, lanes: int, rank: int) -> None:
        super().__init__()
        self.base = base
        self.A = torch.nn.Parameter(torch.empty(lanes, rank, linear.in_features))
        self.B = torch.nn.Parameter(torch.empty(lanes, linear.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.base(x) + 2.0 * (x @ self.A.mT @ self.B.mT)
        return update


class _FourBit(torch.nn.Module):
    """The storage and the traffic of a bitsandbytes NF4 linear with double quantization."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weights = linear.weight.numel()
        self.shape, self.dtype, self.bias = linear.weight.shape, linear.weight.dtype, linear.bias
        self.register_buffer("packed", torch.empty(weights // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(weights // 64, dtype=torch.uint8))
        self.register_buffer("scales_of_scales", torch.empty(weights // (64 * 256), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Dequantized.apply(x, self.shape, self.dtype)
        return y if self.bias is None else y + self.bias


class _Dequantized(torch.autograd.Function):
    """``x W^T`` with W unpacked for the product alone, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.dtype = shape, dtype
        return x.to(dtype) @ torch.empty(shape, dtype=dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] @ torch.empty(ctx.shape, dtype=ctx.dtype), None, None


def _logprobs(spec: ModelSpec, config: PretrainedConfig, network: torch.nn.Module, geometry: Geometry) -> torch.Tensor:
    """A forward pass as ``forward.token_logprobs`` makes it."""
    K, N, R = geometry.lanes, geometry.nodes, geometry.reads
    dtype = DTYPES[spec.dtype]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits_KRV = network(
            input_ids=torch.zeros(K, N, dtype=torch.long),
            position_ids=torch.zeros(K, N, dtype=torch.long),
            attention_mask=torch.zeros(K, 1, N, N, dtype=dtype),
            logits_to_keep=torch.zeros(R, dtype=torch.long),
            use_cache=False,
        ).logits
    logprobs_KRV = torch.log_softmax(logits_KRV.float(), dim=-1)
    read = torch.zeros(geometry.tokens, dtype=torch.long)
    return logprobs_KRV[:, read, read]


class _Meter(TorchDispatchMode):
    """Adds up living storages by part and keeps the sums of the moments when all together are largest."""

    def __init__(self, trainable: Iterable[torch.Tensor], vocabulary: int) -> None:
        super().__init__()
        self.phase: Part = "activations"
        self.before_gradients: Counter[Part] = Counter()
        self.after: Counter[Part] = Counter()
        self._trainable_shapes = {tuple(p.shape) for p in trainable}
        self._vocabulary = vocabulary
        self._living: dict[int, tuple[Part, int]] = {}
        self._now: Counter[Part] = Counter()

    def hold(self, part: Part, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were there before the step."""
        for tensor in tensors:
            self._add(tensor, part)

    def _add(self, tensor: torch.Tensor, part: Part) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._living:
            return
        size = storage.nbytes()
        self._living[storage._cdata] = (part, size)
        self._now[part] += size
        weakref.finalize(storage, self._remove, storage._cdata)
        if "gradients" not in self._now:
            self.before_gradients = _larger(self.before_gradients, self._now)
        else:
            self.after = _larger(self.after, self._now)

    def _remove(self, key: int) -> None:
        part, size = self._living.pop(key)
        self._now[part] -= size

    def _part_of(self, tensor: torch.Tensor) -> Part:
        if tensor.dim() and tensor.shape[-1] == self._vocabulary:
            return "logits"
        if tuple(tensor.shape) in self._trainable_shapes:
            return "gradients" if self.phase == "gradients" else "adapters"
        return "activations"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, self._part_of(tensor))
        return out


def _larger(kept: Counter[Part], now: Counter[Part]) -> Counter[Part]:
    return Counter(now) if now.total() > kept.total() else kept
