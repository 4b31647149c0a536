"""The training state of a run in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

Parameters = Mapping[str, torch.nn.Parameter]


def write_state(file: IO[bytes], parameters: Parameters, optimizer: torch.optim.Optimizer, epochs_done: int) -> None:
    """Write what is needed to resume after an epoch: parameters and their optimizer's state."""
    state = {
        "parameters": {name: _alone(parameter.detach()) for name, parameter in parameters.items()},
        "optimizer": {name: optimizer.state[parameter] for name, parameter in parameters.items()},
        "epochs_done": epochs_done,
    }
    torch.save(state, file)


def read_state(path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> int:
    """Load what was written into parameters and optimizer; returns the number of finished epochs.

    Values go to their parameter's device: PyTorch's fused AdamW needs even its count of steps there.

    Raises:
        Exception: of many kinds, if the file is damaged or another run's.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["parameters"].keys() != parameters.keys():
        raise KeyError("it is another run's")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["parameters"][name])
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if isinstance(value, Tensor) else value
                for key, value in state["optimizer"][name].items()
            }
    return state["epochs_done"]


def _alone(tensor: Tensor) -> Tensor:
    """A tensor without the rest of its storage (the other lanes of the pack), which would be saved with it."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
