"""The training state of a run as one safetensors file, written and read a tensor at a time.

safetensors' own writer holds everything twice more in memory before the first byte is written, and the state of an 8B
model in training whole is 48 GB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}

Parameters = Mapping[str, torch.nn.Parameter]


def write_state(file: IO[bytes], parameters: Parameters, optimizer: torch.optim.Optimizer, epochs_done: int) -> None:
    """Write what resuming after an epoch needs: parameters and their optimizer's state."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value)
    _write(file, tensors, {"epochs_done": str(epochs_done)})


def read_state(path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> int:
    """Take up what was written into parameters and optimizer; the number of finished epochs.

    Values go where their parameter is: PyTorch's fused AdamW wants its count of steps there too. A count that was
    no tensor (bitsandbytes) becomes a number again.

    Raises:
        Exception: of many kinds, where the file is damaged or another run's.
    """
    with safe_open(path, "pt") as file, torch.no_grad():
        keys: dict[str, list[str]] = {name: [] for name in parameters}
        for entry in file.keys():  # noqa: SIM118
            key, _, name = entry.partition("/")
            keys[name].append(key)
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"parameter/{name}"))
            state = {key: file.get_tensor(f"{key}/{name}") for key in keys[name] if key != "parameter"}
            optimizer.state[parameter] = {
                key: int(value) if _is_count(value) else value.to(parameter.device) for key, value in state.items()
            }
        return int(file.metadata()["epochs_done"])


def _is_count(value: Tensor) -> bool:
    return value.dim() == 0 and value.dtype == torch.int64


def _write(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The format of safetensors: the header's length, the header, the tensors' bytes, the widest elements first."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in ordered.values():
        file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
