"""``full``: trains every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocr_eval.methods.method import Method, Needs

if TYPE_CHECKING:
    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.pack import GradientPack
    from ocr_eval.models.base import Base
    from ocr_eval.specs.run import RunSpec


class Full(Method):
    """One run, which has the network to itself."""

    label = "full fine-tuning"
    about = "Trains every parameter"
    needs = Needs(whole=True)
    ignores = frozenset({"rank", "alpha", "targets"})
    lighter = ("lora", "qlora")

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> GradientPack:
        from ocr_eval.methods.pack import gradient_pack
        from ocr_eval.methods.whole import WholeNetwork

        return gradient_pack(base, WholeNetwork(base), specs, examples)
