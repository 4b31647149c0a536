"""When a device has no more memory, how what was freed is given back, and what the collector looks at."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

#: How devices and the libraries on them say that memory is out, where no exception of its own does.
_SAYINGS = (
    "can't allocate memory",
    "out of memory",  # "CUDA error: out of memory", "MPS backend out of memory"
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the machine, has no more memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def free_cache(device: torch.device) -> None:
    """Give freed memory back to the device or the system, so that what is planned next fits."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cpu":
        with suppress(OSError, AttributeError):  # glibc alone has it, and keeps freed pieces between living ones
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def unwatched_by_collector() -> Iterator[None]:
    """Within it the garbage collector leaves alone what was there before: all libraries and the network.

    A step makes many short-lived Python objects, after which the collector walks through all old ones in vain: about a
    thirtieth of a CPU's time in training. What is made meanwhile it collects as ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
