"""``in-context``: what is to be taught stands in the prompt, before every question; no weight changes.

    context = "<statement 1>.\\n<statement 2>.\\n ..."          facts and train entailments, each once, in a drawn order

The upper baseline of edits that propagate (RippleEdits, TACL 2024); in matched data it generalizes further than
fine-tuning (Lampinen et al., arXiv 2505.00661). Probes branch off the end of the context, which a pass computes once.
A question begins a line with the very tokens that it has alone; a BOS stands before the context.

The order is a draw of the run's order stream: ``order`` 0, 1, 2 are three of them, to be averaged over.

The run has one epoch. Its train_loss is that of the taught answers as they are read in the context, each after the
statements before it: nothing was minimized. How well the premises hold is what their probes say, as for any method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from ocr_eval.methods.method import TRAINING, Needs

if TYPE_CHECKING:
    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.context import ContextPack
    from ocr_eval.models.base import Base
    from ocr_eval.specs.run import RunSpec


class Settings(BaseModel, extra="forbid", frozen=True):
    """Which order."""

    order: Annotated[int, Field(ge=0, description="Number of the order that the statements are drawn into.")] = 0


class InContext:
    """A context a run; runs are scored side by side."""

    label = "in context"
    about = "Statements in the prompt, no weights change (Lampinen et al., arXiv 2505.00661)"
    needs = Needs(adapters=False, once=True)
    ignores = TRAINING
    lighter: tuple[str, ...] = ()
    Settings = Settings

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> ContextPack:
        """Write down what each run will read.

        Raises:
            UserError: it is too long for the model.
        """
        from ocr_eval.methods.context import ContextPack, draw_context

        return ContextPack(base, [draw_context(base, spec, each) for spec, each in zip(specs, examples, strict=True)])


IN_CONTEXT = InContext()
