"""What a run would do and need, from its spec and the model's configuration; nothing is trained or written."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import duration
from ocr_eval.models import weights
from ocr_eval.models.architecture import Architecture, examine
from ocr_eval.models.base import make_accelerator
from ocr_eval.models.precision import Choice, choose_for
from ocr_eval.planning import memory, timing, workload
from ocr_eval.planning.memory import MemoryPlan
from ocr_eval.planning.timing import Speed
from ocr_eval.planning.workload import Workload
from ocr_eval.records.config import config_yaml
from ocr_eval.specs import schedule
from ocr_eval.specs.model import Device, FolderWeights, HubWeights, ModelSpec, PackageWeights, Precision
from ocr_eval.specs.run import RunSpec

#: Common GPUs and their memory in bytes.
_GPUS = {"RTX 4090 24 GB": 24e9, "A100 40 GB": 40e9, "L40S 48 GB": 48e9, "H100 80 GB": 80e9, "H200 141 GB": 141e9}


@dataclass(frozen=True)
class Plan:
    """What a run is expected to need.

    Attributes:
        output: where it would be written; None for a scoring.
        available: bytes of memory that are free on the device.
        speed: seconds per step and per scored node on the device.
        alternatives: flags that would make it fit, each with its peak memory; empty if it fits.
        precision: the precision that it computes in, and why.
    """

    spec: RunSpec
    output: Path | None
    sizes: Architecture
    work: Workload
    device: torch.device
    available: int
    memory: MemoryPlan
    speed: Speed
    alternatives: list[tuple[str, MemoryPlan]]
    precision: Choice

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough."""
        return self.memory.fits(self.available)

    @property
    def seconds(self) -> float:
        """Seconds for the whole run, or for the scoring, without fetching and loading weights."""
        return self.speed.scoring(self.work) if self.output is None else self.speed.run(self.work)

    def as_text(self) -> str:
        """The plan as comments, then the resolved spec as YAML."""
        spec, work = self.spec, self.work
        probes, here = work.task.probes, weights.cached(spec.model)
        lines = [
            f"model:    {spec.model.name}, {self.sizes.kind}, {self.sizes.parameters / 1e9:.2f} B parameters",
            f"source:   {_source(spec.model)}",
            f"licence:  {spec.model.license}",
            f"weights:  {here or f'not on this disk, about {_gb(self.sizes.stored)} would be fetched'}",
            f"subjects: {len({p.subject for p in probes})} in {len({p.unit for p in probes})} groups",
        ]
        scorings, each = "once", ""
        if self.output is not None:
            scorings = f"at each of at most {work.scorings} scorings"
            each = f": {duration(self.speed.step)} per step and {duration(self.speed.scoring(work))} per scoring"
            kind = memory.optimizer_kind(spec.train, self.device.type)
            trainable = memory.trainable(spec.model, spec.train)
            lines += [
                f"method:   {spec.train.method}, {trainable:,} trainable parameters "
                f"({trainable / self.sizes.parameters:.2%}), {kind}{memory.note(spec.train)}",
                f"training: {len(work.task.train)} statements, {spec.train.epochs} epochs, {work.steps} steps",
                f"tokens:   {work.tokens:,} per epoch, in {work.nodes:,} nodes, at most {work.training.nodes} per batch"
                + ("" if work.real_tokenizer else " (counted with a stand-in: the tokenizer is not on this disk)"),
                f"output:   {self.output}/runs/{spec.model.name}/{spec.association.name}/{spec.train.method_name}/",
            ]
        when = self.memory.as_json()["while"]
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in self.memory.parts().items() if size)
        lines += [
            f"probes:   {len(probes)} {scorings}",
            f"device:   {self.device.type}; {_gb(self.available)} of memory free",
            f"dtype:    {spec.model.dtype} ({self.precision.reason}){timing.faster_note(spec.model, self.device)}",
            f"memory:   {_gb(self.memory.total)} at the peak, in {when}: {parts}",
            f"time:     about {duration(self.seconds)}{each}, from the speed of this device's matrix products",
        ]
        if not self.fits:
            lines += self._refusal()
        return "".join(f"# {line}\n" for line in lines) + config_yaml(spec)

    def _refusal(self) -> list[str]:
        lines = [f"fits:     NO: {_gb(self.memory.total)} are needed, but {_gb(self.available)} are free"]
        lines += [f"would:    {flags} needs {_gb(plan.total)}" for flags, plan in self.alternatives]
        needed = self.memory.total - self.memory.process
        gpu = next((name for name, size in _GPUS.items() if needed <= memory.USABLE * size), None)
        return [*lines, f"would:    a GPU such as {gpu}"] if gpu and self.device.type != "cuda" else lines

    def as_json(self) -> dict[str, Any]:
        """A plain object; bytes and seconds."""
        hub = self.spec.model.weights if isinstance(self.spec.model.weights, HubWeights) else None
        return {
            "model": self.spec.model.name,
            "parameters": self.sizes.parameters,
            "repository": hub and hub.repo,
            "revision": hub and hub.revision,
            "license": self.spec.model.license,
            "gated": hub.gated if hub else False,
            "on_disk": weights.cached(self.spec.model) is not None,
            "download_bytes": self.sizes.stored,
            "method": self.spec.train.method,
            "trainable_parameters": memory.trainable(self.spec.model, self.spec.train),
            "device": self.device.type,
            "dtype": self.spec.model.dtype,
            "dtype_reason": self.precision.reason,
            "statements": len(self.work.task.train),
            "tokens": self.work.tokens,
            "nodes": self.work.nodes,
            "real_tokenizer": self.work.real_tokenizer,
            "steps": self.work.steps,
            "memory": self.memory.as_json(),
            "memory_available": self.available,
            "fits": self.fits,
            "alternatives": {flags: plan.total for flags, plan in self.alternatives},
            "seconds": {"step": self.speed.step, "scoring": self.speed.scoring(self.work), "run": self.seconds},
            "config": self.spec.model_dump(mode="json"),
        }


