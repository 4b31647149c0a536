"""The state of this machine: versions, devices, memory, caches, network."""

import platform
import shutil
from typing import Any

from ocr_eval import __version__
from ocr_eval.common import provenance, yaml_files
from ocr_eval.models import hub, weights
from ocr_eval.specs.model import load_model_spec


def examine() -> dict[str, Any]:
    """Information for finding out why a run does not start, as plain values."""
    import psutil
    import torch

    cache = weights.cache_folder()
    disk = next(path for path in (cache, *cache.parents) if path.exists())
    memory = psutil.virtual_memory()
    there_is = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
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
        "mps": there_is["mps"],
        "dtype": {device: _precision(device) for device, there in there_is.items() if there},
        "cache": {"folder": str(cache), "free_gb": _gb(shutil.disk_usage(disk).free)},
        "offline": hub.offline(),
        "models_in_cache": {
            name: weights.cached(load_model_spec(name)) is not None for name in yaml_files.shipped_names("models")
        },
    }


def _precision(device: str) -> str:
    """What ``dtype: auto`` means on a device, why, and how fast each precision is now."""
    import torch

    from ocr_eval.models.precision import choose
    from ocr_eval.planning.timing import rates

    chosen = choose(device)
    measured = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates(torch.device(device)).items())
    untested = "; untested" * chosen.untested
    return f"{chosen.dtype} ({chosen.reason}{untested}; GFLOP/s measured now: {measured})"


def _gb(size: int) -> float:
    return round(size / 1e9, 1)
