"""The interface for measures: what a ``Measure`` is, and what it sees of a trained run.

A measure is a class registered under a name (``ocr_eval.measures`` entry points, common/registry.py). The record keeps
its result under that name; tables can show its top-level numbers with ``--metric <measure>.<key>``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import warn
from ocr_eval.common.registry import DEFAULT_MEASURES, MEASURES
from ocr_eval.data.task import Quantity, Role
from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.methods.changes import WeightChange
from ocr_eval.methods.method import Needs, Pack, method_of
from ocr_eval.methods.view import View
from ocr_eval.scoring.candidates import CandidateScores, score_lanes
from ocr_eval.scoring.quantities import summarize_quantities
from ocr_eval.scoring.ranks import Score
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Trained:
    """A run after its last step, still attached to its base as a lane of a pack; what it was asked, and its answers."""

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
        """Whether the base is still available; full fine-tuning overwrites it."""
        return not method_of(self.spec.train).needs.whole

    def view(self, trained: bool = True) -> View:
        """The trained model, or its untouched base."""
        return self.pack.view(trained)

    def views(self) -> dict[str, View]:
        """By prefix of names in results: the trained model ("") and, if it is available, its base ("base_")."""
        return {"": self.view()} | ({"base_": self.view(False)} if self.has_base else {})

    def asked(self, role: Role) -> list[ProbeTokens]:
        """The probes of the quantities with a role."""
        names = {each.name for each in self.quantities if each.role == role}
        return [each for each in self.probes if each.probe.quantity in names]

    def first_token(self, view: View, probes: Sequence[ProbeTokens]) -> dict[str, Score]:
        """How a model answers some probes, by quantity and first token."""
        scores = score_lanes(view, {self.lane: probes})[self.lane]
        asked = [each.probe for each in probes]
        return summarize_quantities(self.quantities, asked, scores, ["first-token"])["first-token"]


class Measure:
    """Something to measure on a trained model.

    Attributes:
        about: one line on what it is, with its source.
        by_epoch: whether metrics.jsonl also gets its numbers after every epoch whose probes were all scored; only for
            measures that take a fraction of a second.
    """

    about: ClassVar[str] = ""
    by_epoch: ClassVar[bool] = False

    def by_default(self, needs: Needs) -> bool:
        """Whether it is cheap enough to take without being requested, for a method with these needs."""
        return False

    def take(self, trained: Trained) -> dict[str, Any]:
        """Measure a run.

        Returns:
            Data that JSON can hold, with finite numbers; tables show the top-level ones.

        Raises:
            Exception: the measure is not available for this run, and why; the run is kept without it.
        """
        raise NotImplementedError

    def meaning(self, found: Mapping[str, Any]) -> str:
        """A sentence on what was found, for ``explain``; not asked if no number was."""
        return self.about


def take_measure(name: str, trained: Trained) -> dict[str, Any]:
    """The result of one measure on a run; raises UserError if there is none of this name, or it is not available."""
    measure: Measure = MEASURES.get(name)
    try:
        return measure.take(trained)
    except Exception as error:  # a third-party measure may raise anything
        raise UserError(
            f"The measure '{name}' is not available for this run: {str(error) or type(error).__name__}"
        ) from error


def find_measures(asked: Sequence[str] | None, needs: Needs) -> dict[str, Measure]:
    """The requested measures by name; None or the name ``default`` requests those that are taken by default.

    Raises:
        UserError: a requested measure does not exist or cannot be imported; a default one is skipped with a warning.
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
    """Numbers of the per-epoch measures. One that fails is omitted; ``take_measures`` reports why at the end."""
    found = {}
    for name, measure in measures.items():
        if measure.by_epoch:
            with suppress(Exception):  # a third-party measure may raise anything
                numbers = {key: value for key, value in measure.take(trained).items() if isinstance(value, int | float)}
                found[name] = json.loads(json.dumps(numbers, allow_nan=False))
    return found


def take_measures(measures: Mapping[str, Measure], trained: Trained) -> dict[str, dict[str, Any]]:
    """Results by measure. One that fails, or returns what JSON cannot hold, is omitted with a warning."""
    found = {}
    for name, measure in measures.items():
        try:
            taken = measure.take(trained)
            json.dumps(taken, allow_nan=False)
            found[name] = taken
        except Exception as error:  # a third-party measure may raise anything
            reason = str(error) or type(error).__name__
            warn(f"{trained.spec.association.name} seed {trained.spec.seeds}: measure '{name}' failed: {reason}")
    return found
