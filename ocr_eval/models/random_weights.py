"""A network of true size with random weights, built without ever holding it twice."""

import copy
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ocr_eval.models.architecture import build, linear_modules
from ocr_eval.models.base import DTYPES
from ocr_eval.specs.model import ModelSpec

#: How many random numbers are drawn and then reused: drawing all those of an 8B model would take over a minute.
_DRAWN = 1 << 24


def random_network(
    spec: ModelSpec, config: PretrainedConfig, device: torch.device, quantized: bool, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A frozen network built from a configuration, in the spec's precision or ``dtype``, or with its linears in NF4.

    Matrices are normal with the configuration's ``initializer_range``; norms and rotary tables are as in a new model.
    """
    dtype = dtype or DTYPES[spec.dtype]
    with torch.device("meta"):
        network = build(spec, config, device.type, dtype)
    std = getattr(config, "initializer_range", 0.02)
    numbers = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0)).mul_(std).to(device, dtype)
    if quantized:
        _quantize_linears(network, numbers)
    plain = [module for module in network.modules() if not hasattr(module, "quant_state")]
    for module in plain:
        module.to_empty(device=device, recurse=False)
    network.tie_weights()
    for module in plain:
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                _fill(parameter, numbers)
                parameter._is_hf_initialized = True  # so that _init_weights skips it
        network._init_weights(module)
    return network


def _fill(matrix: torch.Tensor, numbers: torch.Tensor) -> None:
    for part in matrix.view(-1).split(len(numbers)):
        part.copy_(numbers[: len(part)])


def _quantize_linears(network: PreTrainedModel, numbers: torch.Tensor) -> None:
    """Replace every linear except the head by an NF4 module with double quantization.

    Matrices of one shape share their values but not their memory: quantizing takes seconds per billion weights.
    """
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized: dict[torch.Size, Any] = {}
    for name, linear in linear_modules(network).items():
        shape = linear.weight.shape
        if shape not in quantized:
            matrix = numbers.new_empty(shape)
            _fill(matrix, numbers)
            quantized[shape] = quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
        packed, state = copy.deepcopy(quantized[shape])
        with torch.device("meta"):
            module = Linear4bit(linear.in_features, linear.out_features, False, numbers.dtype, quant_type="nf4")
        module.weight = Params4bit(packed, quant_state=state, quant_type="nf4", bnb_quantized=True, module=module)
        module.quant_state = state
        if linear.bias is not None:
            bias = torch.zeros(linear.out_features, dtype=numbers.dtype, device=numbers.device)
            module.bias = torch.nn.Parameter(bias, requires_grad=False)
        module.support_avx512bf16_for_cpu = False  # see models.base.freeze
        network.set_submodule(name, module)
