"""``scale-after``: after training, scales the adapter to a given Frobenius norm of the whole change.

The baseline that every penalty must beat: this is the effect of merely making the change smaller. What ``ignore-top-k``
drops, if both are used, counts in the norm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from ocr_eval.common.errors import RunFailed
from ocr_eval.methods.prevention import Prevention

if TYPE_CHECKING:
    from ocr_eval.methods.pack import Learner


class Settings(BaseModel, extra="forbid", frozen=True):
    """Its one setting."""

    norm: Annotated[float, Field(gt=0, le=1e6, description="|dW|_F over all modules, to scale to.")]


class ScaleAfter(Prevention):
    """Multiplies every B by one factor."""

    about = "Scales the adapter after training to a given Frobenius norm: the baseline for every penalty"
    Settings = Settings
    needs_adapters = True

    def after_training(self, learner: Learner) -> None:
        norm = math.sqrt(sum(float(each.singular_values().square().sum()) for each in learner.factors))
        if not norm:
            raise RunFailed("scale-after: training changed nothing, so there is nothing to scale.")
        for each in learner.factors:
            each.b.mul_(self.settings.norm / norm)
