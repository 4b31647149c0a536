"""What runs share and what belongs to one of them: a ``Pack`` of ``Injection``s over one base.

A pack is several runs training together, a lane each; one run alone is a pack of one. The base (models/base.py) is
shared and never changes. An injection is one run's share: its adapter, its optimizer and its place in its data.
No tensor of it is seen by another run, so runs in a pack learn what they would learn alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from ocr_eval.common import streams
from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.files import replacing_folder
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.checkpoint import read_state, write_state
from ocr_eval.methods.full import WholeNetwork, adam
from ocr_eval.methods.lora import Adapters, LaneShape
from ocr_eval.methods.peft_files import PREFIX, WEIGHTS, read_adapter_file
from ocr_eval.methods.trained import foreign_adapter
from ocr_eval.methods.view import Cut, View
from ocr_eval.models.base import Base
from ocr_eval.models.weights import file_sha256, folder_digest
from ocr_eval.specs.model import HubWeights, TrainSpec
from ocr_eval.specs.run import RunSpec


def batches_of_epoch(
    examples: Sequence[Continuation], order: str, epoch: int, batch_size: int
) -> list[list[Continuation]]:
    """The batches of an epoch, counted from 1; they depend on the run's order stream and the epoch only."""
    shuffled = [examples[i] for i in streams.permutation(f"{order}/epoch-{epoch}", len(examples))]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]


@dataclass
class Injection:
    """One run in training.

    Attributes:
        train: how it learns.
        order: name of the random stream of its batches.
        examples: what it learns.
        parameters: its trainable tensors by name, fp32, each with its gradient.
        optimizer: AdamW over them.
        epochs_done: finished epochs.
    """

    train: TrainSpec
    order: str
    examples: Sequence[Continuation]
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0

    def batches(self) -> list[list[Continuation]]:
        """The batches of the coming epoch."""
        return batches_of_epoch(self.examples, self.order, self.epochs_done + 1, self.train.batch_size)

    def write_checkpoint(self, file: IO[bytes]) -> None:
        """Write everything needed to go on after the last finished epoch, as safetensors."""
        write_state(file, self.parameters, self.optimizer, self.epochs_done)

    def restore(self, checkpoint: Path) -> None:
        """Take up the state of a checkpoint; training then goes on bit for bit.

        Raises:
            RunFailed: the checkpoint is damaged or of another run.
        """
        try:
            self.epochs_done = read_state(checkpoint, self.parameters, self.optimizer)
        except Exception as error:
            raise RunFailed(f"{checkpoint} cannot be used ({error}). Delete it to train from the start.") from error


@dataclass(frozen=True)
class Pack:
    """Runs that train together over one base, a lane each.

    Attributes:
        base: the base.
        adapters: what they learn, mounted in the base's network until ``detach``: adapters, or all its parameters.
        injections: the runs; a run's place is its lane.
        cut: into what passes are cut.
    """

    base: Base
    adapters: Adapters | WholeNetwork
    injections: tuple[Injection, ...]
    cut: Cut = field(default_factory=Cut)

    @property
    def view(self) -> View:
        """The base seen through the adapters."""
        return View(self.base, self.base.network, self.adapters, self.base.whole, self.cut)

    def detach(self) -> None:
        """Take the adapters off the base, which is then as it was before, unless all of it was trained."""
        self.adapters.unmount()

    def save(self, lane: int, folder: Path) -> str:
        """Write what a run learned, as ``adapter`` or ``model`` in its folder; the sha256 of the weights."""
        if isinstance(self.adapters, WholeNetwork):
            self.adapters.save(folder / "model")
            return folder_digest(folder / "model")
        self.save_adapter(lane, folder / "adapter")
        return file_sha256(folder / "adapter" / "adapter_model.safetensors")

    def save_adapter(self, lane: int, folder: Path) -> None:
        """Write a run's adapter in PEFT's own format, whole or not at all.

        The base is named by its hub repository where it has one, and else by the model's name.
        """
        assert isinstance(self.adapters, Adapters)
        model, train, tensors = self.base.spec, self.injections[lane].train, self.adapters.tensors(lane)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=train.rank,
            lora_alpha=train.alpha,
            lora_dropout=0.0,
            target_modules=sorted({name.rpartition(".")[2] for name in tensors}),
            base_model_name_or_path=model.weights.repo if isinstance(model.weights, HubWeights) else model.name,
            inference_mode=True,
        )
        files = {}
        for name, (a, b) in tensors.items():
            files[f"{PREFIX}{name}.lora_A.weight"] = a.cpu().contiguous()
            files[f"{PREFIX}{name}.lora_B.weight"] = b.t().cpu().contiguous()
        with replacing_folder(folder) as partial:
            config.save_pretrained(partial)
            save_file(files, partial / "adapter_model.safetensors", metadata={"format": "pt"})


