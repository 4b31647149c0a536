"""When a device has no more memory, how what was freed is given back, and how much was taken at most."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

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


def forget_peak(device: torch.device) -> bool:
    """Let the peak be that of what follows; False where it stays that of the whole process, as outside Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak: of the allocator on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss counts the parent's memory too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
