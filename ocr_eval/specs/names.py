"""Fictitious people: frozen lists of names, and the draw of subjects from them.

The lists are part of the package because name generators change between versions. No name is or contains an
answer of a shipped association (no Paris, no Ruby, no Carpenter), so names give nothing away.
"""

from importlib.resources import files

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError

FIRST_NAMES, LAST_NAMES = (
    files("ocr_eval.specs").joinpath(f"{which}_names.txt").read_text("utf-8").split() for which in ("first", "last")
)
#: First names that are one token each, all distinct, under the tokenizers of all shipped models: for people who are
#: answers.
ANSWER_NAMES = files("ocr_eval.specs").joinpath("answer_names.txt").read_text("utf-8").split()
MAX_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES)


def people(stream: str, count: int) -> list[str]:
    """Draw ``count`` distinct full names ("Grace Miller").

    First names and last names are each dealt in random order, so that few subjects share one: the k-th
    block of len(FIRST_NAMES) subjects pairs the first names with the last names shifted by a random
    offset that no other block has.

    Raises:
        UserError: more subjects than the list has full names.
    """
    if count > MAX_PEOPLE:
        raise UserError(
            f"{count:,} subjects are more than the {MAX_PEOPLE:,} available names. Lower --n, --m-train or --m-test."
        )
    first = streams.shuffled(f"{stream}/first", FIRST_NAMES)
    last = streams.shuffled(f"{stream}/last", LAST_NAMES)
    offsets = streams.permutation(f"{stream}/offset", len(last))
    names = []
    for i in range(count):
        block, j = divmod(i, len(first))
        names.append(f"{first[j]} {last[(j + offsets[block]) % len(last)]}")
    return names
