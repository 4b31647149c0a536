"""``factor-decay``: an L2 penalty on the factors of an adapter, the counterpart of ``product-decay``.

    P = lambda / 2  sum |A|_F^2 + |B|_F^2,    min over BA = M of (|A|_F^2 + |B|_F^2) / 2  is the nuclear norm of M

At its minimum the factors are balanced, and it is a penalty on the nuclear norm of the change, which in the theory of
Huang et al. (arXiv 2506.10887) causes inference over arbitrary links. In SmolLM2 it lowers that inference as well
(ocr_eval/docs/scorecard.md). Its gradient is added to that of the loss after clipping and goes through Adam; that of
decoupled decay, ``--weight-decay``, does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from ocr_eval.methods.prevention import Prevention

if TYPE_CHECKING:
    from ocr_eval.methods.pack import Learner


class Settings(BaseModel, extra="forbid", frozen=True):
    """Its one setting."""

    strength: Annotated[float, Field(gt=0, le=1e3, description="The factor lambda of the penalty.")] = 1e-3


class FactorDecay(Prevention):
    """Adds the penalty's gradient at each step."""

    about = "L2 penalty on the adapter's factors; at its minimum, on the nuclear norm of the change"
    Settings = Settings
    needs_adapters = True

    def before_step(self, learner: Learner) -> None:
        for each in learner.factors:
            each.grad_a.add_(each.a, alpha=self.settings.strength)
            each.grad_b.add_(each.b, alpha=self.settings.strength)
