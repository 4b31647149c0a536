"""How long a run takes, from the speed of the model's own matrix products on this device.

Linear layers are where the time goes. A matrix of each width that the model has is multiplied by as many rows as a
batch has, and the seconds are taken in proportion to the model's weights of that width. What is not a matrix product
(attention, norms, the adapters) is a factor on top.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from ocr_eval.methods.method import method_of
from ocr_eval.models.architecture import Architecture
from ocr_eval.models.base import DTYPES, require_bitsandbytes
from ocr_eval.models.precision import choose, overflows_float16
from ocr_eval.planning.simulation import Geometry
from ocr_eval.specs.model import PRECISIONS, ModelSpec, Precision, TrainSpec

#: Time of a step beyond its matrix products, as measured in rehearsals on a CPU.
OVERHEAD = 1.3
#: Outputs of the matrices that are tried; larger ones take longer in proportion.
_OUTPUTS = 4096
#: A precision is mentioned if its products are this many times as fast.
_CLEARLY_FASTER = 1.2
#: Part of a GPU's peak that short sequences reach.
_REACHED = 0.4


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step and of scoring one chunk."""

    step: float
    chunk: float


@dataclass(frozen=True)
class Gpu:
    """A GPU one might have: memory in bytes, dense bf16 operations and bytes a second, from its data sheet."""

    name: str
    memory: float
    flops: float
    bandwidth: float


GPUS = (
    Gpu("RTX 4090 24 GB", 24e9, 165e12, 1.0e12),
    Gpu("A100 40 GB", 40e9, 312e12, 1.55e12),
    Gpu("L40S 48 GB", 48e9, 362e12, 0.86e12),
    Gpu("A100 80 GB", 80e9, 312e12, 2.0e12),
    Gpu("H100 80 GB", 80e9, 989e12, 3.35e12),
    Gpu("H200 141 GB", 141e9, 989e12, 4.8e12),
)


def calibrate(
    spec: ModelSpec,
    sizes: Architecture,
    train: TrainSpec,
    training: Geometry,
    scoring: Geometry,
    device: torch.device,
) -> Speed:
    """Measure a step on the batch ``training`` and the chunk ``scoring``, both of all their lanes (about a second)."""
    on = DTYPES[spec.dtype], device, torch.get_num_threads()
    rows = training.lanes * training.nodes
    widths = Counter[int]()  # weights to multiply with, by the length of a row
    for (_, inputs, outputs), count in sizes.linears.items():
        widths[inputs] += inputs * outputs * count
    linears = sum(weights * _seconds_a_weight(rows, inputs, *on) for inputs, weights in widths.items())
    head = sizes.head * _seconds_a_weight(training.lanes * training.reads, sizes.head // sizes.vocabulary, *on)
    needs = method_of(train).needs
    unpacking = sizes.linear_parameters * _unpacking_seconds_a_weight(*on) if needs.quantized else 0.0
    passes = 3 if needs.whole else 2  # forward, backward to inputs, and to weights where they learn
    nodes = scoring.lanes * scoring.nodes / rows
    reads = scoring.lanes * scoring.reads / (training.lanes * training.reads)
    return Speed(
        step=OVERHEAD * (passes * (linears + head + unpacking)),
        chunk=OVERHEAD * (linears * nodes + head * reads + unpacking),
    )


def rates(device: torch.device) -> dict[Precision, float]:
    """GFLOP/s of a square matrix product in each precision that may be chosen on a device; they decide nothing."""
    names = PRECISIONS if device.type == "cuda" else ("bfloat16", "float32")
    return {name: rate(name, device) for name in names}


@lru_cache
def rate(dtype: Precision, device: torch.device) -> float:
    """GFLOP/s of a square matrix product; measured once."""
    side = 1024 if device.type == "cpu" else 4096
    x = torch.ones(side, side, device=device, dtype=DTYPES[dtype])
    return 2 * side**3 / _fastest(partial(torch.matmul, x, x), device) / 1e9


def faster_dtype(model: ModelSpec, device: torch.device) -> tuple[Precision, float] | None:
    """What ``auto`` chooses on a device, or float32, if its products are faster than the model's by a fifth or more."""
    assert model.dtype != "auto"
    others = {choose(device.type).dtype, "float32"} - {model.dtype}
    if "float16" in others and overflows_float16(model):
        others.remove("float16")
    best = max(others, key=lambda name: rate(name, device), default=model.dtype)
    times = rate(best, device) / rate(model.dtype, device)
    return (best, times) if times >= _CLEARLY_FASTER else None


def slower_note(faster: tuple[Precision, float] | None) -> str:
    """A clause on the precision that would be faster, for a line of a plan."""
    return "" if faster is None else f"; {faster[0]} multiplies matrices {faster[1]:.1f} x as fast here"


def on_gpu(gpu: Gpu, sizes: Architecture, train: TrainSpec, rows: int) -> float:
    """Seconds of a training step on a GPU of the table: the slower of computing and of reading the weights."""
    passes = 3 if method_of(train).needs.whole else 2
    weights = sizes.linear_parameters + sizes.head
    return max(passes * 2 * weights * rows / (_REACHED * gpu.flops), passes * 2 * weights / gpu.bandwidth)


@lru_cache
def _seconds_a_weight(rows: int, inputs: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Seconds of multiplying rows by a matrix, divided by its entries; measured once for a number of threads."""
    x = torch.ones(rows, inputs, device=device, dtype=dtype)
    weight = torch.ones(_OUTPUTS, inputs, device=device, dtype=dtype)
    return _fastest(lambda: torch.nn.functional.linear(x, weight), device) / weight.numel()


@lru_cache
def _unpacking_seconds_a_weight(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Seconds of unpacking an NF4 matrix, divided by its entries; measured once for a number of threads."""
    require_bitsandbytes("--method qlora")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    sample = torch.ones(_OUTPUTS, 1024, device=device, dtype=dtype)
    packed, state = quantize_4bit(sample, blocksize=64, compress_statistics=True, quant_type="nf4")
    return _fastest(lambda: dequantize_4bit(packed, state), device) / sample.numel()


def _fastest(work: Callable[[], torch.Tensor], device: torch.device, times: int = 3) -> float:
    """Seconds of the fastest of a few calls, after one to warm up."""
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
