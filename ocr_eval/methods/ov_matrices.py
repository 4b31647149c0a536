"""A dense change of each attention head's value-output matrix, for K runs side by side: what ``merged-ov`` trains.

At position n, head h reads r_h = sum_m A^h_nm x_m, where A^h are its attention weights and x is the layer's input, as
the value projection sees it. The layer's attention then writes sum_h dW_h r_h in addition: one linear map of what all
heads read. It is mounted as a module below ``self_attn``, and computed by grouped attention over the head's own values
concatenated with x. Without lanes the layer is the base's.

Dimension letters:  K lanes,  N nodes per lane,  H query heads,  V key-value heads,  D width of the residual stream,
X = H D.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes, replacing_folder
from ocr_eval.methods.changes import Dense, Rewrite
from ocr_eval.methods.peft_files import CONFIG, WEIGHTS, base_name
from ocr_eval.methods.trainable import Leaves, index_of
from ocr_eval.models.base import has_plain_attention
from ocr_eval.models.grouped_attention import grouped_attention
from ocr_eval.models.weights import file_sha256
from ocr_eval.specs.model import ModelSpec

#: Names of the attention of a layer with matrices, of the module with them, and of their type in files (as in PEFT's).
_ATTENTION, MODULE, TYPE = "merged_ov", "merged_ov", "MERGED_OV"
_LAYER = re.compile(r".*\.layers\.(\d+)\.self_attn")


class HeadMatrices(torch.nn.Module):
    """The matrices of one layer, mounted in it until ``unmount``.

    Attributes:
        weight: dW_h of each lane, transposed, head after head. [K, X, D]
        lanes: the lanes of its input's rows; None for the bare base.
    """

    def __init__(self, attention: Any, lanes: int) -> None:
        super().__init__()
        text, device = attention.config.get_text_config(), next(attention.parameters()).device
        size = (lanes, text.num_attention_heads * text.hidden_size, text.hidden_size)
        self.weight = torch.zeros(size, device=device, requires_grad=True)
        self._of = (attention,)  # in a tuple, so that torch does not register it as a child
        self._bare, self._config = attention.config, copy.copy(attention.config)
        self._config._attn_implementation = _ATTENTION
        self._input: Tensor | None = None
        self._read: Tensor | None = None
        self._hooks = [
            attention.register_forward_pre_hook(self._take, with_kwargs=True),
            attention.register_forward_hook(self._add),
        ]
        attention.add_module(MODULE, self)
        self.select(slice(0, lanes))

    def select(self, lanes: slice | list[int] | None) -> None:
        """From now on row i goes through the matrices of the i-th lane; for None only through the base."""
        self.lanes = lanes
        self._of[0].config = self._bare if lanes is None else self._config

    def unmount(self) -> None:
        """Restore the layer."""
        self.select(None)
        for hook in self._hooks:
            hook.remove()
        delattr(self._of[0], MODULE)

    def forward(self, read_KNX: Tensor) -> Tensor:
        """What the matrices write for what the heads read. [K, N, D]"""
        return torch.bmm(read_KNX, self.weight[self.lanes].to(read_KNX.dtype))

    def attend(self, attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **how: Any) -> Any:
        """The layer's own attention output; what the heads read of x is stored for ``_add``."""
        assert self._input is not None
        x_KVND = self._input[:, None].expand(-1, key.shape[1], -1, -1)
        read, _ = grouped_attention(attention, query, key, torch.cat([value, x_KVND], dim=-1), mask, **how)
        own, read_KNHD = read.split([value.shape[-1], x_KVND.shape[-1]], dim=-1)
        self._read = read_KNHD.flatten(2)
        return own, None

    def _take(self, attention: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._read, self._input = None, named["hidden_states"] if "hidden_states" in named else inputs[0]

    def _add(self, attention: Any, inputs: Any, output: Any) -> Any:
        read, self._read, self._input = self._read, None, None
        return output if read is None else (output[0] + self(read), *output[1:])


def _attend(module: Any, *tensors: Any, **how: Any) -> Any:
    return module.get_submodule(MODULE).attend(module, *tensors, **how)


AttentionInterface.register(_ATTENTION, _attend)


class OVMatrices(Leaves):
    """The matrices of K lanes over some layers, from 0, mounted in a network until ``unmount``.

    Raises:
        UserError: the network lacks one, or its attention takes more than queries, keys, values and a mask.
    """

    def __init__(self, network: torch.nn.Module, layers: Sequence[int], lanes: int) -> None:
        assert isinstance(network, PreTrainedModel)
        found = {int(m[1]): (m[0], module) for name, module in network.named_modules() if (m := _LAYER.fullmatch(name))}
        if not found or not has_plain_attention(network.config):
            raise UserError("The model's layers have no plain 'self_attn', which this method needs. Use another model.")
        if missing := [layer for layer in layers if layer not in found]:
            raise UserError(f"The model has no layer {missing[0]}. Name layers from 0 to {max(found)}.")
        self._layers = {f"{found[each][0]}.{MODULE}": HeadMatrices(found[each][1], lanes) for each in layers}
        super().__init__({name: layer.weight for name, layer in self._layers.items()})

    def rewrite(self, lane: int, f: Rewrite) -> None:
        """Replace the matrices dW of each layer, [D, X], by f(module, dW)."""
        for name, matrix in self.matrices(lane).items():
            matrix.copy_(f(name, matrix.T).T)

    def changes(self, lane: int) -> Iterator[Dense]:
        """The matrices of each layer, side by side as one. [D, X]"""
        for name, matrix in self.matrices(lane).items():
            yield Dense(name, partial(torch.t, matrix))

    def select(self, lanes: Sequence[int] | None) -> None:
        for layer in self._layers.values():
            layer.select(None if lanes is None else index_of(lanes))

    def unmount(self) -> None:
        for layer in self._layers.values():
            layer.unmount()

    def save(self, lane: int, folder: Path, model: ModelSpec) -> str:
        """Write a lane's matrices, [H, D, D] per layer, as ``adapter/``; returns the sha256 of their file.

        The files have PEFT's names, but PEFT has no such type and rejects them.
        """
        files = {
            f"{name}.weight": matrix.unflatten(0, (-1, matrix.shape[1])).cpu().contiguous()
            for name, matrix in self.matrices(lane).items()
        }
        with replacing_folder(folder / "adapter") as partial_folder:
            (partial_folder / CONFIG).write_bytes(msgspec.json.encode(_Config(TYPE, base_name(model))))
            save_file(files, partial_folder / WEIGHTS)
        return file_sha256(folder / "adapter" / WEIGHTS)


class _Config(msgspec.Struct):
    peft_type: str
    base_model_name_or_path: str


def matrices_over(folder: Path) -> str | None:
    """The name of the base in a folder of saved matrices; None if the folder has something else."""
    try:
        config = msgspec.json.decode(read_bytes(folder / CONFIG), type=_Config)
    except (OSError, UserError, msgspec.DecodeError, RecursionError):
        return None
    return config.base_model_name_or_path if config.peft_type == TYPE else None


def load_matrices(network: torch.nn.Module, folder: Path) -> OVMatrices:
    """Mount saved matrices; UserError if they cannot be read, are not finite, or are another network's."""
    try:
        saved = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its {WEIGHTS} cannot be read: {error}.") from error
    numbers = [re.search(r"\.layers\.(\d+)\.", name) for name in saved]
    if not saved:
        raise UserError(f"{folder}: its {WEIGHTS} contains no matrices. Is it the right folder?")
    if not all(bool(each.isfinite().all()) for each in saved.values()):
        raise UserError(f"{folder}: its matrices contain NaN or infinite values, so its training diverged.")
    matrices = OVMatrices(network, sorted(int(found[1]) for found in numbers if found), lanes=1)
    expected = {f"{name}.weight": matrix for name, matrix in matrices.matrices(0).items()}
    for name in sorted({*saved, *expected}):
        if name not in expected or name not in saved or saved[name].flatten(0, -2).shape != expected[name].shape:
            matrices.unmount()
            raise UserError(f"{folder}: the model has no place for {name}. Name its base with --model.")
        expected[name].copy_(saved[name].flatten(0, -2))
    return matrices
