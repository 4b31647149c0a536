"""``memit``: facts written into several layers' down projections at once (Meng et al., arXiv 2210.07229).

    z_s = h_s + delta_s             at the output of the last layer, delta_s optimized as in methods/edits.py
    for each layer l in order:      R = (z - h) / (layers left),  h after the edits so far
                                    dW_l = R^T K (lambda C + K^T K)^-1        in fp64

A row of K is a subject's mean key at layer l; C = E[k k^T] over a text. A subject has one z for its fact and its
entailment, because their keys coincide (MEMIT-Merge, arXiv 2502.07322).

The defaults come from 7B Llama settings and prototypes on SmolLM2-135M: layers from an eighth to a third of the depth
(4 to 10 of 30), 25 steps at 0.5, clamp 4, decay 1e-3, KL 0.0625. lambda weighs C against the keys. The published 15,000
was tuned for down projections with ten times as many inputs, whose keys are ten times larger in C's metric; here 100.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ocr_eval.common.errors import UserError
from ocr_eval.methods.method import LayerRange, layers_of, settings_of
from ocr_eval.methods.rome import Editing, Search

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ocr_eval.methods.adapters import Adapters
    from ocr_eval.methods.edits import Pass
    from ocr_eval.models.base import Base
    from ocr_eval.specs.model import TrainSpec


class Settings(Search, frozen=True):
    """Where, and how."""

    layers: LayerRange = Field(
        None, description="First and last layer, from 0, as in 4-10; by default an eighth to a third of the depth."
    )
    lam: Annotated[float, Field(gt=0, le=1e9, description="Weight of the covariance against the new keys.")] = 100.0


class Memit(Editing):
    """Edits of several matrices per run, over a shared base."""

    label = "MEMIT"
    about = "All facts at once, into several layers, by least squares (Meng et al., arXiv 2210.07229)"
    Settings = Settings

    def edited(self, network: PreTrainedModel, train: TrainSpec) -> list[str]:
        """The down projections of a range of layers; also raises UserError if MLP outputs are normalized or scaled."""
        from ocr_eval.models.architecture import down_projection

        depth = network.config.get_text_config().num_hidden_layers
        layers = layers_of(settings_of(train).layers or f"{depth // 8 + (depth > 8)}-{depth // 3}")
        modules = [down_projection(network, layer) for layer in layers]
        block = network.get_submodule(_block(modules[-1]))
        if hasattr(block, "post_feedforward_layernorm") or hasattr(block, "post_mlp_layernorm"):
            raise UserError("The model normalizes MLP outputs, so edits do not add up over layers. Use --method rome.")
        if getattr(block, "residual_multiplier", 1.0) != 1.0:
            raise UserError("The model scales its MLP outputs, so edits do not add up over layers. Use --method rome.")
        return modules

    def edit(
        self, base: Base, settings: Any, moments: dict[str, Tensor], adapters: Adapters, lane: int, passes: list[Pass]
    ) -> Tensor:
        """Layer after layer, an equal share of what is left of z."""
        from ocr_eval.methods.edits import least_squares_update, means_at_subjects, seek

        layers = adapters.factors(lane)
        block = _block(layers[-1].module)
        deltas_SO, nll_S = seek(base, passes, block, settings)
        z_SO = means_at_subjects(base, passes, block, of_input=False) + deltas_SO
        for left, factors in zip(range(len(layers), 0, -1), layers, strict=True):
            keys_SI = means_at_subjects(base, passes, factors.module, of_input=True)
            here_SO = means_at_subjects(base, passes, block, of_input=False)
            factors.a.copy_(least_squares_update(keys_SI, moments[factors.module], settings.lam))
            factors.b.copy_((z_SO - here_SO) / left)
            adapters.refresh()
        return nll_S


def _block(down_projection: str) -> str:
    """The layer of the last down projection, at whose output z is optimized."""
    return down_projection.removesuffix(".mlp.down_proj")
