"""The memory of a training step and of a scoring pass, measured by running them on fake tensors.

PyTorch's fake tensors have shapes, dtypes and lifetimes but no storage. The real architecture runs forward and backward
on them (through the adapters), while a dispatch mode adds every storage that is allocated and subtracts every one that
is freed. This gives the peak to the byte, for any architecture, before any weights exist.

Dimension letters:  K lanes,  N nodes of a lane's token forest,  C clumps of B nodes each,  R positions of a lane where
logits are read.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

from ocr_eval.methods.method import method_of
from ocr_eval.models import grouped_attention
from ocr_eval.models.architecture import build
from ocr_eval.models.base import DTYPES
from ocr_eval.packing.logprobs import block_rows, read_logprobs
from ocr_eval.specs.model import ModelSpec, TrainSpec

Part = Literal["weights", "adapters", "optimizer", "gradients", "activations", "logits"]
PARTS: tuple[Part, ...] = ("weights", "adapters", "optimizer", "gradients", "activations", "logits")


@dataclass(frozen=True)
class Geometry:
    """The shape of the largest training or scoring pass.

    Attributes:
        lanes: runs that share the pass and the base. [K]
        nodes: nodes of a lane's token forest, with padding. [N]
        reads: positions of a lane whose logits are computed. [R]
        tokens: expected tokens that are read there.
        clumps: number of clumps that the forest is divided into (packing/batch.py). [C]
    """

    lanes: int
    nodes: int
    reads: int
    tokens: int
    clumps: int = 1


def peaks(
    spec: ModelSpec,
    config: PretrainedConfig,
    train: TrainSpec,
    geometry: Geometry,
    state_bytes: float,
    device: str,
    training: bool,
) -> list[Counter[Part]]:
    """Bytes of each part at the peak of a training step or of a scoring pass.

    Training has two peaks, before and after the first gradient is allocated. Before it, each layer adds its
    activations; after it, a layer's gradients less its activations. So each peak is linear in the number of layers. In
    scoring nothing is kept between layers. A quantized base is simulated unquantized; ``memory.estimate`` corrects for
    its weights.

    ``geometry`` is the largest batch or scored chunk, ``state_bytes`` the optimizer's bytes per trainable parameter;
    the type of ``device`` determines the attention.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        network = build(spec, config, device, torch.float32 if method_of(train).needs.whole else None)
        meter = _hold(network, spec, train, geometry.lanes, state_bytes, config.vocab_size)
        with meter, torch.set_grad_enabled(training):
            logprobs = _logprobs(spec, train, network, geometry, device)
            if training:
                meter.phase = "gradients"
                (-logprobs.mean()).backward()
    return [meter.before_gradients, meter.after] if training else [meter.before_gradients]


def _hold(
    network: PreTrainedModel, spec: ModelSpec, train: TrainSpec, lanes: int, state_bytes: float, vocabulary: int
) -> _Meter:
    """Prepare the network for training, and return a meter that counts what exists before a step."""
    if method_of(train).needs.whole:
        network.requires_grad_(True)
        trainable = list(network.parameters())
        meter = _Meter(vocabulary, {tuple(p.shape) for p in trainable})
        meter.hold("weights", trainable)
    else:
        mounted = method_of(train).mount(network, [train] * lanes, DTYPES[spec.dtype])
        trainable = [parameter for lane in range(lanes) for parameter in mounted.parameters(lane).values()]
        meter = _Meter(vocabulary, set())
        meter.hold("adapters", mounted.held())
        meter.hold("gradients", mounted.gradients())
    meter.hold("weights", [*network.parameters(), *network.buffers()])
    meter.hold("optimizer", [torch.empty(int(p.numel() * state_bytes), dtype=torch.uint8) for p in trainable])
    return meter


def _logprobs(
    spec: ModelSpec, train: TrainSpec, network: PreTrainedModel, geometry: Geometry, device: str
) -> torch.Tensor:
    """A forward pass like that of ``methods.view.View``."""
    K, C, R = geometry.lanes, geometry.clumps, geometry.reads
    B = -(-geometry.nodes // C)
    N = C * B
    by_clump = network.config._attn_implementation == grouped_attention.NAME
    dtype = DTYPES[spec.dtype]
    with torch.autocast("cpu", dtype, enabled=method_of(train).needs.whole and dtype != torch.float32):
        logits_KRV = network(
            input_ids=torch.zeros(K, N, dtype=torch.long),
            position_ids=torch.zeros(K, N, dtype=torch.long),
            attention_mask=torch.zeros((K * C, 1, B, B) if by_clump else (K, 1, N, N), dtype=dtype),
            logits_to_keep=[0] * R,
            use_cache=False,
        ).logits
    read = torch.zeros(K * geometry.tokens, dtype=torch.long)
    return read_logprobs(logits_KRV.flatten(0, 1), read, read, block_rows(logits_KRV.shape[-1], device))


class _Meter(TorchDispatchMode):
    """Adds up live storages by part, and keeps the sums at the two peaks."""

    def __init__(self, vocabulary: int, trained_shapes: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.phase: Part = "activations"
        self.before_gradients: Counter[Part] = Counter()
        self.after: Counter[Part] = Counter()
        self._vocabulary, self._trained_shapes = vocabulary, trained_shapes
        self._any_gradient = False
        self._held: list[torch.Tensor] = []
        self._living: dict[int, tuple[Part, int]] = {}
        self._now: Counter[Part] = Counter()

    def hold(self, part: Part, tensors: Sequence[torch.Tensor]) -> None:
        """Count tensors that exist before the step and after it."""
        self._held += tensors
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
        if not self._any_gradient:
            self.before_gradients = _larger(self.before_gradients, self._now)
        else:
            self.after = _larger(self.after, self._now)

    def _remove(self, key: int) -> None:
        part, size = self._living.pop(key)
        self._now[part] -= size

    def _part_of(self, tensor: torch.Tensor) -> Part:
        if tensor.dim() and tensor.shape[-1] == self._vocabulary:
            return "logits"
        if self.phase == "gradients" and tuple(tensor.shape) in self._trained_shapes:
            self._any_gradient = True
            return "gradients"
        return "activations"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, self._part_of(tensor))
        return out


def _larger(kept: Counter[Part], now: Counter[Part]) -> Counter[Part]:
    return Counter(now) if now.total() > kept.total() else kept
