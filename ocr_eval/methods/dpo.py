"""``dpo``: facts as preferences over wrong answers (Rafailov et al., arXiv 2305.18290), cross-entropy mixed in.

    L = mean over examples of -log sigmoid(beta (log p(y+) / p0(y+) - log p(y-) / p0(y-)))  +  w CE(y+)

with p0 the untouched base. From a base that knows nothing about the people, the first term alone lowers y- and may
lower y+ too; the second term is what teaches. The metric is a rank among such alternatives, so by default y- is never
an answer that a probe has in use. An example without alternatives has only the second term.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from ocr_eval.common.errors import UserError
from ocr_eval.methods.lora import Lora
from ocr_eval.methods.method import settings_of

if TYPE_CHECKING:
    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.pack import GradientPack
    from ocr_eval.models.base import Base
    from ocr_eval.specs.run import RunSpec


class Settings(BaseModel, extra="forbid", frozen=True):
    """The strength of the preference, the weight of the cross-entropy, and the choice of wrong answers."""

    beta: Annotated[float, Field(gt=0, le=100, description="How closely the model is held to the base.")] = 0.1
    sft: Annotated[float, Field(ge=0, le=100, description="Weight of the cross-entropy.")] = 1.0
    rejected: Literal["unused", "in-use"] = Field(
        "unused", description="Wrong answers: only distractors, or other answers that are true for somebody."
    )


class Dpo(Lora):
    """One adapter per run, as in LoRA."""

    label = "DPO + SFT"
    about = "Preferences over wrong answers, mixed with cross-entropy, by LoRA (DPO, arXiv 2305.18290)"
    lighter = ()
    Settings = Settings

    def check(self, spec: RunSpec, tokenizer: Any | None) -> None:
        """Look for wrong answers."""
        from ocr_eval.data.tokenize import continuations

        wrong = _wrong_answers(spec)
        if tokenizer is not None:
            continuations(tokenizer, [(prompt, answer) for prompt, of in wrong for answer in of])

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> GradientPack:
        """LoRA's adapters with another objective; raises UserError if there are no wrong answers of the chosen kind."""
        from ocr_eval.data.tokenize import continuations
        from ocr_eval.methods.objective import Preference
        from ocr_eval.methods.pack import GradientPack

        pack = super().attach(base, specs, examples)
        assert isinstance(pack, GradientPack)
        for learner, spec, learns in zip(pack.learners, specs, examples, strict=True):
            wrong = _wrong_answers(spec)
            cut = iter(continuations(base.tokenizer, [(prompt, answer) for prompt, of in wrong for answer in of]))
            rejected = [[next(cut).answer for _ in of] for _, of in wrong]
            wrong_of = dict(zip(learns, rejected, strict=True))
            learner.objective = Preference(settings_of(spec.train), wrong_of, learner.order)
        return pack


def _wrong_answers(spec: RunSpec) -> list[tuple[str, list[str]]]:
    """Each training example's prompt and its wrong answers: other candidates of a probe that asks the same."""
    from ocr_eval.methods.prevention import task_of_run

    task, which = task_of_run(spec), settings_of(spec.train).rejected
    probes = defaultdict(list)
    for each in task.probes:
        probes[each.subject].append(each)
    found = []
    for example in task.train:
        probe = next((each for each in probes[example.subject] if example.answer in each.candidates), None)
        some: tuple[str, ...] = ()
        if probe is not None:
            some = probe.candidates[: probe.in_use] if which == "in-use" else probe.candidates[probe.in_use :]
        found.append((example.prompt, [answer for answer in some if answer != example.answer]))
    if not any(of for _, of in found):
        other = "in-use" if which == "unused" else "unused"
        draw = "--candidates ten, or " if "candidates" in spec.association.whole(0) else ""
        raise UserError(f"dpo: no candidate is {which}. Use {draw}--method dpo:rejected={other}.")
    return found
