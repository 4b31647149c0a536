"""A model's architecture, from its configuration alone: no weights are read or allocated.

Shipped models come with their configurations (configs/models/<name>/config.json); that of any other model is in
its folder, or is fetched from the hub without weights.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError, reason_of, shown
from ocr_eval.common.out_of_memory import is_out_of_memory
from ocr_eval.models.base import DTYPES, attention_for, freeze
from ocr_eval.models.hub import TOKENIZER_FILES, trusts_code, why_not_loaded
from ocr_eval.models.loading import from_folder, quiet_transformers
from ocr_eval.models.weights import located
from ocr_eval.specs.model import FolderWeights, ModelSpec


@dataclass(frozen=True)
class Architecture:
    """A model's sizes.

    Attributes:
        kind: transformers' name of the architecture.
        parameters: number of parameters, counting tied ones once.
        stored: bytes of the weights in the dtype in which they are published: the size of a download.
        vocabulary: entries of the embedding.
        linears: how many linear modules of each (name, inputs, outputs) the decoder has, without the head.
        head: parameters of the output projection.
    """

    kind: str
    parameters: int
    stored: int
    layers: int
    vocabulary: int
    linears: dict[tuple[str, int, int], int]
    head: int

    @property
    def modules(self) -> list[str]:
        """Names of the decoder's linear modules."""
        return list(dict.fromkeys(name for name, _, _ in self.linears))

    @property
    def linear_parameters(self) -> int:
        """Number of weights in the decoder's linears, which every token passes and 4-bit methods quantize."""
        return sum(inputs * outputs * count for (_, inputs, outputs), count in self.linears.items())


def read_config(spec: ModelSpec, layers: int | None = None) -> PretrainedConfig:
    """A model's transformers configuration; with ``layers``, that of its first ``layers`` layers.

    Raises:
        UserError: it is not available or not readable, or it has fewer layers.
    """
    folder = yaml_files.shipped("models") / spec.name
    if not (folder / "config.json").is_file() or isinstance(spec.weights, FolderWeights):
        folder = located(spec, TOKENIZER_FILES)
    config = read_config_of(spec.name, folder)
    if layers is None:
        return config
    if not 1 <= layers <= config.num_hidden_layers:
        raise UserError(f"--layers {layers}: the model has {config.num_hidden_layers} layers. Give 1 to that many.")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def read_config_of(name: str, folder: Path) -> PretrainedConfig:
    """The transformers configuration in a folder.

    Raises:
        UserError: an unknown kind of model, or impossible sizes; ``name`` is the model's, for the message.
    """
    try:
        config: PretrainedConfig = from_folder(AutoConfig, folder)
    except UserError:
        raise
    except Exception as error:  # the file may contain anything, and the library checks little of it
        raise UserError(f"{name}: {folder}/config.json describes an unknown model: {why_not_loaded(error)}") from error
    for field in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"):
        size = getattr(config.get_text_config(), field, None)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{name}: {folder}/config.json has '{field}': {shown(size)}; it must be 1 or more.")
    return config


def build(spec: ModelSpec, config: PretrainedConfig, device: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The network for a type of device, with meaningless values.

    Its tensors are where the surrounding context puts them (meta, fake).

    Raises:
        UserError: no model can be built from the configuration.
    """
    attention = attention_for(spec, config, device)
    try:
        with quiet_transformers():
            network = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype or DTYPES[spec.dtype],
                attn_implementation=attention,
                trust_remote_code=trusts_code(),
            )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{spec.name}: no model can be built from its config.json: {reason_of(error)}") from error
    freeze(network)
    return network


def linear_modules(network: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """All linear modules except the output head, by full name."""
    head = network.get_output_embeddings() if isinstance(network, PreTrainedModel) else None
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def down_projection(network: torch.nn.Module, layer: int) -> str:
    """Name of the linear module that writes a layer's MLP into the residual stream; layers count from 0.

    Raises:
        UserError: the network has no such layer, or none whose MLP ends in ``down_proj``.
    """
    found = [name for name in linear_modules(network) if name.endswith(".mlp.down_proj")]
    if not found:
        raise UserError("The model's MLPs have no 'down_proj', which this method needs. Use another model or method.")
    if layer not in range(len(found)):
        raise UserError(f"The model has no layer {layer}. Name one from 0 to {len(found) - 1}.")
    return found[layer]


def examine(spec: ModelSpec, layers: int | None = None) -> Architecture:
    """The sizes of a model.

    Raises:
        UserError: its configuration is not available or not readable.
    """
    config = read_config(spec, layers)
    stored: torch.dtype = config.dtype or torch.float32  # as published; building overwrites config.dtype
    with torch.device("meta"):
        network = build(spec, config, "cpu", stored)  # sizes are the same on every device
    linears: Counter[tuple[str, int, int]] = Counter()
    for name, module in linear_modules(network).items():
        linears[name.rpartition(".")[2], module.in_features, module.out_features] += 1
    parameters = sum(p.numel() for p in network.parameters())
    return Architecture(
        kind=config.model_type,
        parameters=parameters,
        stored=parameters * stored.itemsize,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        linears=dict(linears),
        head=network.get_output_embeddings().weight.numel(),
    )


def target_names(network: torch.nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear modules that get an adapter: as in PEFT, those that end in a target, or all but the head.

    Raises:
        UserError: the network has no such target.
    """
    linear = list(linear_modules(network))
    if targets == "all-linear":
        return linear
    found = set()
    for target in [targets] if isinstance(targets, str) else targets:
        matching = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matching:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"The model has no linear module '{target}'; it has {there}. Correct 'targets'.")
        found.update(matching)
    return [name for name in linear if name in found]
