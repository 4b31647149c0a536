"""When a device has no more memory, and how what was freed is given back."""

import ctypes
from contextlib import suppress

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
