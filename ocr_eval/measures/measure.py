"""The door for measures: what a ``Measure`` is, and what it is shown of a trained run.

A measure is a class under a name (``ocr_eval.measures`` entry points, common/registry.py). What it finds is kept in
the record under its name; numbers at the top can be shown in tables as ``--metric <measure>.<key>``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import warn
from ocr_eval.common.registry import DEFAULT_MEASURES, MEASURES
from ocr_eval.data.task import Quantity
from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.methods.changes import WeightChange
from ocr_eval.methods.method import Needs, Pack, method_of
from ocr_eval.methods.view import View
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Trained:
    """A run after its last step, still over its base.

    Attributes:
        pack: the runs it was taught with.
        lane: its place among them.
        quantities: what its probes count for.
        probes: what it was asked.
        scores: what it answered.
    """

    spec: RunSpec
    pack: Pack
    lane: int
    quantities: Sequence[Quantity]
    probes: Sequence[ProbeTokens]
    scores: CandidateScores

    def changes(self) -> Iterator[WeightChange]:
        """How each matrix of the network was changed."""
        return self.pack.changes(self.lane)

    @property
    def has_base(self) -> bool:
        """Whether the base can still be read, which full fine-tuning does not leave."""
        return not method_of(self.spec.train).needs.whole

    def view(self, trained: bool = True) -> View:
        """The model, or the base as it was."""
        return self.pack.view(trained)


class Measure:
    """Something to measure on a trained model.

    Attributes:
        about: one line on what it is, with its source.
        by_epoch: whether metrics.jsonl has its numbers, too, after every epoch whose probes were all scored; for what
            takes a fraction of a second.
    """

    about: ClassVar[str] = ""
    by_epoch: ClassVar[bool] = False

    def by_default(self, needs: Needs) -> bool:
        """Whether it is cheap enough to be taken without being asked for, for a method of these needs."""
        return False

    def take(self, trained: Trained) -> dict[str, Any]:
        """Measure a run.

        Returns:
            Plain data for JSON, numbers finite; those at the top are what tables show.

        Raises:
            Exception: it cannot be measured on this run, which is kept without it; the text says why.
        """
        raise NotImplementedError


def take_measure(name: str, trained: Trained) -> dict[str, Any]:
    """What one measure finds of a run.

    Raises:
        UserError: there is no such measure, or it cannot be taken of this run.
    """
    measure: Measure = MEASURES.get(name)
    try:
        return measure.take(trained)
    except Exception as error:  # as take_measures has it
        raise UserError(
            f"The measure '{name}' is not available for this run: {str(error) or type(error).__name__}"
        ) from error


def find_measures(asked: Sequence[str] | None, needs: Needs) -> dict[str, Measure]:
    """Measures by name: those that were asked for, and for None or ``default`` those that are taken by default.

    Raises:
        UserError: one that was asked for is not there or cannot be imported; others that cannot are a warning.
    """
    found: dict[str, Measure] = {name: MEASURES.get(name) for name in asked or () if name != DEFAULT_MEASURES}
    if asked is not None and DEFAULT_MEASURES not in asked:
        return found
    for name in MEASURES.names():
        try:
            measure: Measure = MEASURES.get(name)
        except UserError as error:
            warn(f"{error} It is skipped.")
            continue
        if measure.by_default(needs):
            found[name] = measure
    return found


def take_by_epoch(measures: Mapping[str, Measure], trained: Trained) -> dict[str, dict[str, float]]:
    """The numbers of the measures that go with an epoch. One that fails is absent; at the end it says why."""
    found = {}
    for name, measure in measures.items():
        if measure.by_epoch:
            with suppress(Exception):  # of a package that we know nothing of
                numbers = {key: value for key, value in measure.take(trained).items() if isinstance(value, int | float)}
                found[name] = json.loads(json.dumps(numbers, allow_nan=False))
    return found


def take_measures(measures: Mapping[str, Measure], trained: Trained) -> dict[str, dict[str, Any]]:
    """What measures find. One that fails, or finds what JSON cannot hold, is a warning and absent: the run is kept."""
    found = {}
    for name, measure in measures.items():
        try:
            taken = measure.take(trained)
            json.dumps(taken, allow_nan=False)
            found[name] = taken
        except Exception as error:  # of a package that we know nothing of
            reason = str(error) or type(error).__name__
            warn(f"{trained.spec.association.name} seed {trained.spec.seeds}: measure '{name}' failed: {reason}")
    return found
