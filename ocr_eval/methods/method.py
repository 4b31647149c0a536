"""The interface for ways to teach: a ``Method``, and the ``Pack`` of runs that it attaches to a base.

A method is a class registered under a name (``ocr_eval.methods`` entry points, common/registry.py), and one object of
it serves all runs. Planning reads what it needs of the base; execution lets it attach runs, and from then on uses the
pack. Imports no torch, so that tables and flags can look up a method's label and settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator

from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import METHODS, NoSettings

if TYPE_CHECKING:
    import torch

    from ocr_eval.data.tokenize import Continuation
    from ocr_eval.methods.changes import WeightChange
    from ocr_eval.methods.trainable import Trainable
    from ocr_eval.methods.view import View
    from ocr_eval.models.base import Base
    from ocr_eval.specs.model import Training, TrainSpec
    from ocr_eval.specs.run import RunSpec


#: Settings of stepwise training, which have no effect on methods that teach everything at once.
TRAINING = frozenset(
    {
        *("lr", "epochs", "batch_size", "rank", "alpha", "targets", "max_grad_norm", "weight_decay"),
        *("beta1", "beta2", "schedule", "warmup"),
    }
)


def layers_of(text: str) -> range:
    """The layers, from 0, that ``4-10`` or ``7`` names."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _range(text: str | None) -> str | None:
    if text is not None and not (re.fullmatch(r"\d{1,4}(-\d{1,4})?", text) and layers_of(text)):
        raise ValueError(f"layers '{text}' are not a range; write them as 4-10, or 7 for one")
    return text


#: Layers as a setting: the first and the last, from 0; None for the method's own choice.
LayerRange = Annotated[str | None, AfterValidator(_range)]


@dataclass(frozen=True)
class Needs:
    """What a method needs of the base, and what it trains.

    Attributes:
        quantized: the linear layers are held in 4 bits (NF4).
        whole: the run changes the network itself, whose weights are fp32 masters, and shares it with no other run.
        adapters: it trains low-rank adapters, which some preventions work on.
        matrices: it changes matrices, which other preventions work on.
        once: everything is taught at once, so that a run has one epoch.
    """

    quantized: bool = False
    whole: bool = False
    adapters: bool = True
    matrices: bool = True
    once: bool = False


class Pack:
    """Runs that are taught together over one base, each in its own lane; they share no tensor that changes."""

    base: Base

    def step(self, lanes: Sequence[int]) -> dict[int, float]:
        """Take the next of ``train.epochs`` steps, the same for all these lanes; returns their losses (nats per token).

        Raises:
            RunFailed: a lane cannot learn.
            TooLarge: not even one example per lane fits into memory.
        """
        raise NotImplementedError

    def finish(self, lane: int) -> None:
        """Complete a lane after its last step, before it is scored."""

    def view(self, trained: bool = True) -> View:
        """The model with what the lanes have learned, or the bare base."""
        raise NotImplementedError

    def notes(self, lane: int) -> dict[str, Any]:
        """Further entries for a lane's line in metrics.jsonl."""
        return {}

    def changes(self, lane: int) -> Iterator[WeightChange]:
        """How a lane changed each matrix of the network."""
        return iter(())

    def save(self, lane: int, folder: Path) -> str:
        """Write what a lane learned in a folder, as ``adapter/`` or ``model/``; returns the sha256 of the weights."""
        raise NotImplementedError

    def write_state(self, lane: int, file: IO[bytes]) -> None:
        """Write all that a lane needs to resume; of no use if everything is taught at once, in one epoch."""

    def read_state(self, lane: int, path: Path) -> None:
        """Load a lane's state; it then continues bit for bit. RunFailed: the file is damaged or another run's."""

    def detach(self) -> None:
        """Restore the base, unless the run changed it."""


class Method:
    """A way to teach facts.

    Attributes:
        label: its name in tables.
        about: one line on what it is, with its source.
        ignores: settings of TrainSpec that have no effect on it; they are rejected.
        lighter: methods that need less memory, the most similar first; suggested if this one does not fit.
        by_layer: whether it trains chosen layers only, so that a memory estimate has to simulate all layers.
        in_peft: whether PEFT loads the adapter that it saves.
        Settings: a pydantic model of its own settings, if it has any.
    """

    label: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[Needs] = Needs()
    ignores: ClassVar[frozenset[str]] = frozenset()
    lighter: ClassVar[tuple[str, ...]] = ()
    by_layer: ClassVar[bool] = False
    in_peft: ClassVar[bool] = True

    def check(self, spec: RunSpec, tokenizer: Any | None) -> None:
        """Refuse, from a run's data alone, what ``attach`` would refuse once the weights are there.

        Dry runs call it, and sweeps before they start; ``tokenizer`` is None where it is not on this disk.

        Raises:
            UserError: the method cannot teach this.
        """

    def passes(self, train: TrainSpec) -> int:
        """How often a step computes gradients of what it teaches, at most; for estimates of time."""
        return 1

    def mount(self, network: torch.nn.Module, trains: Sequence[TrainSpec], dtype: torch.dtype) -> Trainable:
        """Mount what runs train, untrained, also on fake tensors (memory estimates): by default LoRA's adapters.

        Raises:
            UserError: a setting does not fit the model.
        """
        from ocr_eval.methods.adapters import Adapters, LaneShape

        return Adapters(network, trains[0].targets, [LaneShape(each.rank, each.alpha) for each in trains], dtype)

    def attach(self, base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> Pack:
        """Attach untrained runs, each of which is the base itself until its first step; UserError as of ``mount``."""
        from ocr_eval.methods.pack import gradient_pack

        try:
            mounted = self.mount(base.network, [spec.train for spec in specs], base.dtype)
        except UserError as error:
            raise UserError(f"{base.spec.name}: {error}") from error
        return gradient_pack(base, mounted, specs, examples)


def method_of(train: Training) -> Method:
    """The method of a run; raises UserError if it is not installed, or its settings are invalid."""
    return METHODS.choose(train.method).thing


def settings_of(train: Training) -> Any:
    """The settings of a run's method, an object of its ``Settings``; raises UserError as ``method_of`` does."""
    return METHODS.choose(train.method).settings


def ignored_by(train: TrainSpec) -> frozenset[str]:
    """Settings that have no effect on a run's method; empty if it is not installed."""
    try:
        return method_of(train).ignores
    except UserError:
        return frozenset()


def advice(method: str) -> str:
    """What to change if runs of a method did not learn what they were taught."""
    name = method.partition(":")[0]
    if name == "external":
        return "train longer or at another rate"
    try:
        thing = METHODS.get(name)
    except UserError:
        return "choose another --method, because this one is not installed here"
    if not thing.needs.once:
        return "train longer (--epochs) or at another --lr"
    own = getattr(thing, "Settings", NoSettings).model_fields
    return f"change the settings of {name} ({', '.join(own)})" if own else f"{name} has no settings: use another method"


def label_of(method: str) -> str:
    """A method in tables: its label and the settings that are not its defaults, or unchanged if it is not installed."""
    name, colon, settings = METHODS.brief(method).partition(":")
    try:
        return f"{METHODS.get(name).label}{colon}{settings}"
    except UserError:
        return method
