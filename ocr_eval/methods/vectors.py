"""A constant vector for each of K runs, added to the output of one module: what ``steering`` trains.

Dimension letters:  K lanes,  N nodes per lane,  O outputs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocr_eval.methods.peft_files import write_bias
from ocr_eval.methods.trainable import Leaves
from ocr_eval.models.architecture import linear_modules
from ocr_eval.specs.model import ModelSpec


class Vectors(Leaves):
    """The vectors of K lanes over one linear module, hooked into a network until ``unmount``."""

    def __init__(self, network: torch.nn.Module, module: str, lanes: int, scale: float) -> None:
        self._module, self._scale = module, scale
        linear = linear_modules(network)[module]
        self._vectors_KO = torch.zeros(lanes, linear.out_features, device=linear.weight.device, requires_grad=True)
        super().__init__({"vector": self._vectors_KO})
        self._inputs = linear.in_features
        self._lanes: Sequence[int] | None = range(lanes)
        self._hook = linear.register_forward_hook(self._add)

    def _add(self, module: torch.nn.Module, inputs: Any, y_KNO: Tensor) -> Tensor:
        if self._lanes is None:
            return y_KNO
        vectors_KO = self._scale * self._vectors_KO[list(self._lanes)]
        return y_KNO + vectors_KO.to(y_KNO.dtype)[:, None]

    def select(self, lanes: Sequence[int] | None) -> None:
        self._lanes = lanes

    def unmount(self) -> None:
        self._hook.remove()

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write a lane's vector as a PEFT adapter with only a bias, ``adapter/``; returns the sha256 of its file."""
        vector_O = self._scale * self._vectors_KO.detach()[lane]
        return write_bias(folder / "adapter", self._module, self._inputs, vector_O, model)
