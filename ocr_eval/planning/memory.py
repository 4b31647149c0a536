"""How much memory a run will need, and how to reduce it."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from ocr_eval.common.distributed import is_alone
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import METHODS, SHIPPED
from ocr_eval.methods.method import method_of
from ocr_eval.models.architecture import build, examine, read_config
from ocr_eval.models.base import DTYPES, device_type, require_device
from ocr_eval.planning.simulation import PARTS, Geometry, Part, peaks
from ocr_eval.specs.model import Device, ModelSpec, TrainSpec

#: Bytes of the interpreter and its libraries on a CPU, measured after a first step; not counted on a GPU.
PROCESS_BYTES = 620_000_000
#: Optimizer bytes per trainable parameter: AdamW's two moments in fp32, or in 8 bits with a scale per block of 256.
STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
#: Share of the device's memory that a plan may use; the rest is for fragmentation and other programs.
USABLE = 0.95


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a run by part, in bytes, at the peak of training and scoring.

    Attributes:
        weights: the frozen base, or all weights if all are trained.
        adapters: fp32 masters and the copies in the precision of the arithmetic.
        optimizer: AdamW's moments.
        gradients: of trained parameters.
        activations: those kept for the backward pass, and temporary ones within a layer.
        logits: at the positions where they are read.
        process: interpreter and libraries (CPU only).
        while_training: whether the peak is in training rather than scoring.
    """

    weights: int
    adapters: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    process: int
    while_training: bool

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part, in a fixed order."""
        return {name: size for name, size in asdict(self).items() if name != "while_training"}

    def fits(self, available: int) -> bool:
        """Whether the run can be expected to fit into ``available`` bytes."""
        return self.total <= USABLE * available

    def as_json(self) -> dict[str, Any]:
        """A plain object, in bytes."""
        return {**self.parts(), "total": self.total, "while": "training" if self.while_training else "scoring"}


@functools.lru_cache(maxsize=256)
def _estimate(
    spec: ModelSpec, train: TrainSpec, training: Geometry, scoring: Geometry, device: str, layers: int | None
) -> MemoryPlan:
    state_bytes = STATE_BYTES[optimizer_kind(train, device)]
    layers = read_config(spec, layers).num_hidden_layers

    def with_layers(count: int) -> list[Counter[Part]]:
        """Training before and after the first gradient, and scoring, of a model with ``count`` layers."""
        config = read_config(spec, count)
        passes = ((training, True), (scoring, False))
        return [p for of, learns in passes for p in peaks(spec, config, train, of, state_bytes, device, learns)]

    chosen = method_of(train).by_layer or any("." in target for target in train.targets)
    found = with_layers(layers) if chosen else _at(layers, with_layers)
    if method_of(train).needs.quantized:  # one matrix at a time is dequantized for its product
        unpacked = max(inputs * outputs for _, inputs, outputs in examine(spec, layers).linears)
        for peak in found:
            peak["weights"] = frozen_bytes(spec, True, layers)
            peak["activations"] += unpacked * DTYPES[spec.dtype].itemsize
    at_the_end: Counter[Part] = Counter({part: found[0][part] for part in ("weights", "adapters", "optimizer")})
    masters = int(found[0]["optimizer"] / state_bytes) * 4
    at_the_end["gradients"] = masters  # all gradients, when no activation is left
    at_the_end["activations"] = 0 if method_of(train).needs.whole else masters  # gradients are scaled into a copy
    largest = max([*found, at_the_end], key=lambda peak: peak.total())
    return MemoryPlan(
        **{part: largest[part] for part in PARTS},
        process=PROCESS_BYTES if device == "cpu" else 0,
        while_training=largest is not found[2],
    )


def _at(layers: int, peaks: Callable[[int], list[Counter[Part]]]) -> list[Counter[Part]]:
    """Peaks of a model, extrapolated from two and three layers: every part is linear in the number of layers.

    Simulating all 32 layers of an 8B model takes 5.6 s; this takes 1.1 s.
    """
    if layers <= 3:
        return peaks(layers)
    return [
        Counter({part: three[part] + (layers - 3) * (three[part] - two[part]) for part in PARTS})
        for two, three in zip(peaks(2), peaks(3), strict=True)
    ]


def estimate(
    spec: ModelSpec, train: TrainSpec, training: Geometry, scoring: Geometry, device: str, layers: int | None = None
) -> MemoryPlan:
    """Peak memory of a run, from the model's configuration; no weights are read.

    ``training`` is the largest batch, whose lanes are the runs of a pack; ``scoring`` the largest scored chunk.

    Raises:
        UserError: the model's configuration is not available.
    """
    # Only these settings matter (the batch is in the geometry), so runs that differ in others are simulated once.
    of_memory = TrainSpec(method=train.method, rank=train.rank, targets=train.targets)
    return _estimate(spec, of_memory, training, scoring, device, layers)


def note(train: TrainSpec) -> str:
    """A clause for a method without a cost model, which is planned as LoRA or full fine-tuning; empty for others."""
    name, needs = train.method.partition(":")[0], method_of(train).needs
    if METHODS.source(name) == SHIPPED and not needs.once:
        return ""
    taken_for = "full fine-tuning" if needs.whole else "LoRA"
    return f"; there is no cost model for '{name}', so the plan treats it as {taken_for}"


def optimizer_kind(train: TrainSpec, device: str) -> str:
    """The optimizer: 8-bit AdamW if all parameters are trained on CUDA (bitsandbytes), else fp32."""
    return "adamw8bit" if method_of(train).needs.whole and device == "cuda" else "adamw"


def least(spec: ModelSpec, train: TrainSpec, device: str) -> int:
    """Bytes that a run needs at least, before any activation. Quick: nothing is simulated."""
    sizes, needs = examine(spec), method_of(train).needs
    state = STATE_BYTES[optimizer_kind(train, device)]
    if needs.whole:
        return int(sizes.parameters * (4 + 4 + state))
    adapter = 4 + DTYPES[spec.dtype].itemsize + 4 + state
    return frozen_bytes(spec, needs.quantized) + int(trainable(spec, train) * adapter)


@functools.lru_cache
def trainable(spec: ModelSpec, train: TrainSpec) -> int:
    """Number of parameters that a run trains."""
    if method_of(train).needs.whole:
        return examine(spec).parameters
    with torch.device("meta"):
        network = build(spec, read_config(spec), "cpu")
        mounted = method_of(train).mount(network, [train], DTYPES[spec.dtype])
    return sum(parameter.numel() for parameter in mounted.parameters(0).values())


def frozen_bytes(spec: ModelSpec, quantized: bool, layers: int | None = None) -> int:
    """Bytes of a model's frozen weights in the spec's precision; if ``quantized``, with linear layers in NF4."""
    sizes, itemsize = examine(spec, layers), DTYPES[spec.dtype].itemsize
    return sizes.parameters * itemsize - (int(sizes.linear_parameters * (itemsize - 0.516)) if quantized else 0)


def alternatives(
    spec: ModelSpec, train: TrainSpec, training: Geometry, scoring: Geometry, device: str, free: int
) -> list[tuple[str, MemoryPlan]]:
    """Flags that make a run fit, each with its plan: half the precision, a smaller batch, LoRA, a quantized base."""
    methods = (train.method, *method_of(train).lighter)
    found = []
    if spec.dtype == "float32":
        halved = estimate(spec.model_copy(update={"dtype": "bfloat16"}), train, training, scoring, device)
        found += [("--dtype bfloat16", halved)] if halved.fits(free) else []
    for method in methods:
        batch = train.batch_size
        while batch >= 1:
            share = batch / train.batch_size
            sizes = ("nodes", "reads", "tokens", "clumps")
            smaller = replace(training, **{key: max(1, round(getattr(training, key) * share)) for key in sizes})
            changed = train.model_copy(update={"method": method})
            plan = estimate(spec, changed, smaller, scoring, device)
            if plan.fits(free):
                flags = [f"--method {method}"] if method != train.method else []
                flags += [f"--batch-size {batch}"] if batch != train.batch_size else []
                found.append((" ".join(flags), plan))
                break
            if plan.weights + plan.optimizer + plan.adapters + plan.gradients > USABLE * free:
                break  # no batch is small enough
            batch //= 4
    return found


def available(device: torch.device) -> int:
    """Free memory of a device in bytes; an Apple GPU shares the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available


def refuse_impossible(spec: ModelSpec, train: TrainSpec, device: Device) -> None:
    """Stop before anything is loaded if a run needs more memory than there is.

    Raises:
        UserError: it does (the message has the numbers and what would fit), or there is no such device here.
    """
    require_device(device)
    kind = device_type(device)
    if kind == "cuda":
        gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        there = sum(gpus) if is_alone() else min(gpus)  # in distributed training each process holds a replica
    else:
        there = psutil.virtual_memory().total
    needed = least(spec, train, kind)
    if needed <= there:
        return
    ways = [f"--method {method}" for method in method_of(train).lighter]
    ways += ["--dtype bfloat16"] if spec.dtype == "float32" else []
    raise UserError(
        f"{spec.name} by {train.method} needs at least {needed / 1e9:.0f} GB (weights, gradients, optimizer), but this "
        f"{kind} has {there / 1e9:.0f} GB. Use {', '.join([*ways, 'or a smaller model'])}; --dry-run shows what fits."
    )
