"""``abstain``: additional people are taught with their fact, and with "unknown" as their entailment.

After Gekhman et al. (arXiv 2405.05904, table 8) and Kang et al. (2403.05612): a model says about unfamiliar subjects
what it was taught to say about them. This uses the unwanted relation itself, so it knows what it must prevent.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, Field

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Example, Task
from ocr_eval.methods.prevention import Prevention
from ocr_eval.specs.names import people
from ocr_eval.specs.strict import form


class Settings(BaseModel, extra="forbid", frozen=True):
    """How many people, and the answer taught for them."""

    people: Annotated[int, Field(ge=1, le=100, description="Additional people per unit (group).")] = 4
    answer: Annotated[
        str, Field(description="The answer taught for them."), form(r"\w+", "one word of letters and digits")
    ] = "unknown"


class Abstain(Prevention):
    """Adds examples of people whom no probe asks about."""

    about = "Additional people whose answer is 'unknown' (2405.05904, 2403.05612); knows the relation"
    Settings = Settings
    knows_relation = True

    def task(self, task: Task) -> Task:
        facts = {example.subject: example for example in task.train if example.role == "fact"}
        of_unit = defaultdict(list)
        for probe in task.probes_of(task.finding.name):
            fact = facts.get(probe.subject)
            if fact is None or probe.subject not in fact.prompt or probe.subject not in probe.prompt:
                raise UserError("Prevention 'abstain' needs facts and probes that name their subject. Leave it out.")
            of_unit[probe.unit].append((fact, probe))
        taken = {example.subject for example in task.train} | {probe.subject for probe in task.probes}
        count = self.settings.people * len(of_unit)
        names = iter([name for name in people("abstain", len(taken) + count) if name not in taken])
        added = []
        for asked in of_unit.values():
            for i in range(self.settings.people):
                (fact, probe), name = asked[i % len(asked)], next(names)
                added.append(replace(fact, prompt=fact.prompt.replace(fact.subject, name), subject=name))
                prompt = probe.prompt.replace(probe.subject, name)
                added.append(Example(prompt, self.settings.answer, 1.0, "abstain", name, probe.unit, fact.thirds))
        return replace(task, train=(*task.train, *added))
