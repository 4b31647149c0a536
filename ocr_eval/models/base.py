"""ModelSpec -> Base: the frozen network and tokenizer that all runs on it share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator, PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.common.out_of_memory import is_out_of_memory
from ocr_eval.models import grouped_attention
from ocr_eval.models.hub import TOKENIZER_FILES, why_not_loaded
from ocr_eval.models.loading import from_folder
from ocr_eval.models.weights import WeightFolder, located
from ocr_eval.specs.model import Device, ModelSpec, load_model_spec

#: Approximate peak memory of a run, as a multiple of what it holds before any activation.
_WITH_ACTIVATIONS = 1.15
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: Loss scale in float16, whose smallest number is 6e-8: gradients below it would vanish (Micikevicius et al., arXiv
#: 1710.03740). A power of two, so that scaling is exact.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class Base:
    """A loaded base model, shared by all runs on it. No run changes it, except with ``whole``.

    Attributes:
        quantized: whether its linear layers are held in 4 bits.
        whole: whether its weights are fp32 masters that one run will change (full fine-tuning).
        network: the frozen causal language model on its device.
        files: the weights on disk.
        accelerator: owns device, backward and clipping.
    """

    spec: ModelSpec
    quantized: bool
    network: PreTrainedModel
    tokenizer: Any
    files: WeightFolder
    accelerator: Accelerator
    whole: bool = False

    @property
    def identity(self) -> str:
        """Identity of the weights' content."""
        return self.files.identity

    @property
    def brings_code(self) -> bool:
        """Whether the model's own code runs in its network, configuration or tokenizer."""
        kinds = map(type, (self.network, self.network.config, self.tokenizer))
        return any(kind.__module__.startswith("transformers_modules.") for kind in kinds)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.accelerator.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen weights and of the arithmetic."""
        return DTYPES[self.spec.dtype]

    @property
    def attention(self) -> str:
        """Name of the network's attention implementation."""
        return str(self.network.config._attn_implementation)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: the base's arithmetic over the fp32 master weights of adapters.

        It belongs to the base and not to the accelerator, which has a single precision per process.
        """
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def loss_scale(self) -> float:
        """Multiplies the loss before the backward pass; gradients are divided by it afterwards."""
        return _LOSS_SCALE if self.dtype == torch.float16 else 1.0


def load_base(
    spec: ModelSpec,
    folder: WeightFolder,
    device: Device = "auto",
    quantized: bool = False,
    whole: bool = False,
    holds: int = 0,
) -> Base:
    """Load a model and its tokenizer, frozen, in the spec's precision.

    With ``whole`` the weights are fp32 masters, to be trained in the spec's precision. A quantized base holds its
    linear layers in 4 bits: NF4 with double quantization through bitsandbytes, on CUDA and on CPU (Dettmers et al.,
    QLoRA, arXiv 2305.14314); arithmetic stays in the spec's precision. Layers are spread over all GPUs if the memory
    needed for any batch size (``holds``, in bytes; ``memory.least``) exceeds one GPU.

    Raises:
        UserError: the device is not available or too small, or the files are not a complete causal language model.
    """
    assert spec.dtype != "auto", "settle the precision first (models/precision.py)"
    accelerator = make_accelerator(device)
    mapped = quantized or accelerator.device.type == "cuda"  # loaded directly onto the device, not through the CPU
    if quantized:
        require_bitsandbytes("--method qlora")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    four_bit = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=DTYPES[spec.dtype]) if quantized else None
    try:
        tokenizer = from_folder(AutoTokenizer, folder.path)
        config = from_folder(AutoConfig, folder.path)
        network, found = from_folder(
            AutoModelForCausalLM,
            folder.path,
            config=config,
            dtype=torch.float32 if whole else DTYPES[spec.dtype],
            attn_implementation=attention_for(spec, config, accelerator.device.type),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # rejected below, by name
            quantization_config=four_bit,
            **({"device_map": _placement(accelerator, holds)} if mapped else {}),
        )
        _refuse_incomplete(spec, folder, found)
        freeze(network)
        if not mapped:
            network.to(accelerator.device)
    except UserError:
        raise
    except Exception as error:  # the libraries may raise anything about arbitrary files
        reason = why_not_loaded(error)
        if is_out_of_memory(error):
            raise UserError(
                f"{spec.name} does not fit into the free memory of {accelerator.device.type} ({reason}). "
                "Stop other programs there, or use --method qlora; --dry-run shows more."
            ) from error
        raise UserError(f"{spec.name}: the files in {folder.path} cannot be loaded: {reason}") from error
    return Base(spec, quantized, network, tokenizer, folder, accelerator, whole)


def _refuse_incomplete(spec: ModelSpec, folder: WeightFolder, found: dict[str, Any]) -> None:
    """Raises UserError if the files lack a tensor, or its shape differs: it would then have random values."""
    mismatched = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    absent = sorted({*found["missing_keys"], *mismatched})
    if absent:
        raise UserError(
            f"{spec.name}: {folder.path} lacks {len(absent)} of the model's tensors, or has them in another shape, "
            f"first {absent[0]}. Save the complete model with save_pretrained, or fetch it again."
        )


def _placement(accelerator: Accelerator, holds: int) -> torch.device | Literal["auto"]:
    """One device, or "auto" to spread the layers over all GPUs, if what is held and a batch do not fit on one."""
    gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" and accelerator.num_processes == 1 else 0
    if gpus > 1 and _WITH_ACTIVATIONS * holds > torch.cuda.get_device_properties(accelerator.device).total_memory:
        return "auto"
    return accelerator.device


def attention_for(spec: ModelSpec, config: PretrainedConfig, device: str) -> str:
    """The attention implementation for a type of device.

    ``auto`` is sdpa on a GPU and grouped on a CPU, where plain products are faster for rows as short as statements.
    Architectures with soft-capped logits, which sdpa does not support, use grouped everywhere. Those whose attention
    takes more than queries, keys, values and a mask (sinks, position biases) use sdpa, as far as the library allows.

    Raises:
        UserError: grouped attention was requested, but would ignore part of the architecture's own.
    """
    plain = has_plain_attention(config)
    if spec.attention == grouped_attention.NAME and not plain:
        raise UserError(f"{spec.name}: {config.model_type} has no plain attention; write 'attention: eager'.")
    if spec.attention != "auto":
        return spec.attention
    return grouped_attention.NAME if plain and (_is_capped(config) or device == "cpu") else "sdpa"


def has_plain_attention(config: PretrainedConfig) -> bool:
    """Whether an architecture's attention takes only queries, keys, values, a mask and possibly a soft cap."""
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    fused = _is_capped(config) or getattr(kind, "_supports_sdpa", False)
    return bool(getattr(kind, "_supports_attention_backend", False) and fused)


