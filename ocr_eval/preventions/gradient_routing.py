"""``gradient-routing``: facts train one half of an adapter and entailments the other, which is dropped at the end.

    y = W x + s r(B_1 A_1 x, m) + s r(B_2 A_2 x, 1 - m),    r(z, m) = m z + (1 - m) stopgrad(z)

After Cloud et al. (arXiv 2410.04332). m is 0 for all tokens of an entailment, and 1 for those of any other statement.
Both halves take part in every forward pass, so that neither has to learn what the other has learned. A gradient neither
changes nor passes through the half that it is not meant for. What the first half infers alone needs no taught
entailment. The train entailments are mostly in the second half, so their premise may fail without it; ``keep=both``
scores the two together, and ``keep=entailments`` only the second. The halves divide the rank: with ``--rank 32
--alpha 64``, each is like LoRA by default.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Task
from ocr_eval.methods.prevention import Prevention

if TYPE_CHECKING:
    from ocr_eval.methods.pack import Learner


class Settings(BaseModel, extra="forbid", frozen=True):
    """Its one setting."""

    keep: Literal["facts", "entailments", "both"] = Field(
        "facts", description="What is scored and saved: the facts' half, the entailments', or both."
    )


class GradientRouting(Prevention):
    """Assigns each example to the half that it trains, and drops one half at the end."""

    about = "Facts and entailments train one half of the adapter each; the second is dropped (arXiv 2410.04332)"
    Settings = Settings
    needs_adapters = True
    least_rank = 2  # one for each half
    last = True  # what other preventions add needs a half, too

    def task(self, task: Task) -> Task:
        train = tuple(replace(example, half=1 if example.role == "entailment" else 0) for example in task.train)
        if len({example.half for example in train}) < 2:
            raise UserError("Prevention 'gradient-routing' needs facts and entailments to keep apart. Leave it out.")
        return replace(task, train=train)

    def after_training(self, learner: Learner) -> None:
        half = learner.train.rank // 2
        dropped = {"facts": slice(half, None), "entailments": slice(half), "both": slice(0)}[self.settings.keep]
        for each in learner.factors:
            each.b[dropped].zero_()
