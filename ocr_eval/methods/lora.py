"""``lora``: low-rank adapters over a frozen base (Hu et al., arXiv 2106.09685)."""

from typing import ClassVar

from ocr_eval.methods.method import Method


class Lora(Method):
    """One adapter per run; runs with the same base and adapted modules train side by side."""

    label = "LoRA"
    about = "Low-rank adapters over a frozen base (Hu et al., arXiv 2106.09685)"
    lighter: ClassVar[tuple[str, ...]] = ("qlora",)
