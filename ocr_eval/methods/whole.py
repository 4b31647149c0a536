"""All parameters of a network, trained by one run: the counterpart of ``Adapters`` for full fine-tuning.

The network holds fp32 masters, and autocast brings them to the precision of the arithmetic. In bf16 alone a step of
the published rates (1e-6 to 3e-5) would be below half a unit in the last place of most weights, and be lost.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ocr_eval.common.errors import RunFailed
from ocr_eval.common.files import replacing_folder
from ocr_eval.methods.changes import Dense, Rewrite
from ocr_eval.methods.trainable import Trainable
from ocr_eval.models.architecture import linear_modules
from ocr_eval.models.base import Base
from ocr_eval.models.loading import quiet_transformers
from ocr_eval.models.weights import folder_digest, read_tensor
from ocr_eval.specs.model import ModelSpec


class WholeNetwork(Trainable):
    """One run's network, trained in all its parameters; no other run can use it afterwards."""

    def __init__(self, base: Base) -> None:
        self._network: PreTrainedModel = base.network
        self._tokenizer: Any = base.tokenizer
        self._original = partial(read_tensor, base.files.path)
        self._network.requires_grad_(True)

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """Every parameter by name, tied ones once."""
        return dict(self._network.named_parameters())

    def gradients(self) -> list[torch.Tensor]:
        found = []
        for parameter in self._network.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(parameter.grad)
        return found

    def zero_grad(self) -> None:
        self._network.zero_grad(set_to_none=True)

    def select(self, lanes: Sequence[int] | None) -> None:
        """Raises RunFailed if the bare base is requested, because its weights have changed."""
        if lanes is None:
            raise RunFailed("Full fine-tuning leaves no untouched base.")

    def unmount(self) -> None:
        """Stop learning; the weights keep what was learned."""
        self._network.requires_grad_(False)

    def changes(self, lane: int) -> Iterator[Dense]:
        """The change of each linear module's matrix from the weights on disk, one at a time."""
        for name in linear_modules(self._network):
            yield Dense(name, partial(self._change, f"{name}.weight"))

    def rewrite(self, lane: int, f: Rewrite) -> None:
        for name, parameter in self.matrices(lane).items():
            change = self._change(name)
            parameter.add_(f(name, change) - change)

    def _change(self, name: str) -> torch.Tensor:
        after = self._network.get_parameter(name).detach()
        return after.float() - self._original(name).to(after.device, torch.float32)

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write model and tokenizer in Hugging Face layout as ``model/``, in fp32 as trained, atomically."""
        self._network.config._name_or_path = ""
        with quiet_transformers(), replacing_folder(folder / "model") as incomplete:
            self._network.save_pretrained(incomplete)
            self._tokenizer.save_pretrained(incomplete)
        return folder_digest(folder / "model")
