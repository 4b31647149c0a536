"""The interface for ways to prevent unwanted inference: a ``Prevention`` intervenes in a method at one or more points.

    task -> batches -> forward pass -> loss -> gradient -> step -> ... -> stop? -> after training -> scored

A prevention is a class registered under a name (``ocr_eval.preventions`` entry points, common/registry.py) that
overrides what it needs. A run names its preventions in ``train.prevent``, and has its own instances of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel

from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import PREVENTIONS, NoSettings
from ocr_eval.data.task import Task, build_task
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.method import method_of
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import RunSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ocr_eval.methods.pack import Learner
    from ocr_eval.packing.logprobs import Reader


class Read(Protocol):
    """Reads some examples at their answer tokens, under the model in training or the base; differentiable."""

    def __call__(self, examples: Sequence[Continuation], trained: bool, reader: Reader = ..., /) -> Tensor:
        """What the reader (packing/logprobs.py) finds; by default, log-probabilities in nats. [T] or [T, ...]"""


class Prevention:
    """Does nothing. What a prevention overrides is called in every run that names it.

    Attributes:
        about: one line on what it does, with its source.
        Settings: a pydantic model of its settings.
        needs_adapters: whether it works on low-rank adapters, and so not with full fine-tuning.
        needs_matrices: whether it works on changed matrices, and so not with a method that changes none.
        reads_base: whether it reads the base's weights, and so not with a method whose base is quantized.
        least_rank: the smallest rank of adapters that it works with.
        knows_relation: whether it uses the unwanted relation itself, which a user would have to know beforehand.
        last: whether it changes the task after all other preventions, because it needs what they add.
        stops_when_learned: whether training ends after the first epoch at which all premises hold.
        settings: the settings in this run.
    """

    about: ClassVar[str] = ""
    Settings: ClassVar[type[BaseModel]] = NoSettings
    needs_adapters: ClassVar[bool] = False
    needs_matrices: ClassVar[bool] = False
    reads_base: ClassVar[bool] = False
    least_rank: ClassVar[int] = 1
    knows_relation: ClassVar[bool] = False
    last: ClassVar[bool] = False
    stops_when_learned: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def task(self, task: Task) -> Task:
        """Change what is taught; probes stay as they are."""
        return task

    def forward(self, network: Module) -> AbstractContextManager[Any]:
        """Entered around every forward pass of training, and no other pass: for hooks in the network.

        A run whose prevention overrides this does not share its passes with other runs.
        """
        return nullcontext()

    def loss(self, learner: Learner, read: Read) -> Tensor | None:
        """A term to add to the loss of each step, a scalar in nats; None for none.

        If several processes train together, only the first calls it.
        """
        return None

    def before_step(self, learner: Learner) -> None:
        """Change gradients in place, after clipping and before the optimizer reads them."""

    def after_training(self, learner: Learner) -> None:
        """Change what was learned in place, after the last step and before it is scored."""


def task_of_run(spec: RunSpec) -> Task:
    """What a run teaches and asks, after its preventions have changed it.

    Raises:
        UserError: the structure builds a task that cannot be measured, a prevention changes the probes, or something
            is taught in no epoch.
    """
    task = built = build_task(spec)
    for prevention in sorted(preventions_of(spec.train), key=lambda prevention: prevention.last):
        task = prevention.task(task)
    if (task.probes, task.quantities) != (built.probes, built.quantities):
        raise UserError(
            f"{' and '.join(spec.train.prevent)}: a prevention may change what is taught, but not the probes."
        )
    epochs = spec.train.epochs
    reached = {(epoch - 1) * 3 // epochs for epoch in range(1, epochs + 1)}
    never = [each for each in task.train if each.thirds and reached.isdisjoint(each.thirds)]
    if never and not method_of(spec.train).needs.once:
        raise UserError(
            f"'{never[0].text}' is taught in a third of training that --epochs {epochs} does not have. Use 3 or more."
        )
    return task


def preventions_of(train: TrainSpec) -> list[Prevention]:
    """The preventions of a run; raises UserError if one is not installed, or its settings are invalid."""
    choices = [PREVENTIONS.choose(text) for text in train.prevent]
    return [choice.thing(choice.settings) for choice in choices]


def hooks_network(train: TrainSpec) -> bool:
    """Whether a run's preventions hook into the forward pass, which all runs of a pack share."""
    return any(type(each).forward is not Prevention.forward for each in preventions_of(train))


def end_differs(train: TrainSpec) -> bool:
    """Whether a run's preventions change what was learned after the last step, so that no earlier epoch shows them."""
    return any(type(each).after_training is not Prevention.after_training for each in preventions_of(train))


def stops_when_learned(train: TrainSpec) -> bool:
    """Whether a run's preventions end its training once all premises hold."""
    return any(each.stops_when_learned for each in preventions_of(train))
