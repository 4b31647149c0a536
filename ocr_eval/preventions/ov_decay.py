"""``ov-decay``: a Frobenius penalty on the change of each attention head's output-value matrix.

    P = lambda / 2  sum_h |M_h|_F^2,    M_h = O'_h V'_g - O_h V_g = O_h dV_g + dO_h V'_g = [O_h dO_h] [dV_g; V'_g]
    dP/dO_h = lambda M_h V'_g^T,        dP/dV_g = lambda sum_h O'_h^T M_h    over the query heads h of group g

O_h are the columns of o_proj that read head h, V_g the rows of v_proj of its group; a prime marks the trained weights.
Huang et al. (arXiv 2506.10887) prove their result for this matrix. Trained as factors O and V, it finds the smallest
nuclear norm and infers over arbitrary links; trained as one matrix, it finds the smallest Frobenius norm and does not.
This prevention tests whether a penalty has the same effect in a language model. ``product-decay`` treats O and V
separately. No M_h is formed: products go through matrices of twice a head's size.

Weights are taken as stored: gains of norms before v_proj or after o_proj are not folded in. The penalty's gradient is
added to that of the loss after clipping and goes through Adam. At the default strength, ``product-decay`` kept what was
taught. Here the weights of one side scale the change of the other, so the two strengths are not comparable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from ocr_eval.common.errors import UserError
from ocr_eval.methods.prevention import Prevention

if TYPE_CHECKING:
    from torch import Tensor

    from ocr_eval.methods.changes import Factors
    from ocr_eval.methods.pack import Learner


class Settings(BaseModel, extra="forbid", frozen=True):
    """Its one setting."""

    strength: Annotated[float, Field(gt=0, le=1e3, description="The factor lambda of the penalty.")] = 1e-2


class OVDecay(Prevention):
    """Adds the penalty's gradient at each step."""

    about = "Frobenius penalty on the change of each head's output-value matrix (arXiv 2506.10887)"
    Settings = Settings
    needs_adapters = True
    reads_base = True

    def before_step(self, learner: Learner) -> None:
        factors = {each.module: each for each in learner.factors}
        pairs = [(o, factors.get(f"{name[:-6]}v_proj")) for name, o in factors.items() if name.endswith("o_proj")]
        heads = learner.base.network.config.get_text_config().num_attention_heads
        found = [(o, v) for o, v in pairs if v is not None]
        if not found:
            raise UserError("ov-decay needs adapters on both v_proj and o_proj of a layer. Name both in --targets.")
        for o, v in found:
            _add_gradient(o, v, _weight(learner, o), _weight(learner, v), heads, self.settings.strength)


def _weight(learner: Learner, of: Factors) -> Tensor:
    """The base's weight under an adapter. [O, I]"""
    weight: Tensor = learner.base.network.get_submodule(of.module).base.weight
    return weight.to(of.a.device).float()


def _add_gradient(o: Factors, v: Factors, o_DX: Tensor, v_YI: Tensor, heads: int, strength: float) -> None:
    """Add a layer's gradient; H heads of size k, G groups, X = H k, Y = G k, D outputs, I inputs."""
    import torch

    size = o_DX.shape[1] // heads
    groups = len(v_YI) // size

    def by_head(o_DX: Tensor) -> Tensor:
        return o_DX.view(-1, heads, size).transpose(0, 1)  # [H, D, k]

    def of_group(v_YI: Tensor) -> Tensor:
        return v_YI.view(groups, size, -1).repeat_interleave(heads // groups, dim=0)  # [H, k, I]

    do, dv = by_head(o.dense()), of_group(v.dense())
    after_o, after_v = by_head(o_DX) + do, of_group(v_YI) + dv
    left, right = torch.cat([by_head(o_DX), do], dim=2), torch.cat([dv, after_v], dim=1)
    grad_o_DX = (left @ (right @ after_v.mT)).transpose(0, 1).reshape(o_DX.shape)
    grad_v_HkI = (after_o.mT @ left) @ right
    grad_v_YI = grad_v_HkI.view(groups, heads // groups, size, -1).sum(1).reshape(v_YI.shape)
    for each, grad in ((o, grad_o_DX), (v, grad_v_YI)):
        each.grad_b.addmm_(each.a, grad.T, alpha=strength * each.scale)
        each.grad_a.addmm_(each.b, grad, alpha=strength * each.scale)