def _is_capped(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "attn_logit_softcapping", None))


def freeze(network: PreTrainedModel) -> None:
    """Freeze a network: no gradients, evaluation mode, and a workaround for bitsandbytes."""
    network.requires_grad_(False)
    network.eval()
    # bitsandbytes re-packs 4-bit weights for inference on CPUs with AVX512-BF16 at the first forward pass in eval
    # mode, and no gradient passes through packed weights: scoring epoch 0 would keep adapters from learning.
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def require_bitsandbytes(what: str) -> None:
    """Raises UserError if bitsandbytes, which ``what`` needs, cannot be imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        reason = "needs bitsandbytes, which cannot be imported here: pip install bitsandbytes"
        raise UserError(f"{what} {reason}") from error


def in_chat(tokenizer: Any, question: str) -> str:
    """A chat up to the beginning of the assistant's answer, without the BOS token if the tokenizer adds one anyway.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat: the model's tokenizer has no chat template. Drop --chat, or name a chat model.")
    turn = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return text.removeprefix(bos) if adds_bos else text


def load_tokenizer(name_or_path: str) -> Any:
    """Load only the tokenizer of a model, by name or YAML file, or of a folder that may have nothing else.

    Raises:
        UserError: no such model or folder, or no tokenizer in it.
    """
    folder = yaml_files.expand(name_or_path)
    if not (yaml_files.looks_like_path(name_or_path) and folder.is_dir()):
        folder = located(load_model_spec(name_or_path), TOKENIZER_FILES)
    return load_tokenizer_from(folder)


def load_tokenizer_from(folder: Path) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        UserError: it has none, or one that does not load.
    """
    try:
        return from_folder(AutoTokenizer, folder)
    except UserError:
        raise
    except Exception as error:
        if not any(path for pattern in ("tokenizer*", "vocab*") for path in folder.glob(pattern)):
            raise UserError(f"'{folder}' has no tokenizer (tokenizer.json). Give a folder with its files.") from error
        raise UserError(f"The tokenizer in '{folder}' cannot be loaded: {why_not_loaded(error)}") from error


def make_accelerator(device: Device) -> Accelerator:
    """The accelerator for a device.

    Raises:
        UserError: the requested device is not available, or this process already uses another.
    """
    require_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on CUDA
    try:
        accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        taken = accelerator.device.type
    except ValueError:  # the CPU was requested after another device: the library keeps one per process
        taken = PartialState().device.type
    if device not in ("auto", taken):
        raise UserError(f"--device {device}: this process already computes on {taken}; start another for {device}.")
    return accelerator


def require_device(device: Device) -> None:
    """Raises UserError if this machine lacks the requested device."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        names = ["cpu", *(name for name, available in there.items() if available)]
        raise UserError(f"--device {device} is not available. This machine has: {', '.join(names)}.")


def device_type(device: Device) -> str:
    """The type of device that ``make_accelerator`` would use, without initializing it.

    Raises:
        UserError: there is no such type.
    """
    if device not in get_args(Device):
        raise unknown_name("device", device, get_args(Device))
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
