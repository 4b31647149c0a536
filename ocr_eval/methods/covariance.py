"""C = E[k k^T], the second moment of the inputs of a layer's down projection while the base reads a text.

Cached under a digest of weights, precision, attention, type of device, text and module.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes, write_atomic
from ocr_eval.data.tokenize import Ids, encode, windows
from ocr_eval.methods.texts import text_file
from ocr_eval.models.base import Base
from ocr_eval.models.weights import cache_folder
from ocr_eval.packing.batch import lay_out
from ocr_eval.packing.forest import Forest, Reads

#: Tokens that the base reads at a time, and in total at most.
_WINDOW, _MOST = 256, 65_536


def inputs_of(network: torch.nn.Module, modules: Sequence[str]) -> int:
    """Inputs of the widest of some linear modules."""
    return max(network.get_submodule(module).get_parameter("weight").shape[1] for module in modules)


class _Enough(Exception):
    """Ends a forward pass after the last module that is needed."""


def covariances(base: Base, modules: Sequence[str], text: str) -> dict[str, Tensor]:
    """C of each module's inputs, fp64 [I, I]; raises UserError if the text is missing, or too short for full rank."""
    path, digest = text_file(text)
    files = {}
    for module in modules:
        key = f"{base.identity} {base.spec.dtype} {base.spec.attention} {base.device.type} {digest} {module} v2"
        files[module] = cache_folder() / "covariance" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    missing = [module for module in modules if not files[module].is_file()]
    if missing:
        for module, moment in _measure(base, missing, path).items():
            files[module].parent.mkdir(parents=True, exist_ok=True)
            write_atomic(files[module], save({"moment": moment.float().contiguous()}))
    return {module: load_file(files[module])["moment"].double() for module in modules}


def read_text(tokenizer: Any, path: Path, name: str, width: int) -> Ids:
    """The tokens of a text; raises UserError if they are fewer than ``width``, the inputs of model ``name``."""
    (ids,) = encode(tokenizer, [read_bytes(path).decode("utf-8", errors="replace")])
    ids = ids[:_MOST]
    if len(ids) < width:
        raise UserError(
            f"{path}: it has {len(ids):,} tokens, but a covariance for {name} needs {width:,} or more. "
            "Name a longer prose text: --method ...:text=FILE."
        )
    return ids


@torch.no_grad()
def _measure(base: Base, modules: Sequence[str], path: Path) -> dict[str, Tensor]:
    ids = read_text(base.tokenizer, path, base.spec.name, inputs_of(base.network, modules))
    sums: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for module in modules:

            def take(layer: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = module) -> None:
                k_NI = inputs[0].detach().flatten(0, -2).cpu().double()
                sums[name] = sums[name] + k_NI.T @ k_NI if name in sums else k_NI.T @ k_NI
                if name == modules[-1]:
                    raise _Enough

            hooks.enter_context(base.network.get_submodule(module).register_forward_pre_hook(take))
        pieces = windows(ids, base.tokenizer.bos_token_id, _WINDOW)
        for piece in pieces:
            window = Forest()
            end = window.add(piece)[-1]
            batch = lay_out([(window, Reads([end], [0], [0]))], by_clump=False)
            with suppress(_Enough):
                base.network(**batch.inputs(base.device, base.dtype), use_cache=False)
    for module, total in sums.items():
        values, width = torch.linalg.eigvalsh(total), len(total)
        rank = int((values > values[-1] * width * torch.finfo(torch.float64).eps).sum())
        if rank < width:
            raise UserError(
                f"{path}: its {len(ids):,} tokens give a covariance of rank {rank:,}, but {base.spec.name} needs "
                f"{width:,}. Name a longer prose text: --method ...:text=FILE."
            )
        sums[module] = total / sum(map(len, pieces))
    return sums
