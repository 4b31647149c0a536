"""Data-parallel training of one run in several processes, as started by ``accelerate launch``.

Each process takes its share of every batch. Gradients and losses are summed, so all hold the same weights after every
step. Only the first process writes and prints.
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
    """Whether this is the only process in training."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first() -> bool:
    """Whether this process writes and prints: rank 0, or the only one."""
    return is_alone() or int(os.environ.get("RANK", "0")) == 0


def agreed(decide: Callable[..., Decision], *given: Any) -> Decision:
    """Let the first process decide for all, so that none waits for another that took a different branch.

    Only the first process calls ``decide(*given)``; its result, plain data, is broadcast.

    Raises:
        OSError, UserError: what ``decide`` raises, in all processes.
    """
    if is_alone():
        return decide(*given)
    from torch.distributed import broadcast_object_list

    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = decide(*given)
        except (OSError, UserError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def sum_over_processes(gradients: Sequence[Tensor], nats: dict[Key, float]) -> dict[Key, float]:
    """Sum gradients over all processes in place, and return the summed losses."""
    import torch
    from torch.distributed import all_reduce

    for gradient in gradients:
        all_reduce(gradient)
    sums = torch.tensor(list(nats.values()), device=gradients[0].device)
    all_reduce(sums)
    return dict(zip(nats, sums.tolist(), strict=True))
