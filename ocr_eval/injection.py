"""What belongs to one run alone: its adapter over the shared base, its optimizer and its training state.

``Base`` (models.py) is what runs share and never change. An ``Injection`` is what one of them owns; no
tensor of it is seen by another run, so several injections over one base train as they would alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save

from ocr_eval import draw
from ocr_eval.errors import RunFailed, UserError
from ocr_eval.models import Base
from ocr_eval.specs import HubWeights, RunSpec, TrainSpec
from ocr_eval.tokens import Continuation


@dataclass
class Injection:
    """One run in training.

    Attributes:
        train: how it learns.
        order: name of the random stream of its batches.
        examples: what it learns.
        network: the base seen through this run's adapter.
        parameters: the adapter's tensors by name; fp32 masters, the only trainable ones.
        optimizer: AdamW over them.
        epochs_done: finished epochs.
    """

    train: TrainSpec
    order: str
    examples: Sequence[Continuation]
    network: PeftModel
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.AdamW
    epochs_done: int = 0

    def batches(self) -> list[list[Continuation]]:
        """The batches of the coming epoch; depends on the run's order stream and the epoch only."""
        order = draw.permutation(f"{self.order}/epoch-{self.epochs_done + 1}", len(self.examples))
        size = self.train.batch_size
        return [[self.examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]

    def save_adapter(self, folder: Path, spec: RunSpec) -> None:
        """Write the adapter in PEFT's own format, whole or not at all.

        The base is named by its hub repository where it has one, and else by the model's name.
        """
        partial = folder.with_name(folder.name + ".partial")
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        weights = spec.model.weights
        self.network.peft_config["default"].base_model_name_or_path = (
            weights.repo if isinstance(weights, HubWeights) else spec.model.name
        )
        self.network.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)
        partial.rename(folder)

    def checkpoint(self) -> bytes:
        """Everything needed to go on after the last finished epoch, as safetensors."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        return save(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            metadata={"epochs_done": str(self.epochs_done)},
        )

    def restore(self, checkpoint: Path) -> None:
        """Take up the state of a checkpoint; training then goes on bit for bit.

        Raises:
            RunFailed: the checkpoint is damaged or of another run.
        """
        try:
            with safe_open(checkpoint, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                epochs_done = int(file.metadata()["epochs_done"])
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(tensors[f"parameter/{name}"])
                    self.optimizer.state[parameter] = {
                        key: tensors[f"{key}/{name}"].to(parameter.device if key != "step" else "cpu")
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }
        except Exception as error:
            raise RunFailed(f"{checkpoint} cannot be used ({error}). Delete it to train from the start.") from error
        self.epochs_done = epochs_done


def attach(base: Base, spec: RunSpec, examples: Sequence[Continuation]) -> Injection:
    """Put a fresh adapter over the base; it changes nothing until it is trained (B = 0).

    The adapter's A matrices come from the run's own initialization stream. ``detach`` removes it again.

    Raises:
        UserError: a target module that the model does not have.
    """
    train = spec.train
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=train.rank,
        lora_alpha=train.alpha,
        lora_dropout=0.0,
        target_modules=train.targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.integer(spec.stream("initialization")))
        try:
            network = get_peft_model(base.network, config)
        except ValueError as error:
            raise UserError(
                f"{spec.model.name}: {str(error).splitlines()[0]} Correct 'targets' in the model's YAML."
            ) from error
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=train.lr, weight_decay=0.0, fused=True)
    return Injection(train, spec.stream("order"), examples, network, parameters, optimizer)


def detach(network: PeftModel) -> None:
    """Take the adapter off the base, which is then as it was before."""
    network.unload()


def load_adapter(base: Base, folder: Path) -> PeftModel:
    """Put a saved PEFT adapter over the base, unmerged and frozen.

    Raises:
        UserError: no adapter there, one of another model (missing or unexpected tensors), or one that
            was never trained (every B is zero).
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no adapter (adapter_config.json). Give a PEFT folder or a run's folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing and unexpected tensors are errors below
            network = PeftModel.from_pretrained(base.network, str(folder), is_trainable=False)
        saved = _adapter_tensor_names(folder)
    except Exception as error:
        raise UserError(
            f"{folder}: the adapter does not load over {base.spec.name}: {str(error).splitlines()[0]}"
        ) from error
    loaded = {name.replace(".default.", "."): p for name, p in network.named_parameters() if "lora_" in name}
    if set(loaded) != saved:
        detach(network)
        raise UserError(
            f"{folder}: its tensors are not those of an adapter over {base.spec.name}. Name its base with --model."
        )
    if not any(bool(p.any()) for name, p in loaded.items() if "lora_B" in name):
        detach(network)
        raise UserError(f"{folder}: every B matrix is zero, so this adapter was never trained.")
    return network


def _adapter_tensor_names(folder: Path) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return set(file.keys())


def gradient_faults(parameters: dict[str, torch.nn.Parameter]) -> list[str]:
    """Names of trainable tensors that no gradient reached; empty when all learn.

    At the first step B is zero, so every A has a zero gradient; it must exist all the same.
    """

    def silent(name: str, gradient: Any) -> bool:
        return gradient is None or ("lora_B" in name and not bool(gradient.any()))

    return [name for name, parameter in parameters.items() if silent(name, parameter.grad)]
