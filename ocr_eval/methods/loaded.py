"""A saved PEFT adapter put over a base, unmerged and frozen.

A plain LoRA is read through the very code that trains; any other kind through PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file

from ocr_eval.common.errors import UserError
from ocr_eval.methods.adapters import Adapters, LaneShape
from ocr_eval.methods.peft_files import PREFIX, WEIGHTS, read_adapter_file
from ocr_eval.methods.trained import foreign_adapter
from ocr_eval.methods.view import View
from ocr_eval.models.base import Base


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
    """Put a saved PEFT adapter over the base.

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
    for each in adapters.factors(0):
        each.a.copy_(saved[f"{PREFIX}{each.module}.lora_A.weight"])
        each.b.copy_(saved[f"{PREFIX}{each.module}.lora_B.weight"].t())
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
