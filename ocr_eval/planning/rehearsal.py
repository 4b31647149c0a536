"""A rehearsal: the full-size architecture with random weights makes a few real training steps and scores probes.

It shows without the real weights that the model fits as planned, how long a step takes, that gradients reach every
adapter and change it, and that scoring works. It says nothing about ranks.
"""

import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.messages import say
from ocr_eval.common.out_of_memory import peak_bytes
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.methods.method import method_of
from ocr_eval.methods.pack import GradientPack, attach, batches_of_epoch
from ocr_eval.models.architecture import examine, read_config
from ocr_eval.models.base import Base, make_accelerator
from ocr_eval.models.precision import choose_for
from ocr_eval.models.random_weights import random_network
from ocr_eval.models.weights import WeightFolder
from ocr_eval.planning import memory, timing, workload
from ocr_eval.planning.memory import MemoryPlan
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.specs.model import Device
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Rehearsal:
    """Measurements, next to what was planned; in bytes and seconds.

    Attributes:
        layers: layers that were built, and layers of the model.
        parameters: number that were built.
        device: a GPU by its name.
        real_tokenizer: the model's own, or a stand-in with the same vocabulary size.
        examples: statements in the batch, which is the same in every step.
        nodes: nodes of its forest.
        adapters: number of trained matrices; gradients reached all of them.
        moved: how many of them the steps changed.
        losses: before each step; they fall, because the batch stays the same.
        planned_step: seconds that the calibration predicted for a step.
        scored: probes that were scored, and probes in all.
        peak: peak bytes, of the process on a CPU, of the allocator on a GPU.
        plan: the planned peak.
    """

    model: str
    layers: tuple[int, int]
    parameters: int
    method: str
    dtype: str
    device: str
    real_tokenizer: bool
    examples: int
    nodes: int
    adapters: int
    moved: int
    losses: list[float]
    step_seconds: list[float]
    planned_step: float
    scored: tuple[int, int]
    score_seconds: float
    build_seconds: float
    peak: int
    plan: MemoryPlan

    @property
    def deviation(self) -> float:
        """How far the measured peak exceeds the plan, relative to the plan."""
        return self.peak / self.plan.total - 1

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return {**asdict(self), "plan": self.plan.as_json(), "deviation": round(self.deviation, 4)}

    def as_text(self) -> str:
        """Lines for a terminal."""
        built, whole = self.layers
        some = "" if built == whole else f", {built} of {whole} layers"
        tokens = "its own tokenizer" if self.real_tokenizer else "a stand-in tokenizer of the same vocabulary size"
        seconds = ", ".join(f"{s:.1f}" for s in self.step_seconds)
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.plan.parts().items())
        return (
            f"{self.model}{some}: {self.parameters / 1e9:.2f} B random parameters, {self.method}, {self.dtype}, "
            f"{self.device}; {tokens}\n"
            f"built in {self.build_seconds:.0f} s; steps of {self.examples} statements ({self.nodes} nodes) took "
            f"{seconds} s (planned {self.planned_step:.1f}); {self.scored[0]} of {self.scored[1]} probes scored in "
            f"{self.score_seconds:.1f} s\n"
            f"all {self.adapters} trained matrices moved; loss {' -> '.join(f'{loss:.3f}' for loss in self.losses)}\n"
            f"peak {self.peak / 1e9:.2f} GB, planned {self.plan.total / 1e9:.2f} GB ({self.deviation:+.1%}): {parts}"
        )


