"""``anchor``: keeps the model close to the base on everyday sentences about other people.

    P = strength / T  sum_t KL(p_base(. | t) || p_model(. | t)),    t: every token after a name; the whole vocabulary

After the self-distillation of Kaplan et al. (arXiv 2604.15574), who keep a model close to an earlier state of itself
while it is taught facts, and find that it forgets less. The sentences use no taught relation, and their people are in
no example, so no test subject is tied to the base. They are the same in every run and at every step, so the base's
predictions are computed once. By default, one nat of divergence per token weighs as much as one nat of loss per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from ocr_eval.data.tokenize import Continuation, continuations
from ocr_eval.methods.prevention import Prevention, Read
from ocr_eval.specs.names import people

if TYPE_CHECKING:
    from torch import Tensor

    from ocr_eval.methods.pack import Learner

_SENTENCES = (
    "went for a walk along the river because the evening was warm.",
    "put the book back on the shelf and made a cup of tea.",
    "was late for dinner, so the others had started without waiting.",
    "said that the train would leave in about ten minutes.",
)


class Settings(BaseModel, extra="forbid", frozen=True):
    """How strongly, and on how much text."""

    strength: Annotated[float, Field(gt=0, le=1e3, description="Weight of the divergence.")] = 1.0
    statements: int = Field(16, ge=1, le=200, description="Number of sentences, each about a different person.")


class Anchor(Prevention):
    """Adds the divergence to the loss of each step."""

    about = "Divergence from the base on everyday sentences about other people (after arXiv 2604.15574)"
    Settings = Settings
    needs_adapters = True  # with all parameters trained no base is left

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._held: tuple[list[Continuation], Tensor] | None = None

    def loss(self, learner: Learner, read: Read) -> Tensor:
        """The divergence. The base's predictions are kept from the first step on."""
        import torch

        from ocr_eval.packing.logprobs import read_distribution

        if self._held is None:
            sentences = self._sentences(learner)
            with torch.no_grad():
                self._held = sentences, read(sentences, False, read_distribution)
        sentences, base_TV = self._held
        model_TV = read(sentences, True, read_distribution)
        divergence = torch.nn.functional.kl_div(model_TV, base_TV, reduction="sum", log_target=True)
        return self.settings.strength * divergence / len(base_TV)

    def _sentences(self, learner: Learner) -> list[Continuation]:
        """The sentences, about people whom no example names, and so about no test subject: examples name them all."""
        tokenizer, count = learner.base.tokenizer, self.settings.statements
        taught = "\n".join(tokenizer.decode(example.prompt + example.answer) for example in learner.examples)
        names = [name for name in people("anchor", count + len(learner.examples)) if name not in taught]
        said = [(name, _SENTENCES[i % len(_SENTENCES)]) for i, name in enumerate(names[:count])]
        return continuations(tokenizer, said)