def make_plan(
    spec: RunSpec,
    output: Path | None,
    device: Device = "auto",
    score_at: str = schedule.DEFAULT,
    begun_in: Precision | None = None,
) -> Plan:
    """Plan a run that is scored by the schedule ``score_at``; with ``output`` None, plan only a scoring.

    ``begun_in`` is the precision of a run that has already started.

    Raises:
        UserError: the device or the model's configuration is not available.
    """
    place = make_accelerator(device).device
    chosen = _chosen(spec.model, place.type, begun_in)
    spec = spec.in_precision(chosen.dtype)
    sizes, work, free = examine(spec.model), workload.measure(spec, score_at=score_at), memory.available(place)
    passes = work.passes(place.type)
    plan = memory.estimate(spec.model, spec.train, *passes, place.type)
    if place.type == "cuda" and not plan.fits(free):  # a model too large for one GPU is spread over all
        free = sum(memory.available(torch.device("cuda", i)) for i in range(torch.cuda.device_count()))
    return Plan(
        spec=spec,
        output=output,
        sizes=sizes,
        work=work,
        device=place,
        available=free,
        memory=plan,
        speed=timing.calibrate(spec.model, sizes, spec.train, *passes, place),
        alternatives=[] if plan.fits(free) else memory.alternatives(spec.model, spec.train, *passes, place.type, free),
        precision=chosen,
    )


def _chosen(model: ModelSpec, device: str, begun_in: Precision | None) -> Choice:
    """The precision of a run and why; a run that has started keeps its own, even if the device would choose another."""
    if begun_in is None or model.dtype != "auto":
        return choose_for(model, device)
    with suppress(UserError):
        chosen = choose_for(model, device)
        if chosen.dtype == begun_in:
            return chosen
    return Choice(begun_in, "as the run began")


def _source(model: ModelSpec) -> str:
    """Where a model's weights come from, and who may download them."""
    if isinstance(model.weights, HubWeights):
        access = {True: "gated", False: "open", None: "access unknown"}[model.weights.gated]
        return f"{model.weights.repo} at {model.weights.revision}; {access}: {model.weights.access}"
    if isinstance(model.weights, PackageWeights):
        return "packages " + " ".join(part.package for part in model.weights.parts)
    return model.weights.path if isinstance(model.weights, FolderWeights) else model.weights.url


def _gb(size: int | float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e9:.2f} GB"