def rehearse(
    spec: RunSpec,
    device: Device = "auto",
    layers: int | None = None,
    steps: int = 3,
    probes: int = 40,
    folder: Path | None = None,
) -> Rehearsal:
    """Build the first ``layers``, train some steps on the run's first batch, score some probes, compare with the plan.

    ``folder`` holds the model's tokenizer, if it is not in a cache.

    Raises:
        UserError: the method has no steps or does not suit the association, the model has fewer layers, or it does not
            fit into the free memory.
        RunFailed: an adapter learns nothing, or scores are NaN.
    """
    needs, no_steps = method_of(spec.train).needs, UserError(f"{spec.train.method} has no training steps to rehearse.")
    if needs.once:
        raise no_steps
    accelerator = make_accelerator(device)
    place = accelerator.device
    spec = spec.in_precision(choose_for(spec.model, place.type).dtype)
    config, sizes = read_config(spec.model, layers), examine(spec.model, layers)
    tokenizer, is_real = workload.tokenizer_at_hand(spec.model, folder)
    method_of(spec.train).check(spec, tokenizer)
    work = workload.measure(spec, folder)
    taught = training_tokens(tokenizer, work.task)
    examples = batches_of_epoch(taught, spec.stream("order"), 1, spec.train)[0]
    asked = probe_tokens(tokenizer, work.task)[:probes]
    training, scoring = workload.batch_geometry(examples), workload.chunk_geometry(asked)
    plan = memory.estimate(spec.model, spec.train, training, scoring, place.type, layers)
    free = memory.available(place)
    if not plan.fits(free):
        raise UserError(
            f"{spec.model.name} with {spec.train.method} needs {plan.total / 1e9:.1f} GB, but {free / 1e9:.1f} GB are "
            "free. Rehearse it with --method qlora, or rehearse part of it with --layers."
        )
    speed = timing.calibrate(spec.model, sizes, spec.train, training, scoring, place)
    gc.collect()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)

    say(f"Building {sizes.parameters / 1e9:.2f} B random parameters")
    started = time.monotonic()
    network = random_network(spec.model, config, place, needs.quantized, torch.float32 if needs.whole else None)
    build_seconds = time.monotonic() - started
    files = WeightFolder(Path(), "random")
    base = Base(spec.model, needs.quantized, network, tokenizer, files, accelerator, needs.whole)
    pack = attach(base, [spec], [taught])
    if not isinstance(pack, GradientPack):
        raise no_steps
    pack.learners[0].examples = examples  # the same in every step
    before, losses, step_seconds, threads = _fingerprints(pack), [], [], torch.get_num_threads()
    for step in range(steps):
        started = time.monotonic()
        losses.append(pack.step([0])[0])
        step_seconds.append(time.monotonic() - started)
        say(f"step {step + 1}/{steps}  loss {losses[-1]:.4f}  {step_seconds[-1]:.1f} s")
    moved = sum(after != before for after, before in zip(_fingerprints(pack), before, strict=True))
    started = time.monotonic()
    scores = score_candidates(pack.view(), asked)
    score_seconds = time.monotonic() - started
    peak = peak_bytes(place)
    pack.detach()
    if not scores.are_numbers:
        raise RunFailed(f"{spec.model.name}: the scoring pass returned a NaN log-probability.")
    if moved < len(before):
        raise RunFailed(f"{spec.model.name}: {len(before) - moved} of {len(before)} trained matrices did not change.")
    return Rehearsal(
        model=spec.model.name,
        layers=(sizes.layers, examine(spec.model).layers),
        parameters=sizes.parameters,
        method=spec.train.method,
        dtype=spec.precision,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else f"{place}, {threads} threads",
        real_tokenizer=is_real,
        examples=len(examples),
        nodes=training.nodes,
        adapters=len(before),
        moved=moved,
        losses=losses,
        step_seconds=step_seconds,
        planned_step=speed.step,
        scored=(len(asked), len(work.task.probes)),
        score_seconds=score_seconds,
        build_seconds=build_seconds,
        peak=peak,
        plan=plan,
    )


def _fingerprints(pack: GradientPack) -> list[tuple[float, float]]:
    """Two sums of each trained matrix, to detect changes; copies would count towards the peak."""
    return [(matrix.sum().item(), matrix.norm().item()) for matrix in pack.adapters.matrices(0).values()]
