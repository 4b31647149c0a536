"""What a structure of facts builds, and all that the rest of the program sees of it: examples, probes, quantities.

A structure is a kind of association, and turns its file into a ``Task``. Structures are found by name, among those
shipped and the entry points ``ocr_eval.structures`` of other packages (``common.registry.STRUCTURES``).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ocr_eval.common.errors import UserError
from ocr_eval.specs.association import Association
from ocr_eval.specs.run import DataSpec, RunSpec

#: Why a quantity is scored: a premise must be learned, the finding is the result, a retention must survive training.
Role = Literal["premise", "finding", "retention", "shown"]

Half = Literal[0, 1]


@dataclass(frozen=True)
class Example:
    """A sentence to teach, split before its answer: text = prompt + " " + answer.

    Attributes:
        weight: weight of its tokens in the loss.
        role: what kind of sentence it is, in the structure's words.
        unit: the subject's unit (see ``Probe``).
        thirds: the thirds of training, from 0, in which it is taught: with k of them, in every k-th epoch, so that all
            examples are seen equally often. Empty for every epoch.
        half: the half of an adapter's rank that learns it while the other is held constant; None for both.
    """

    prompt: str
    answer: str
    weight: float = 1.0
    role: str = "fact"
    subject: str = ""
    unit: str = ""
    thirds: tuple[int, ...] = ()
    half: Half | None = None

    @property
    def text(self) -> str:
        """The full sentence."""
        return f"{self.prompt} {self.answer}"


@dataclass(frozen=True)
class Probe:
    """A question with a right answer among candidates.

    Attributes:
        candidates: what is ranked; reordered so that those in use come first.
        target: index of the right candidate.
        null: indices of the candidates in use: those that are true of some subject. The null rank is their mean rank.
        quantity: name of the quantity that it belongs to.
        unit: what is exchangeable under the null; subjects of one unit are not independent observations.

    Raises:
        UserError: fewer than two candidates in use, one that occurs twice, or a right one that is not in use.
    """

    prompt: str
    candidates: tuple[str, ...]
    target: int
    null: tuple[int, ...]
    quantity: str
    unit: str
    subject: str

    def __post_init__(self) -> None:
        places = range(len(self.candidates))
        if len(set(self.candidates)) < len(self.candidates):
            raise UserError(f"Probe '{self.prompt}': a candidate occurs twice. List each once.")
        if len(set(self.null)) < len(self.null) or not set(self.null) <= set(places) or len(self.null) < 2:
            raise UserError(f"Probe '{self.prompt}': 'null' must name at least two of the candidates, each once.")
        if self.target not in self.null:
            raise UserError(f"Probe '{self.prompt}': the right answer must be one of the candidates in use ('null').")
        order = [*self.null, *(i for i in places if i not in self.null)]
        object.__setattr__(self, "candidates", tuple(self.candidates[i] for i in order))
        object.__setattr__(self, "target", order.index(self.target))
        object.__setattr__(self, "null", tuple(range(len(self.null))))

    @property
    def answer(self) -> str:
        """The right candidate."""
        return self.candidates[self.target]

    @property
    def in_use(self) -> int:
        """How many candidates are in use (true of some subject); they come first."""
        return len(self.null)


def unit_value(unit: str) -> int | str:
    """A unit as written to files: an integer if it is one."""
    return int(unit) if unit.isdecimal() and str(int(unit)) == unit else unit


@dataclass(frozen=True)
class Quantity:
    """Something that is scored, and why."""

    name: str
    role: Role


def the_finding(quantities: Sequence[Quantity]) -> Quantity:
    """The quantity whose role is ``finding``."""
    (finding,) = (quantity for quantity in quantities if quantity.role == "finding")
    return finding


@dataclass(frozen=True)
class Task:
    """What one run teaches and asks.

    Attributes:
        train: what is taught, in no meaningful order.
        probes: what is asked, before training and after the epochs of a schedule (specs/schedule.py).
        quantities: what the probes measure, in the order in which it is shown; one of them is the finding. Those that
            no probe asks for are dropped.
        whole_answers: whether candidates may share their first token; such a probe is scored by all their
            tokens, under every scoring. If they may not, such a run is rejected.
        personal: whether answers are private and must not be in any record.

    Raises:
        UserError: not exactly one finding, a probe of an undeclared quantity, or a finding that cannot be tested: its
            probes must have distinct subjects, the same number of candidates in use, and one right answer per unit, not
            always in the same place of different lists.
    """

    train: tuple[Example, ...]
    probes: tuple[Probe, ...]
    quantities: tuple[Quantity, ...]
    whole_answers: bool = False
    personal: bool = False

    def __post_init__(self) -> None:
        names = [quantity.name for quantity in self.quantities]
        for name in names:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or names.count(name) > 1:
                raise UserError(f"Quantity '{name}': names must be distinct and use lowercase letters, digits and '_'.")
        findings = sum(quantity.role == "finding" for quantity in self.quantities)
        if findings != 1:
            raise UserError(f"{findings} quantities have the role 'finding' ({', '.join(names)}). Declare one.")
        if not self.train:
            raise UserError("Nothing is taught: a task needs training examples.")
        unknown = next((probe.quantity for probe in self.probes if probe.quantity not in names), None)
        if unknown is not None:
            raise UserError(f"A probe has the quantity '{unknown}', which is not declared ({', '.join(names)}).")
        self._check_finding()
        asked = {probe.quantity for probe in self.probes}
        object.__setattr__(self, "quantities", tuple(each for each in self.quantities if each.name in asked))

    def _check_finding(self) -> None:
        name = self.finding.name
        probes = [probe for probe in self.probes if probe.quantity == name]
        if not probes:
            raise UserError(f"No probe asks for the finding, '{name}'.")
        lengths = sorted({probe.in_use for probe in probes})
        if len(lengths) > 1:
            raise UserError(
                f"Probes of the finding '{name}' have {lengths} candidates in use. Give all of them the same number."
            )
        lists, targets = {probe.candidates[: probe.in_use] for probe in probes}, {probe.target for probe in probes}
        if len(lists) > len(targets) == 1:
            raise UserError(
                f"The probes of the finding '{name}' differ in candidates, of which always the same place is right, "
                "so no score could differ from chance. Shuffle each probe's candidates."
            )
        subject, count = Counter(probe.subject for probe in probes).most_common(1)[0]
        if count > 1:
            raise UserError(f"The finding '{name}' asks {count} times about '{subject}'. Give each probe its subject.")
        target_of = {probe.unit: probe.target for probe in probes}
        several = next((probe.unit for probe in probes if probe.target != target_of[probe.unit]), None)
        if several is not None:
            raise UserError(f"The unit '{several}' of the finding '{name}' has several right answers. Split it.")

    @cached_property
    def finding(self) -> Quantity:
        """The quantity whose role is ``finding``."""
        return the_finding(self.quantities)

    def probes_of(self, quantity: str) -> list[Probe]:
        """The probes of one quantity."""
        return [probe for probe in self.probes if probe.quantity == quantity]


def build_task(spec: RunSpec) -> Task:
    """Draw what one run teaches and asks, from its data stream.

    Raises:
        UserError: the structure builds a task that cannot be measured.
    """
    return task_of(spec.association, spec.data, spec.stream("data"))


def task_of(association: Association, data: DataSpec, stream: str) -> Task:
    """The task of an association; see ``Association.build``."""
    try:
        task: Task = association.build(data, stream)
    except UserError as error:
        raise UserError(f"{association.name} (structure {association.structure}): {error}") from error
    return task
