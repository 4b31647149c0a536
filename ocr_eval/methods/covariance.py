"""C = E[k k^T], the second moment of the inputs of a layer's down projection while the base reads a text.

Cached under a digest of weights, precision, attention, type of device, text and module.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes, write_atomic
from ocr_eval.data.tokenize import encode
from ocr_eval.methods.texts import text_file
from ocr_eval.models.base import Base
from ocr_eval.models.weights import cache_folder
from ocr_eval.packing.batch import lay_out
from ocr_eval.packing.forest import Forest, Reads

#: Tokens that the base reads at a time, and in total at most.
_WINDOW, _MOST = 256, 65_536


class _Enough(Exception):
    """Ends a forward pass after the last module that is needed."""


def covariances(base: Base, modules: Sequence[str], text: str) -> dict[str, Tensor]:
    """C of each module's inputs, fp64. [I, I]

    Raises:
        UserError: the text is missing, or too short for a covariance of full rank.
    """
    path, digest = text_file(text)
    files = {}
    for module in modules:
        key = f"{base.identity} {base.spec.dtype} {base.spec.attention} {base.device.type} {digest} {module}"
        files[module] = cache_folder() / "covariance" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    missing = [module for module in modules if not files[module].is_file()]
    if missing:
        for module, moment in _measure(base, missing, path).items():
            files[module].parent.mkdir(parents=True, exist_ok=True)
            write_atomic(files[module], save({"moment": moment.float().contiguous()}))
    return {module: load_file(files[module])["moment"].double() for module in modules}


@torch.no_grad()
def _measure(base: Base, modules: Sequence[str], path: Path) -> dict[str, Tensor]:
    text = read_bytes(path).decode("utf-8", errors="replace")
    (ids,) = encode(base.tokenizer, [text])
    ids = ids[:_MOST]
    sums: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for module in modules:

            def take(layer: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = module) -> None:
                k_NI = inputs[0].detach().flatten(0, -2).cpu().double()
                sums[name] = sums[name] + k_NI.T @ k_NI if name in sums else k_NI.T @ k_NI
                if name == modules[-1]:
                    raise _Enough

            hooks.enter_context(base.network.get_submodule(module).register_forward_pre_hook(take))
        for start in range(0, len(ids), _WINDOW):
            window = Forest()
            end = window.add(ids[start : start + _WINDOW])[-1]
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
        sums[module] = total / len(ids)
    return sums
