"""Writes PEFT's adapter files, and tells from the names and shapes of their tensors what they are and if they fit."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes, replacing_folder
from ocr_eval.methods.changes import LowRank, WeightChange
from ocr_eval.models.architecture import target_names
from ocr_eval.models.weights import file_sha256
from ocr_eval.specs.model import HubWeights, ModelSpec

#: What PEFT puts before a module's name in its files.
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Fields of LoraConfig that may have any value in a plain adapter, y + (alpha / r) B A x and nothing else.
_FREE = {
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "target_modules"),
}
#: The values that other fields may have in a plain adapter; fields that are not listed: None or False.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "task_type": (None, "CAUSAL_LM"),
    "init_lora_weights": (True, False, "gaussian"),
    "bias": ("none",),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "loftq_config"), (None, {})),
}
#: Fields that PEFT itself computes correctly here; tests compare each. Others need something that is not in the folder
#: or, like aLoRA, read a row as one text, although several are packed into it.
_THROUGH_PEFT = {
    *("task_type", "init_lora_weights", "bias", "exclude_modules", "fan_in_fan_out", "use_rslora", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "trainable_token_indices"),
    *("loftq_config", "eva_config", "use_dora", "velora_config", "monteclora_config", "layer_replication", "lora_bias"),
    *("target_parameters", "use_bdlora", "kasa_config", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
}
#: Other types of adapters that act on each token by itself, so that PEFT can compute them in packed rows, too.
_BY_TOKEN = ("ADALORA", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "VERA")
#: Initializations that leave the base unchanged, and those that PEFT subtracts from the base again when it loads.
_STARTS, _STARTS_OF_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica"), ("pissa", "olora")


_Rank = Annotated[int, msgspec.Meta(gt=0)]


class _Stated(msgspec.Struct):
    """The fields of an adapter's configuration that are used here; PEFT itself checks none."""

    peft_type: str | None = None
    init_lora_weights: bool | str | None = True
    r: _Rank = 8
    lora_alpha: float = 8
    target_modules: str | list[str] = ""
    exclude_modules: str | list[str] | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    use_rslora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
            value = getattr(self, field)
            try:
                for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
                    re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{field} is not a valid pattern: {error}") from error


@dataclass(frozen=True)
class AdapterFile:
    """A saved adapter, whose tensors have not been read yet.

    Attributes:
        config: the configuration as PEFT reads it.
        fields: the configuration as it is in the file.
        shapes: the shape of each tensor, by its name in the file.
    """

    folder: Path
    config: PeftConfig
    fields: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]

    @property
    def is_plain(self) -> bool:
        """Whether it is y + (alpha / r) B A x on some linear modules and nothing else."""
        if self.fields.get("peft_type") != "LORA" or self.beyond_plain:
            return False
        return all(
            name.startswith(PREFIX) and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in self.shapes
        )

    @property
    def beyond_plain(self) -> list[str]:
        """Fields of its configuration that a plain LoRA would not have, or not with their values."""
        return [name for name, value in sorted(self.fields.items()) if name not in _FREE and not _is_plain(name, value)]

    @property
    def changes_base(self) -> bool:
        """Whether PEFT changes the base when it loads the adapter, so that it must be the right base exactly."""
        return self.fields.get("init_lora_weights") in _STARTS_OF_BASE or self.fields.get("kasa_config") is not None

    @property
    def modules(self) -> list[str]:
        """Names of the modules that it adapts."""
        return sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in self.shapes})

    def mismatch(self, network: torch.nn.Module) -> str | None:
        """Why a plain adapter does not fit a network: the first tensor that is missing, unexpected or misshapen."""
        linear = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
        wanted = [name for name in linear if check_target_module_exists(self.config, name)]
        if self.config.target_modules == "all-linear":
            wanted = target_names(network, "all-linear")
        expected = {}
        for name in {*wanted, *self.modules} & linear.keys():
            expected[f"{PREFIX}{name}.lora_A.weight"] = [self.config.r, linear[name].in_features]
            expected[f"{PREFIX}{name}.lora_B.weight"] = [linear[name].out_features, self.config.r]
        for name in sorted({*expected, *self.shapes}):
            if name not in expected:
                return f"the model has no module for {name}"
            if name not in self.shapes:
                return f"{CONFIG} asks for {name}, which is missing"
            if list(self.shapes[name]) != expected[name]:
                return f"{name} has shape {list(self.shapes[name])}, and the model needs {expected[name]}"
        return None


def _is_plain(name: str, value: Any) -> bool:
    return value in _PLAIN.get(name, (None,)) or value is False


