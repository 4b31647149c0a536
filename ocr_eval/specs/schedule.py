"""The epochs at which all probes are scored (``--score-at``), which affects neither training nor a run's name.

    doubling   1, 2, 4, 8 ...      every   all      every:5   5, 10, 15 ...      last   none but the last      1,3,12

Epoch 0, the last epoch and the first at which all premises hold are always scored.
"""

import re
from typing import Annotated

from ocr_eval.common.errors import UserError
from ocr_eval.specs.strict import form

DEFAULT = "doubling"
_FORM = "doubling|last|every|every:[1-9][0-9]*|[1-9][0-9]*(,[1-9][0-9]*)*"
_ALLOWED = "doubling, every, every:5, last, or epochs such as '1,3,12'"

#: A schedule as text.
ScoreAt = Annotated[str, form(_FORM, _ALLOWED)]


def checked(text: str, where: str, epochs: int | None = None) -> str:
    """A valid schedule, unchanged; ``where`` names its source in the error, ``epochs`` is the number that there are.

    Raises:
        UserError: not a schedule, or it lists an epoch after the last.
    """
    if re.fullmatch(_FORM, text) is None:
        raise UserError(f"{where} '{text}': give {_ALLOWED}.")
    listed = [int(epoch) for epoch in text.split(",") if epoch.isdigit()]
    if epochs is not None and max(listed, default=0) > epochs:
        raise UserError(f"{where} '{text}': there is no epoch {max(listed)}; the last is {epochs}. Drop it.")
    return text


def is_due(schedule: str, epoch: int) -> bool:
    """Whether all probes are scored after this epoch, counted from 1."""
    kind, _, step = schedule.partition(":")
    if kind == "doubling":
        return epoch.bit_count() == 1
    return epoch % int(step or 1) == 0 if kind == "every" else str(epoch) in schedule.split(",")
