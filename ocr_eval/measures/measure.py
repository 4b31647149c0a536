"""The door for measures: what a ``Measure`` is, and what it is shown of a trained run.

A measure is an object under a name (``ocr_eval.measures`` entry points, common/registry.py). What it finds is kept in
the record under its name; numbers at the top can be shown in tables as ``--metric <measure>.<key>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.messages import warn
from ocr_eval.common.registry import MEASURES
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
        spec: the run.
        pack: the runs it was taught with.
        lane: its place among them.
        probes: what it was asked.
        scores: what it answered.
    """

    spec: RunSpec
    pack: Pack
    lane: int
    probes: Sequence[ProbeTokens]
    scores: CandidateScores

    def changes(self) -> Iterator[WeightChange]:
        """How each matrix of the network was changed."""
        return self.pack.changes(self.lane)

    def view(self, trained: bool = True) -> View:
        """The model, or the base as it was."""
        return self.pack.view(trained)


class Measure(Protocol):
    """Something to measure on a trained model.

    Attributes:
        about: one line on what it is, with its source.
    """

    about: str

    def by_default(self, needs: Needs) -> bool:
        """Whether it is cheap enough to be taken without being asked for, for a method of these needs."""

    def take(self, trained: Trained) -> dict[str, Any]:
        """Measure a run.

        Returns:
            Plain data for JSON; numbers at the top are what tables show.

        Raises:
            RunFailed, UserError: it cannot be measured on this run, which says why and is kept without it.
        """


def take_measures(asked: Sequence[str] | None, trained: Trained) -> dict[str, dict[str, Any]]:
    """What measures find; one that cannot be taken is absent, with a warning where it was asked for.

    Args:
        asked: names of measures; None for those that are taken by default.
        trained: the run.
    """
    needs, found = method_of(trained.spec.train).needs, {}
    for name in MEASURES.names() if asked is None else asked:
        measure: Measure = MEASURES.get(name)
        if asked is None and not measure.by_default(needs):
            continue
        try:
            found[name] = measure.take(trained)
        except (RunFailed, UserError) as error:
            if asked is not None:
                warn(f"{trained.spec.association.name} seed {trained.spec.seed}: no measure '{name}': {error}")
    return found
