"""Several processes that train one run together, as ``accelerate launch`` starts them.

Each takes its share of every batch; gradients and losses are summed, so all hold the same weights after every step.
The first process alone writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ocr_eval.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Decision = TypeVar("Decision")


def is_alone() -> bool:
    """Whether this process trains by itself."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first() -> bool:
    """Whether this is the process that writes and prints; a process started alone is."""
    return is_alone() or int(os.environ.get("RANK", "0")) == 0


def agreed(decide: Callable[..., Decision], *given: Any) -> Decision:
    """What the first process decides, told to all, so that none waits for one that took another way.

    ``decide`` is called by the first process alone, with what is given; it returns plain data.

    Raises:
        OSError, UserError: as ``decide``, in all processes.
    """
    if is_alone():
        return decide(*given)
    from torch.distributed import broadcast_object_list

    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = decide(*given)
        except (OSError, UserError) as error:
            told[1] = error
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def sum_over_processes(gradients: Sequence[Tensor], nats: dict[Key, float]) -> dict[Key, float]:
    """Replace gradients by their sums over all processes, and return the sums of some losses."""
    import torch
    from torch.distributed import all_reduce

    for gradient in gradients:
        all_reduce(gradient)
    sums = torch.tensor(list(nats.values()), device=gradients[0].device)
    all_reduce(sums)
    return dict(zip(nats, sums.tolist(), strict=True))
