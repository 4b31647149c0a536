"""Measure what else a language model learns when it is taught facts.

The names below are the Python interface (``ocr_eval/docs/python.md``). Each is loaded when it is first used, so neither
``import ocr_eval`` nor ``ocr-eval --help`` waits for torch.
"""

# ruff: noqa: F403, F405
from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "UserError",
    "draw_figures",
    "epochs_frame",
    "finetune",
    "load_association",
    "load_model",
    "make_run",
    "make_table",
    "measure_run",
    "probes_frame",
    "read_records",
    "records_frame",
    "render_table",
    "score_run",
    "write_report",
]

if TYPE_CHECKING:
    from ocr_eval.api import *

# On import, bitsandbytes advises installing kernels that it does not need.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ocr_eval' has no attribute '{name}'")
    return getattr(import_module("ocr_eval.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
