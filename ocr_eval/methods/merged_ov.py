"""``merged-ov``: trains the product of value and output matrix of each attention head directly, as one dense matrix.

    attention output of a layer at n  +=  sum_h dW_h sum_m A^h_nm x_m          all else frozen; dW_h from zero, by AdamW

A^h are the attention weights of query head h and x is the layer's input after its norm. Huang et al. (arXiv 2506.10887)
prove for a one-layer model that the factorized parametrization W_O W_V infers over arbitrary links and the merged one
W_OV does not, so this is the remedy that the theorem suggests. Its factorized counterpart is LoRA on v_proj and o_proj
of the same layers (``--method lora --targets 15.self_attn.v_proj+15.self_attn.o_proj``).

The theorem does not cover the frozen rest of the model: names are not orthogonal vectors, and later layers may derive
an entailment from what is written for a fact. And AdamW from zero does not approach the smallest Frobenius norm as
gradient descent does; ``--weight-decay`` penalizes the norm.

The default is the middle third of the layers. In a pilot on SmolLM2-135M (64 steps) all premises held with these (10 to
19) at the model's default rate of 0.002; layer 15 alone, which is closer to the theorem, needs 0.01.

A head's matrix has D x D entries for a residual stream of width D: for SmolLM2-135M a layer has 3 million, 12 MB, and
for an 8B model with 32 heads 537 million, 2 GB; gradients and AdamW's moments take three times as much again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from ocr_eval.methods.method import LayerRange, Method, Needs, layers_of, settings_of

if TYPE_CHECKING:
    import torch

    from ocr_eval.methods.ov_matrices import OVMatrices
    from ocr_eval.specs.model import TrainSpec


class Settings(BaseModel, extra="forbid", frozen=True):
    """Which layers."""

    layers: LayerRange = Field(
        None, description="The layer, or first and last, from 0, as in 15 or 10-12; by default the middle third."
    )


class MergedOV(Method):
    """Matrices of each run over a shared base; runs with the same layers train side by side."""

    label = "merged OV"
    about = "One dense value-output matrix per attention head of some layers (Huang et al., arXiv 2506.10887)"
    needs = Needs(adapters=False)
    ignores = frozenset({"rank", "alpha", "targets"})
    lighter: ClassVar[tuple[str, ...]] = ("lora", "qlora")
    by_layer = True
    in_peft = False
    Settings = Settings

    def mount(self, network: Any, trains: Sequence[TrainSpec], dtype: torch.dtype) -> OVMatrices:
        from ocr_eval.methods.ov_matrices import OVMatrices

        layers: str | None = settings_of(trains[0]).layers
        depth: int = network.config.get_text_config().num_hidden_layers
        middle = range(depth // 3, max(1, 2 * depth // 3))
        return OVMatrices(network, layers_of(layers) if layers else middle, len(trains))
