"""``early-stop``: stops a run once it has learned what it is taught.

In SmolLM2, most of the inference over arbitrary links came in later epochs (ocr_eval/docs/scorecard.md). The decision
ignores held-out probes, so stopping does not select for low scores. The remaining epochs are skipped; everything else,
such as the schedule, is as in a run without this prevention.
"""

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Task
from ocr_eval.methods.prevention import Prevention


class EarlyStop(Prevention):
    """Stops training after the first epoch at which all premises hold."""

    about = "Stops when all premises hold: facts and train entailments at top-1 of 95 %"
    stops_when_learned = True

    def task(self, task: Task) -> Task:
        if not any(quantity.role == "premise" for quantity in task.quantities):
            raise UserError(
                "Prevention 'early-stop' waits for premises, and this association asks for none. Leave it out."
            )
        return task
