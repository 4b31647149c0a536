"""``ignore-top-k``: after training, the largest entries of each matrix's change are dropped.

    dW_ij <- 0  if |dW_ij| is among the largest entries of its matrix, a share k of them;  nothing is rescaled

After Sun et al. (arXiv 2504.09522), who do so after full fine-tuning, for each parameter tensor, with k of 4 or 8 %:
unwanted inference from a new text falls by half or more, and the text stays memorized. For an adapter, this applies to
the product B A and not to each factor; what remains has full rank, and so does the saved adapter (0.3 GB in bfloat16
for SmolLM2-135M).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from ocr_eval.methods.prevention import Prevention

if TYPE_CHECKING:
    from torch import Tensor

    from ocr_eval.methods.pack import Learner


class Settings(BaseModel, extra="forbid", frozen=True):
    """Its one setting."""

    share: Annotated[float, Field(gt=0, lt=1, description="Share of the entries that are dropped.")] = 0.08


class IgnoreTopK(Prevention):
    """Rewrites the change of each matrix."""

    about = "Drops the largest entries of each matrix's change after training (arXiv 2504.09522)"
    Settings = Settings
    needs_matrices = True

    def after_training(self, learner: Learner) -> None:
        """Drop the largest entries, above a limit that is found when a change is first read."""
        limits: dict[str, float] = {}

        def without_largest(name: str, change: Tensor) -> Tensor:
            sizes = change.abs()
            if name not in limits:
                kept = sizes.numel() - int(self.settings.share * sizes.numel())
                limits[name] = float(sizes.flatten().cpu().kthvalue(kept).values)
            return change.where(sizes <= limits[name], 0)

        learner.rewrite(without_largest)
