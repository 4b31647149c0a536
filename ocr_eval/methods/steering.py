"""``steering``: trains only one constant vector, which is added to the residual stream after one layer.

    h <- h + scale u          at every token, after layer l; u trained as LoRA's factors are, from zero

(Wang et al., arXiv 2507.08218, train such a vector on one layer's MLP output, as we do here. If the MLP writes directly
into the residual stream, as in Llama, the two are the same; Gemma normalizes the MLP output first.)

This is the negative baseline. A constant cannot distinguish people, so it cannot even learn the facts. It can make the
answers in use likely, and that is the null. A score above the null would have to come from something other than the
facts.

The default layer is the middle one. Adam moves each element of u by about the learning rate per step, and the residual
stream is much larger than a LoRA factor; hence the scale of 10. In 64 steps at 2e-3 an element can move by 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from ocr_eval.methods.method import Method, Needs, settings_of

if TYPE_CHECKING:
    import torch

    from ocr_eval.methods.vectors import Vectors
    from ocr_eval.specs.model import TrainSpec


class Settings(BaseModel, extra="forbid", frozen=True):
    """Which layer, and how large."""

    layer: Annotated[int | None, Field(ge=0, description="The layer, from 0; by default the middle one.")] = None
    scale: Annotated[float, Field(gt=0, le=1e4, description="Factor on the trained vector.")] = 10.0


class Steering(Method):
    """One vector per run; runs with the same layer train side by side."""

    label = "steering"
    about = "One constant vector after one layer: the negative baseline (Wang et al., arXiv 2507.08218)"
    needs = Needs(adapters=False, matrices=False)
    ignores = frozenset({"rank", "alpha", "targets"})
    by_layer = True
    Settings = Settings

    def mount(self, network: Any, trains: Sequence[TrainSpec], dtype: torch.dtype) -> Vectors:
        from ocr_eval.methods.vectors import Vectors
        from ocr_eval.models.architecture import down_projection

        settings: Settings = settings_of(trains[0])
        middle = network.config.get_text_config().num_hidden_layers // 2
        module = down_projection(network, middle if settings.layer is None else settings.layer)
        return Vectors(network, module, len(trains), settings.scale)
