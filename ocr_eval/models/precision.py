"""Resolves ``dtype: auto``: a precision in which the device is fast.

It follows from the device's features (instruction sets, compute capability) and never from timing, so that other work
on a shared machine cannot change a result. A run resumes in its own precision on any machine (``Bases.settle``).
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ocr_eval.common.errors import UserError
from ocr_eval.models.architecture import read_config
from ocr_eval.specs.model import FolderWeights, ModelSpec, Precision

#: Instruction sets that multiply bfloat16 matrices, by PyTorch's names for them.
_CPU_BF16 = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
#: CUDA compute capability from which bfloat16 is computed in hardware (Ampere).
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen; ``untested`` if no test has run on this kind of device."""

    dtype: Precision
    reason: str
    untested: bool = False


def choose(device: str) -> Choice:
    """A precision in which a type of device ("cpu", "cuda", "mps") is fast.

    If this machine has no GPU, as when a cluster's jobs are planned, GPUs are assumed to have bfloat16.
    """
    if device == "cpu":
        return _of_cpu(cpu_capabilities(), platform.system())
    if device == "mps":
        return Choice("float32", "works on every Apple GPU", untested=True)
    if not torch.cuda.is_available():
        return Choice("bfloat16", "assumed for a GPU that is not in this machine", untested=True)
    capability = torch.cuda.get_device_capability()
    reason = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= _AMPERE:
        return Choice("bfloat16", reason, untested=True)
    return Choice("float16", f"{reason} has no bfloat16", untested=True)


def cpu_capabilities() -> Mapping[str, Any]:
    """This processor's features, by PyTorch's names; empty if this version of PyTorch does not report them."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def _of_cpu(capabilities: Mapping[str, Any], system: str) -> Choice:
    for flag, name in _CPU_BF16.items():
        if capabilities.get(flag):
            return Choice("bfloat16", f"the processor has {name}", untested=flag == "amx_bf16")
    if capabilities.get("bf16"):
        # Apple's own library multiplies float32 on the matrix unit, and nothing multiplies bfloat16 there.
        if system == "Darwin":
            return Choice("float32", "macOS multiplies float32 matrices faster", untested=True)
        return Choice("bfloat16", "the processor has ARM bf16", untested=True)
    return Choice("float32", "the processor has no bfloat16 instructions")


def choose_for(model: ModelSpec, device: str) -> Choice:
    """The precision of a model on a type of device: the model's own if it specifies one, else that of ``choose``.

    A folder's weights are not rounded: if they are stored in float32, they stay so.

    Raises:
        UserError: float16, requested or the best that the device has, and the model overflows in it.
    """
    choice = Choice(model.dtype, "as requested") if model.dtype != "auto" else choose(device)
    if model.dtype == "auto" and isinstance(model.weights, FolderWeights):
        stored = read_config(model).dtype or torch.float32  # transformers' default if the folder does not say
        if stored == torch.float32:
            choice = Choice("float32", "the folder's own", choice.untested)
        elif stored == torch.float16 and choice.dtype == "bfloat16" and not overflows_float16(model):
            choice = Choice("float16" if device == "cuda" else "float32", "the folder's own is float16", True)
    if choice.dtype == "float16" and overflows_float16(model):
        others = ", or a GPU of compute capability 8.0 or more" if model.dtype == "auto" else " or bfloat16"
        raise UserError(
            f"{model.name} cannot run in float16 ({choice.reason}): its activations exceed 65,504, the largest "
            f"float16 number. Use --dtype float32{others}."
        )
    return choice


def overflows_float16(model: ModelSpec) -> bool:
    """Whether a model's activations exceed the largest number in float16; those of the Gemma family do."""
    return "gemma" in read_config(model).model_type