def attach(base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> Pack:
    """Put fresh adapters over the base, one a run; they change nothing until they are trained (B = 0).

    Each adapter's A matrices come from its run's own initialization stream.

    Args:
        base: the base.
        specs: the runs; they agree in what they adapt (``targets``).
        examples: what each run learns.

    Raises:
        UserError: a target module that the model does not have.
    """
    if base.whole:
        (spec,) = specs
        network = WholeNetwork(base)
        parameters = network.parameters(0)
        optimizer = adam(list(parameters.values()), spec.train, base.device)
        return Pack(base, network, (Injection(spec.train, spec.stream("order"), examples[0], parameters, optimizer),))
    adapters = _mount(base, specs[0].train.targets, [LaneShape(spec.train.rank, spec.train.alpha) for spec in specs])
    injections = []
    for lane, (spec, learns) in enumerate(zip(specs, examples, strict=True)):
        adapters.initialize(lane, streams.integer(spec.stream("initialization")))
        parameters = adapters.parameters(lane)
        optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=spec.train.lr,
            betas=spec.train.betas,
            weight_decay=spec.train.weight_decay,
            fused=True,
        )
        injections.append(Injection(spec.train, spec.stream("order"), learns, parameters, optimizer))
    return Pack(base, adapters, tuple(injections))


def _mount(base: Base, targets: str | Sequence[str], shapes: Sequence[LaneShape]) -> Adapters:
    try:
        return Adapters(base.network, targets, shapes, base.dtype)
    except UserError as error:
        raise UserError(f"{base.spec.name}: {error}") from error


@dataclass(frozen=True)
class Loaded:
    """A saved adapter over a base, unmerged and frozen."""

    view: View
    _mounted: Adapters | PeftModel

    def detach(self) -> None:
        """Take it off the base again."""
        if isinstance(self._mounted, Adapters):
            self._mounted.unmount()
        else:
            self._mounted.unload()


def load_adapter(base: Base, folder: Path) -> Loaded:
    """Put a saved PEFT adapter over the base, unmerged and frozen.

    A plain LoRA is read through the very code that trains; any other kind through PEFT.

    Raises:
        UserError: no adapter there, one of another model (missing or unexpected tensors), or one that
            was never trained (every B is zero).
    """
    file = read_adapter_file(folder)
    saved = load_file(folder / WEIGHTS)
    if not any(bool(tensor.any()) for name, tensor in saved.items() if "lora_B" in name):
        raise UserError(f"{folder}: every B matrix is zero, so this adapter was never trained.")
    if not all(bool(tensor.isfinite().all()) for tensor in saved.values()):
        raise UserError(f"{folder}: it holds numbers that are NaN or infinite; its training diverged.")
    if not file.is_plain:
        return _load_through_peft(base, folder, set(saved))
    reason = file.mismatch(base.network)
    if reason:
        raise foreign_adapter(folder, base.spec, reason)
    shape = LaneShape(file.config.r, file.config.lora_alpha)
    try:
        adapters = Adapters(base.network, file.modules, [shape], base.dtype)
    except UserError:  # it adapts the output head too
        return _load_through_peft(base, folder, set(saved))
    for name, (a, b) in adapters.tensors(0).items():
        a.copy_(saved[f"{PREFIX}{name}.lora_A.weight"])
        b.copy_(saved[f"{PREFIX}{name}.lora_B.weight"].t())
    adapters.refresh()
    return Loaded(View(base, base.network, adapters), adapters)


def _load_through_peft(base: Base, folder: Path, saved: set[str]) -> Loaded:
    try:
        network = PeftModel.from_pretrained(base.network, str(folder), is_trainable=False)
    except Exception as error:
        raise UserError(
            f"{folder}: the adapter does not load over {base.spec.name}: {str(error).splitlines()[0]}"
        ) from error
    there = {name.replace(".default", "") for name, _ in network.named_parameters() if "lora_" in name}
    differing = {name.removesuffix(".weight") for name in there} ^ {name.removesuffix(".weight") for name in saved}
    if differing:
        network.unload()
        raise foreign_adapter(folder, base.spec, f"{min(differing)} is missing on one side")
    return Loaded(View(base, network, autocast=True), network)
