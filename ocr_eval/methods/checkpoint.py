"""The training state of a run in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

Parameters = Mapping[str, torch.nn.Parameter]


def write_state(file: IO[bytes], parameters: Parameters, optimizer: torch.optim.Optimizer, epochs_done: int) -> None:
    """Write what resuming after an epoch needs: parameters and their optimizer's state."""
    state = {
        "parameters": {name: _alone(parameter.detach()) for name, parameter in parameters.items()},
        "optimizer": {name: optimizer.state[parameter] for name, parameter in parameters.items()},
        "epochs_done": epochs_done,
    }
    torch.save(state, file)


def read_state(path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer) -> int:
    """Take up what was written into parameters and optimizer; the number of finished epochs.

    Values go where their parameter is: PyTorch's fused AdamW wants its count of steps there too.

    Raises:
        Exception: of many kinds, where the file is damaged or another run's.
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
    """A tensor without the rest of its storage, as a lane has in its pack, which would be saved with it."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
