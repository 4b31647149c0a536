"""``in-context``: the prompt contains everything that is taught, before every question; no weight changes.

    context = "<statement 1>.\\n<statement 2>.\\n ..."          facts and train entailments, each once, in random order

This is the upper baseline for edits that should propagate (RippleEdits, TACL 2024). On matched data it generalizes
further than fine-tuning (Lampinen et al., arXiv 2505.00661). Probes branch off the end of the context, which each pass
computes once. A question starts a line and has the same tokens as it has alone; a BOS comes before the context.

The order comes from the run's order stream: ``--train-seed 0-2`` gives three orders, which tables average before they
look at seeds of the data.

The run has one epoch. Its train_loss is that of the taught answers as the model reads them in the context, each after
the statements before it; nothing was minimized. As for any method, probes show how well the premises hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ocr_eval.methods.method import TRAINING, Method, Needs

if TYPE_CHECKING:
    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.context import ContextPack
    from ocr_eval.models.base import Base
    from ocr_eval.specs.run import RunSpec


class InContext(Method):
    """One context per run; runs are scored side by side."""

    label = "in context"
    about = "Statements in the prompt; no weights change (Lampinen et al., arXiv 2505.00661)"
    needs = Needs(adapters=False, matrices=False, once=True)
    ignores = TRAINING

    def check(self, spec: RunSpec, tokenizer: Any | None) -> None:
        """Count the tokens of the context."""
        from ocr_eval.data.tokenize import training_tokens
        from ocr_eval.methods.context import draw_context
        from ocr_eval.methods.prevention import task_of_run
        from ocr_eval.models.architecture import read_config

        if tokenizer is not None:
            draw_context(tokenizer, read_config(spec.model), spec, training_tokens(tokenizer, task_of_run(spec)))

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> ContextPack:
        """Write down what each run will read; raises UserError if that is too long for the model."""
        from ocr_eval.methods.context import ContextPack, draw_context

        given = (base.tokenizer, base.network.config)
        return ContextPack(base, [draw_context(*given, spec, each) for spec, each in zip(specs, examples, strict=True)])
