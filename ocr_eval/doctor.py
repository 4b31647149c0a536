"""What this machine has: versions, devices, memory, caches, network state."""

from __future__ import annotations

import platform
import shutil
from typing import Any

from ocr_eval import __version__, hub, provenance, resources, weights
from ocr_eval.specs import load_model_spec


def examine() -> dict[str, Any]:
    """Everything that helps to find out why a run does not start, as plain values."""
    import psutil
    import torch

    cache = weights.cache_folder()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "ocr_eval": __version__,
        "code": provenance.code_digest(),
        "python": platform.python_version(),
        "libraries": provenance.library_versions(),
        "platform": platform.platform(),
        "cpu": {
            "cores": psutil.cpu_count(),
            "threads_used": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory": {"total_gb": _gb(memory.total), "available_gb": _gb(memory.available)},
        "gpus": [{"name": gpu.name, "memory_gb": _gb(gpu.total_memory)} for gpu in gpus],
        "mps": torch.backends.mps.is_available(),
        "cache": {"folder": str(cache), "free_gb": _gb(shutil.disk_usage(there).free)},
        "offline": hub.offline(),
        "models_in_cache": {name: model_is_here(name) for name in resources.shipped_names("models")},
    }


def model_is_here(name: str) -> bool:
    """Whether a model's weights lie on this disk already."""
    return weights.cached(load_model_spec(name)) is not None


def _gb(size: int) -> float:
    return round(size / 1e9, 1)
