"""All parameters of a network, trained by one run: the counterpart of ``Adapters`` for full fine-tuning.

The network holds fp32 masters, and autocast brings them to the precision of the arithmetic. In bf16 alone a step of
the published rates (1e-6 to 3e-5) would be below half a unit in the last place of most weights, and lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ocr_eval.common.files import replacing_folder
from ocr_eval.models.base import Base, require_bitsandbytes
from ocr_eval.models.quiet import quiet_transformers
from ocr_eval.specs.model import TrainSpec


class WholeNetwork:
    """One run's network, trained in all its parameters; it is of no use to another run afterwards."""

    def __init__(self, base: Base) -> None:
        self._network: PreTrainedModel = base.network
        self._tokenizer: Any = base.tokenizer
        self._network.requires_grad_(True)

    @property
    def modules(self) -> list[str]:
        """Names of the trained parameters."""
        return list(self.parameters(0))

    def parameters(self, lane: int) -> dict[str, torch.nn.Parameter]:
        """Every parameter by its name, tied ones once."""
        return dict(self._network.named_parameters())

    def matrices(self, lane: int) -> dict[str, torch.Tensor]:
        """Every trained tensor by name."""
        return {name: parameter.detach() for name, parameter in self.parameters(lane).items()}

    def silent(self, lane: int) -> list[str]:
        """Parameters that no gradient of the last pass reached; empty when all learn."""
        return [name for name, p in self.parameters(lane).items() if p.grad is None or not bool(p.grad.any())]

    def gradients(self) -> list[torch.Tensor]:
        """The gradient of every parameter; zero where the last pass had nothing for it."""
        found = []
        for parameter in self._network.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(parameter.grad)
        return found

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._network.zero_grad(set_to_none=True)

    def refresh(self) -> None:
        """The masters are what computes."""

    @contextmanager
    def window(self, lanes: Sequence[int]) -> Iterator[None]:
        """There is one lane."""
        yield

    def unmount(self) -> None:
        """Stop learning; the weights stay as they were learned."""
        self._network.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face layout, in fp32 as trained, whole or not at all."""
        self._network.config._name_or_path = ""
        with quiet_transformers(), replacing_folder(folder) as partial:
            self._network.save_pretrained(partial)
            self._tokenizer.save_pretrained(partial)


def adam(parameters: Sequence[torch.nn.Parameter], train: TrainSpec, device: torch.device) -> torch.optim.Optimizer:
    """AdamW: with 8-bit moments where bitsandbytes has it (CUDA), else fp32."""
    if device.type == "cuda":
        require_bitsandbytes("--method full on a GPU")
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    return torch.optim.AdamW(parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True)
