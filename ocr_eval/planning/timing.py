"""How long a run takes, from the measured speed of the model's matrix products on this device.

Most of the time is spent in linear layers. For each width in the model, a matrix of that width is multiplied with the
rows of a batch, and the time is scaled to the model's weights of that width. Everything that is not a matrix product
(attention, norms, adapters) is covered by a factor.
"""

import math
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
from ocr_eval.planning.workload import Workload
from ocr_eval.specs.model import PRECISIONS, ModelSpec, Precision, TrainSpec

#: Time of a step relative to that of its matrix products, as measured in rehearsals on a CPU.
OVERHEAD = 1.3
#: Outputs of the matrices that are timed; time is taken as proportional to it.
_OUTPUTS = 4096
#: A precision is mentioned if its products are at least this many times as fast.
_CLEARLY_FASTER = 1.2


@dataclass(frozen=True)
class Speed:
    """Seconds per training step of all lanes, and per scored node of each lane."""

    step: float
    node: float

    def scoring(self, work: Workload) -> float:
        """Seconds per scoring."""
        return self.node * work.scored_nodes

    def run(self, work: Workload) -> float:
        """Seconds for the whole runs, without fetching and loading weights."""
        return work.steps * self.step + work.scorings * self.scoring(work)


def calibrate(
    spec: ModelSpec, sizes: Architecture, train: TrainSpec, training: Geometry, scoring: Geometry, device: torch.device
) -> Speed:
    """Estimate a training step and a scoring pass, both over all lanes, by timing matrix products (about a second)."""
    on = DTYPES[spec.dtype], device, torch.get_num_threads()
    rows = training.lanes * training.nodes
    widths = Counter[int]()  # number of weights, by input width
    for (_, inputs, outputs), count in sizes.linears.items():
        widths[inputs] += inputs * outputs * count
    linears = sum(weights * _seconds_a_weight(rows, inputs, *on) for inputs, weights in widths.items())
    head = sizes.head * _seconds_a_weight(training.lanes * training.reads, sizes.head // sizes.vocabulary, *on)
    method = method_of(train)
    needs = method.needs
    unpacking = sizes.linear_parameters * _unpacking_seconds_a_weight(*on) if needs.quantized else 0.0
    products = 3 if needs.whole else 2  # forward, backward to inputs, and to weights if they are trained
    nodes = scoring.lanes * scoring.nodes / rows
    reads = scoring.lanes * scoring.reads / (training.lanes * training.reads)
    return Speed(
        step=OVERHEAD * method.passes(train) * products * (linears + head + unpacking),
        node=OVERHEAD * (linears * nodes + head * reads + unpacking) / scoring.nodes,
    )


@lru_cache
def rates(device: torch.device) -> dict[Precision, float]:
    """GFLOP/s of a square matrix product in each precision available on a device; informative only."""
    found: dict[Precision, float] = {}
    side = 1024 if device.type == "cpu" else 4096
    for name in PRECISIONS if device.type == "cuda" else ("bfloat16", "float32"):
        x = torch.ones(side, side, device=device, dtype=DTYPES[name])
        found[name] = 2 * side**3 / _fastest(partial(torch.matmul, x, x), device) / 1e9
    return found


def faster_note(model: ModelSpec, device: torch.device) -> str:
    """A clause naming float32, or what ``auto`` chooses, if it multiplies matrices at least a fifth faster here."""
    assert model.dtype != "auto"
    found = rates(device)
    others = {choose(device.type).dtype, "float32"} & found.keys()
    if overflows_float16(model):
        others -= {"float16"}
    best = max(others, key=found.__getitem__)
    times = found[best] / found.get(model.dtype, math.inf)
    return f"; {best} multiplies matrices {times:.1f} x as fast here" if times >= _CLEARLY_FASTER else ""


@lru_cache
def _seconds_a_weight(rows: int, inputs: int, dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Seconds to multiply rows by a matrix, per entry of the matrix; measured once per number of threads."""
    x = torch.ones(rows, inputs, device=device, dtype=dtype)
    weight = torch.ones(_OUTPUTS, inputs, device=device, dtype=dtype)
    return _fastest(lambda: torch.nn.functional.linear(x, weight), device) / weight.numel()


@lru_cache
def _unpacking_seconds_a_weight(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Seconds to dequantize an NF4 matrix, per entry; measured once per number of threads."""
    require_bitsandbytes("--method qlora")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    sample = torch.ones(_OUTPUTS, 1024, device=device, dtype=dtype)
    packed, state = quantize_4bit(sample, blocksize=64, compress_statistics=True, quant_type="nf4")
    return _fastest(lambda: dequantize_4bit(packed, state), device) / sample.numel()


def _fastest(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of the fastest of three calls, after a warm-up call."""
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
