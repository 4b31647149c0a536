"""Where a result comes from: versions, commit, device, and the digest of the code."""

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ocr_eval import __version__

_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy")


@functools.cache
def code_digest() -> str:
    """Twelve hex digits over the package's source at the first call. Provenance only, not part of any name."""
    digest = hashlib.sha256()
    for path in sorted((*_PACKAGE.rglob("*.py"), *_PACKAGE.rglob("*_names.txt"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that a result may depend on."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def environment(device: str) -> dict[str, Any]:
    """The content of env.json: versions, commit and dirty flag, machine, threads, CPU instructions, device."""
    import torch

    return {
        "ocr_eval": __version__,
        "code": code_digest(),
        **_commit(),
        "python": platform.python_version(),
        "libraries": library_versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_ability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
    }


def _commit() -> dict[str, Any]:
    """Commit and dirty flag if the package runs from its own git checkout, else None for both."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(_PACKAGE.parent), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    if not (_PACKAGE.parent / ".git").exists():
        return {"commit": None, "dirty": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
