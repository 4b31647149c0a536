"""A true-size network with random weights, in place of the real ones, without ever holding it twice.

The network is made on the meta device and filled matrix by matrix. All matrices are cut from one pool of random
numbers, each from another start, so that an 8B model is built in seconds and its memory never exceeds its final size.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ocr_eval.models.architecture import build, linear_modules
from ocr_eval.models.base import DTYPES
from ocr_eval.specs.model import ModelSpec

#: Numbers in the pool, and between the starts of two matrices in it.
_POOL, _STRIDE = 1 << 24, 397 * 64 * 256


def random_network(
    spec: ModelSpec, config: PretrainedConfig, device: torch.device, quantized: bool, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The network of a configuration, frozen, on a device, in the spec's precision (or another), or its linears in NF4.

    Matrices are normal with the configuration's ``initializer_range``; norms and rotary tables are as in a fresh model.
    """
    dtype = dtype or DTYPES[spec.dtype]
    with torch.device("meta"):
        network = build(spec, config, device.type, dtype)
    std = getattr(config, "initializer_range", 0.02)
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0)).mul_(std).to(dtype).to(device)
    if quantized:
        _quantize_linears(network, pool, dtype)
    made: dict[int, torch.nn.Parameter] = {}  # tied parameters are one object
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = _filled(parameter, pool, len(made) * _STRIDE)
                module.register_parameter(name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)
    for module in network.modules():
        if not hasattr(module, "quant_state"):
            network._init_weights(module)
    return network


def _filled(parameter: torch.nn.Parameter, pool: torch.Tensor, start: int) -> torch.nn.Parameter:
    """A matrix from the pool; a vector is zero until the architecture's own initialization makes it otherwise."""
    if parameter.dim() > 1:
        value = _cut(pool, parameter.numel(), start).view(parameter.shape)
    else:
        value = torch.zeros(parameter.shape, dtype=parameter.dtype, device=pool.device)
    filled = torch.nn.Parameter(value, requires_grad=False)
    filled._is_hf_initialized = parameter.dim() > 1  # type: ignore[attr-defined]  # transformers asks it
    return filled


def _cut(pool: torch.Tensor, count: int, start: int) -> torch.Tensor:
    """``count`` entries of the pool from ``start`` on, beginning again at its end."""
    out = torch.empty(count, dtype=pool.dtype, device=pool.device)
    start, done = start % len(pool), 0
    while done < count:
        piece = pool[start : start + count - done]
        out[done : done + len(piece)] = piece
        start, done = 0, done + len(piece)
    return out


def _quantize_linears(network: PreTrainedModel, pool: torch.Tensor, dtype: torch.dtype) -> None:
    """Put an NF4 module with double quantization in the place of every linear but the head.

    Matrices of one shape have the same values, each its own memory: quantizing takes seconds a billion weights.
    """
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized: dict[torch.Size, Any] = {}
    for name, linear in linear_modules(network).items():
        shape = linear.weight.shape
        if shape not in quantized:
            matrix = _cut(pool, shape.numel(), 0).view(shape)
            quantized[shape] = quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
        packed, state = copy.deepcopy(quantized[shape])
        with torch.device("meta"):
            module = Linear4bit(
                linear.in_features, linear.out_features, linear.bias is not None, dtype, quant_type="nf4"
            )
        module.weight = Params4bit(packed, quant_state=state, quant_type="nf4", bnb_quantized=True, module=module)
        module.quant_state = state
        module.support_avx512bf16_for_cpu = False  # as models.freeze says
        network.set_submodule(name, module)
