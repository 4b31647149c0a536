"""Detecting that memory ran out, releasing cached memory, and measuring the peak."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

#: Texts by which devices and their libraries report it if they have no exception type for it.
_SAYINGS = (
    "can't allocate memory",
    "out of memory",  # "CUDA error: out of memory", "MPS backend out of memory"
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def free_cache(device: torch.device) -> None:
    """Return cached free memory to the device or the system, so that what is planned next fits."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cpu":
        with suppress(OSError, AttributeError):  # only glibc has it (and needs it: it keeps freed blocks)
            ctypes.CDLL(None).malloc_trim(0)


def forget_peak(device: torch.device) -> bool:
    """Reset the peak. False if that is impossible, as outside Linux: the peak is then that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of the CUDA allocator on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss counts the parent's memory too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
