"""``product-decay``: a Frobenius penalty on the change of each matrix, instead of one on its factors.

    P = lambda / 2  sum |dW|_F^2,    dW = s B A,    |dW|_F^2 = s^2 tr(B^T B A A^T)
    dP/dB = lambda s^2 B (A A^T),    dP/dA = lambda s^2 (B^T B) A

Weight decay on the factors A and B is, at balanced factors, a penalty on the nuclear norm of B A. The hypothesis, from
the symbolic model, was that the nuclear norm favours shared directions that carry inference over arbitrary links, and
the Frobenius norm does not. In SmolLM2 a penalty on either lowers that inference (ocr_eval/docs/scorecard.md). The
gradients need only r x r Gram matrices. They are added to those of the loss after clipping and go through Adam, so the
size of lambda cancels once the loss is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr_eval.methods.prevention import Prevention
from ocr_eval.preventions.factor_decay import Settings

if TYPE_CHECKING:
    from ocr_eval.methods.pack import Learner


class ProductDecay(Prevention):
    """Adds the penalty's gradient at each step."""

    about = "Frobenius penalty on the change of each matrix, instead of one on its factors"
    Settings = Settings
    needs_adapters = True

    def before_step(self, learner: Learner) -> None:
        for each in learner.factors:
            a_RI, b_RO, factor = each.a, each.b, self.settings.strength * each.scale**2
            each.grad_b.addmm_(a_RI @ a_RI.T, b_RO, alpha=factor)
            each.grad_a.addmm_(b_RO @ b_RO.T, a_RI, alpha=factor)