def base_name(model: ModelSpec) -> str:
    """The base's name in an adapter's files: its hub repository if it has one, else the model's name."""
    return model.weights.repo if isinstance(model.weights, HubWeights) else model.name


def write_adapter(
    folder: Path, factors: Sequence[LowRank], rank: int, alpha: float, model: ModelSpec, in_full: bool = False
) -> str:
    """Write an adapter as PEFT itself does, atomically; returns the sha256 of its tensors' file, as all of these do.

    ``in_full`` writes modules' full names, because others with the same last name are not adapted.
    """
    files = {}
    for each in factors:
        files[f"{PREFIX}{each.module}.lora_A.weight"] = each.a.cpu().contiguous()
        files[f"{PREFIX}{each.module}.lora_B.weight"] = each.b.t().cpu().contiguous()
    modules = sorted({each.module if in_full else each.module.rpartition(".")[2] for each in factors})
    return _write(folder, files, model, r=rank, lora_alpha=alpha, target_modules=modules)


def write_bias(folder: Path, module: str, inputs: int, bias: Tensor, model: ModelSpec) -> str:
    """Write an adapter that adds a constant to one module's output: LoRA of rank 1 with A = B = 0 and a bias of B."""
    files = {
        f"{PREFIX}{module}.lora_A.weight": torch.zeros(1, inputs),
        f"{PREFIX}{module}.lora_B.weight": torch.zeros(len(bias), 1),
        f"{PREFIX}{module}.lora_B.bias": bias.cpu().contiguous(),
    }
    return _write(folder, files, model, r=1, lora_alpha=1, target_modules=[module], lora_bias=True)


def write_dense(folder: Path, changes: Iterable[WeightChange], dtype: torch.dtype, model: ModelSpec) -> str:
    """Write changes of any rank as an adapter of full rank: one factor is dW, the other the identity.

    In ``dtype``, a model computes the same from this file.
    """
    files, ranks = {}, {}
    for each in changes:
        change = each.dense().to("cpu", dtype).contiguous()
        ranks[each.module] = min(change.shape)
        identity = torch.eye(ranks[each.module], dtype=dtype)
        a, b = (identity, change) if change.shape[1] <= len(change) else (change, identity)
        files[f"{PREFIX}{each.module}.lora_A.weight"], files[f"{PREFIX}{each.module}.lora_B.weight"] = a, b
    patterns = {"rank_pattern": ranks, "alpha_pattern": ranks}  # each module has its own, and r=1 is a placeholder
    return _write(folder, files, model, r=1, lora_alpha=1, target_modules=sorted(ranks), **patterns)


def _write(folder: Path, files: dict[str, Tensor], model: ModelSpec, **fields: Any) -> str:
    fields |= {"task_type": "CAUSAL_LM", "lora_dropout": 0.0, "inference_mode": True}
    config = LoraConfig(base_model_name_or_path=base_name(model), **fields)
    with replacing_folder(folder) as partial:
        config.save_pretrained(partial)
        save_file(files, partial / WEIGHTS, metadata={"format": "pt"})
    return file_sha256(folder / WEIGHTS)


def read_adapter_file(folder: Path) -> AdapterFile:
    """An adapter, from its configuration and the header of its tensors.

    Raises:
        UserError: no adapter, a damaged one, or one of a kind that cannot be scored.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no adapter ({CONFIG}). Give a PEFT folder or a run's folder.")
    try:
        content = read_bytes(folder / CONFIG)
        stated = msgspec.json.decode(content, type=_Stated)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{folder}/{CONFIG} cannot be used: {error}.") from error
    is_lora = stated.peft_type == "LORA"
    if not is_lora and stated.peft_type not in _BY_TOKEN:
        kinds = ", ".join(_BY_TOKEN)
        raise UserError(f"{folder} is a PEFT adapter of type {stated.peft_type}; only LORA, {kinds} can be scored.")
    if is_lora and stated.init_lora_weights not in (*_STARTS, *_STARTS_OF_BASE):
        raise UserError(
            f"{folder}: init_lora_weights '{stated.init_lora_weights}' has changed the base's weights, which are not "
            "in this folder. Save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    fields = msgspec.json.decode(content)
    for name in sorted(fields.keys() - _FREE - _THROUGH_PEFT) if is_lora else ():
        if not _is_plain(name, fields[name]):
            raise UserError(f"{folder}/{CONFIG}: adapters with '{name}' cannot be scored. Save it as plain LoRA.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}. Save the adapter with save_pretrained of a current PEFT.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with safe_open(folder / WEIGHTS, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder}: the adapter cannot be read: {reason}.") from error
    return AdapterFile(folder, config, fields, shapes)
