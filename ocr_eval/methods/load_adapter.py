"""Loads an adapter, and checks that an adapter or a whole model was trained from a given model.

The check uses only small files, names and shapes, before any weights are loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import warn
from ocr_eval.methods.adapters import Adapters, LaneShape
from ocr_eval.methods.ov_matrices import load_matrices, matrices_over
from ocr_eval.methods.peft_files import CONFIG, PREFIX, WEIGHTS, AdapterFile, read_adapter_file
from ocr_eval.methods.view import View
from ocr_eval.models import weights
from ocr_eval.models.architecture import build, read_config, read_config_of
from ocr_eval.models.base import Base, load_tokenizer_from
from ocr_eval.models.hub import TOKENIZER_FILES
from ocr_eval.specs.model import FolderWeights, HubWeights, ModelSpec, load_model_spec

#: Fields that a model and one trained from it must agree in; the first that differs is reported.
_FIELDS = (
    *("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "vocab_size"),
)


def check_belongs(folder: Path, kind: Literal["adapter", "model"], spec: ModelSpec) -> None:
    """Check that a folder has an adapter over a model, or the model trained in all its parameters.

    Warns about an adapter that names another model, which may be the same one under another name.

    Raises:
        UserError: it belongs to another model (other architecture, vocabulary, sizes or modules, or the name of another
            shipped model), or it cannot be read.
    """
    if kind == "model":
        _check_model(folder, spec)
        return
    over = matrices_over(folder)
    if over is not None:
        _check_name(folder, over, spec, changes_base=False)
        with torch.device("meta"):
            load_matrices(build(spec, read_config(spec), "cpu"), folder)
        return
    adapter = read_adapter_file(folder)
    _check_name(folder, adapter.config.base_model_name_or_path, spec, adapter.changes_base)
    if adapter.is_plain:
        with torch.device("meta"):
            network = build(spec, read_config(spec), "cpu")
        reason = adapter.mismatch(network)
        if reason:
            raise _foreign_adapter(folder, spec, reason)


def load_adapter(base: Base, folder: Path) -> View:
    """A base with a saved adapter, unmerged and frozen.

    Plain LoRA and matrices of heads run through the same code as in training; any other kind of LoRA or PEFT adapter
    runs through PEFT.

    Raises:
        UserError: no adapter, one of another model (missing or unexpected tensors), or one that was never trained
            (every B is zero) or diverged.
    """
    if matrices_over(folder) is not None:
        if base.quantized:
            raise UserError(f"{folder} was trained over full precision. Drop --method qlora.")
        return View(base, base.network, load_matrices(base.network, folder))
    file = read_adapter_file(folder)
    saved = load_file(folder / WEIGHTS)
    if file.is_plain and not any(bool(tensor.any()) for name, tensor in saved.items() if "lora_B" in name):
        raise UserError(f"{folder}: every B matrix is zero, so this adapter was never trained.")
    if not all(bool(tensor.isfinite().all()) for tensor in saved.values()):
        raise UserError(f"{folder}: it contains NaN or infinite values, so its training diverged.")
    if not file.is_plain:
        return _through_peft(base, file, set(saved))
    reason = file.mismatch(base.network)
    if reason:
        raise _foreign_adapter(folder, base.spec, reason)
    shape = LaneShape(file.config.r, file.config.lora_alpha)
    try:
        adapters = Adapters(base.network, file.modules, [shape], base.dtype)
    except UserError:  # it adapts the output head too
        return _through_peft(base, file, set(saved))
    for each in adapters.factors(0):
        each.a.copy_(saved[f"{PREFIX}{each.module}.lora_A.weight"])
        each.b.copy_(saved[f"{PREFIX}{each.module}.lora_B.weight"].t())
    adapters.refresh()
    return View(base, base.network, adapters)


def load_sum(base: Base, terms: Sequence[tuple[int, Path]]) -> View:
    """A base with a signed sum of plain LoRA adapters: weight grafting as by Feng et al.

    The sum is one adapter of their concatenated factors, so it is exact and needs no dense matrix:

        sum_k e_k s_k B_k A_k = [e_1 s_1 B_1 ... e_n s_n B_n] [A_1; ...; A_n]        e: 1 or -1

    Raises:
        UserError: as for ``load_adapter``, or one is not plain LoRA. The base must then be loaded again.
    """
    parts = []
    for sign, folder in terms:
        adapters = load_adapter(base, folder).adapters
        if not isinstance(adapters, Adapters):
            raise UserError(f"{folder} has no plain LoRA adapter, and only those can be added up. Name another run.")
        adapters.unmount()
        parts.append((sign, adapters))
    rank = sum(each.shapes[0].rank for _, each in parts)
    modules = sorted({module for _, each in parts for module in each.modules})
    whole = Adapters(base.network, modules, [LaneShape(rank, rank)], base.dtype)
    into, start = {each.module: each for each in whole.factors(0)}, 0
    for sign, part in parts:
        rows = slice(start, start + part.shapes[0].rank)
        for each in part.factors(0):
            into[each.module].a[rows] = each.a
            into[each.module].b[rows] = sign * each.scale * each.b
        start = rows.stop
    whole.refresh()
    return View(base, base.network, whole)


def _through_peft(base: Base, file: AdapterFile, saved: set[str]) -> View:
    asks = f"{CONFIG} asks for {' and '.join(file.beyond_plain)}" if file.beyond_plain else ""
    try:
        network = PeftModel.from_pretrained(base.network, str(file.folder), is_trainable=False)
    except Exception as error:
        first, *rest = str(error).splitlines() or [""]
        reason = f"{first} is missing" if isinstance(error, KeyError) else rest[0].strip() if rest else first
        fix = f" {asks}: correct that, or save it as plain LoRA." if asks else ""
        raise UserError(
            f"{file.folder}: the adapter does not load over {base.spec.name}: {reason.rstrip('.')}.{fix}"
        ) from error
    own = get_peft_model_state_dict(network, save_embedding_layers=False)
    there, taken = ({name.removesuffix(".weight") for name in names} for names in (own, network.state_dict()))
    given = {name.removesuffix(".weight") for name in saved}  # PEFT renames tensors of older files when it loads them
    differing = (there - given) | (given - there - taken)
    if differing:
        reason = f"{min(differing)} is missing on one side{f' ({asks})' if asks else ''}"
        raise _foreign_adapter(file.folder, base.spec, reason)
    return View(base, network, autocast=True)


def _foreign_adapter(folder: Path, spec: ModelSpec, reason: str) -> UserError:
    return UserError(
        f"{folder}: its tensors are not those of an adapter over {spec.name}: {reason}. Name its base with --model."
    )


def _check_model(folder: Path, spec: ModelSpec) -> None:
    theirs, ours = read_config_of(str(folder), folder), read_config(spec)
    for field in _FIELDS:
        outer = field in ("model_type", "architectures")
        values = [getattr(each if outer else each.get_text_config(), field, None) for each in (theirs, ours)]
        if values[0] != values[1] and None not in values:
            raise _foreign_model(folder, spec, f"its {field} is {values[0]}, that of {spec.called} is {values[1]}")
    here = weights.cached(spec, TOKENIZER_FILES)
    if here is not None:
        vocabulary, own = load_tokenizer_from(folder).get_vocab(), load_tokenizer_from(here).get_vocab()
        for token, number in own.items():
            if vocabulary.get(token) != number:
                has = f"token {token!r} is {vocabulary.get(token, 'missing')}, that of {spec.called} is {number}"
                raise _foreign_model(folder, spec, f"its tokenizer is another: {has}")


def _foreign_model(folder: Path, spec: ModelSpec, reason: str) -> UserError:
    path = folder if yaml_files.looks_like_path(str(folder)) else f"./{folder}"
    return UserError(
        f"--adapter {folder} is not a trained {spec.called}: {reason}. Name the model it was trained from with "
        f"--model, or score it by itself: --model {path}"
    )


def _check_name(folder: Path, base: str | None, spec: ModelSpec, changes_base: bool) -> None:
    """Raises UserError if an adapter names another shipped model, or changes its base and ours may be another."""
    if base and _tail(base) in _names(spec):
        return
    if changes_base:
        raise UserError(
            f"{folder} changes its base, '{base}', when it is loaded, and {spec.called} may be another. Save it as "
            "plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    if not base:
        return
    shipped = yaml_files.shipped_names("models")
    for name in shipped if spec.name in shipped else ():
        if _tail(base) in _names(load_model_spec(name)):
            raise UserError(f"{folder} is an adapter of '{base}', not of {spec.name}. Give --model {name}.")
    warn(f"{folder} names '{base}' as its base; it is scored over {spec.called}, which may be another model.")


def _names(spec: ModelSpec) -> set[str]:
    """The names that a model may have, without folders and owners."""
    where = spec.weights
    names = [spec.name]
    names += [where.repo] if isinstance(where, HubWeights) else []
    names += [where.path] if isinstance(where, FolderWeights) else []
    return {_tail(name) for name in names}


def _tail(name: str) -> str:
    return name.rstrip("/\\").replace("\\", "/").rpartition("/")[2].lower()
