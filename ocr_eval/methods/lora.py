"""``lora``: low-rank adapters over a frozen base (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ocr_eval.common import streams
from ocr_eval.methods.method import Method

if TYPE_CHECKING:
    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.pack import GradientPack
    from ocr_eval.models.base import Base
    from ocr_eval.specs.run import RunSpec


class Lora(Method):
    """One adapter per run; runs with the same base and adapted modules train side by side."""

    label = "LoRA"
    about = "Low-rank adapters over a frozen base (Hu et al., arXiv 2106.09685)"
    lighter: ClassVar[tuple[str, ...]] = ("qlora",)

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> GradientPack:
        """Put fresh adapters over the base; they change nothing until they are trained (B = 0).

        Each adapter's A matrices come from its run's own initialization stream.
        """
        from ocr_eval.methods.adapters import Adapters
        from ocr_eval.methods.pack import GradientPack

        pack = super().attach(base, specs, examples)
        assert isinstance(pack, GradientPack)
        assert isinstance(pack.adapters, Adapters)
        for lane, spec in enumerate(specs):
            pack.adapters.initialize(lane, streams.integer(spec.stream("initialization")))
        return pack
