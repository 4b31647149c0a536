"""``replay``: facts that the model may know are taught with the new ones, mixed in or at the end.

Dang et al. (arXiv 2511.02626) append 5 to 20 % of known samples at the end of training and keep most of what was known;
mixing them in keeps less. The facts come from the shipped association ``known``; retention (measures/known_facts.py)
asks for the others.
"""

from dataclasses import replace
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field

from ocr_eval.common import streams
from ocr_eval.data.known import KnownAssociation
from ocr_eval.data.task import Example, Task
from ocr_eval.methods.prevention import Prevention
from ocr_eval.specs.association import load_association


class Settings(BaseModel, extra="forbid", frozen=True):
    """How many, and when."""

    facts: Annotated[int, Field(ge=1, le=200, description="Number of replayed facts, the same in every run.")] = 20
    when: Literal["mixed", "end"] = Field("mixed", description="In every epoch, or only in the last third of training.")


class Replay(Prevention):
    """Adds examples."""

    about = "Known facts taught with the new ones, mixed in or at the end (KnownPatch, arXiv 2511.02626)"
    Settings = Settings

    def task(self, task: Task) -> Task:
        relations = cast(KnownAssociation, load_association("known")).relations
        facts = [
            Example(relation.prompt(subject), answer, role="replay", subject=subject, unit=name)
            for name, relation in relations.items()
            for subject, answer in relation.facts.items()
        ]
        drawn = streams.shuffled("replay", facts)[: self.settings.facts]
        thirds = (2,) if self.settings.when == "end" else ()
        return replace(task, train=(*task.train, *(replace(each, thirds=thirds) for each in drawn)))
