"""Runs that learn by gradients: a ``GradientPack`` of ``Learner``s over one base.

A pack is several runs training together, each in its own lane; one run alone is a pack of one. The base
(models/base.py) is shared, and changes only in full fine-tuning. A learner is one run's share: its adapter, its
optimizer and its place in its data. No other run sees its tensors, so runs in a pack learn what they would learn alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from ocr_eval.common import streams
from ocr_eval.common.errors import RunFailed, reason_of
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.changes import Factors, Rewrite, WeightChange
from ocr_eval.methods.method import Pack, method_of
from ocr_eval.methods.objective import Objective
from ocr_eval.methods.prevention import Prevention, preventions_of
from ocr_eval.methods.train import train_epoch
from ocr_eval.methods.trainable import Trainable
from ocr_eval.methods.view import Cut, View
from ocr_eval.models.base import Base, require_bitsandbytes
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import RunSpec


def batches_of_epoch(
    examples: Sequence[Continuation], order: str, epoch: int, train: TrainSpec
) -> list[list[Continuation]]:
    """The batches of an epoch, counted from 1, which depend only on the run's order stream and the epoch."""
    taught = _taught_in(examples, order, epoch, train.epochs)
    shuffled = [taught[i] for i in streams.permutation(f"{order}/epoch-{epoch}", len(taught))]
    return [shuffled[start : start + train.batch_size] for start in range(0, len(shuffled), train.batch_size)]


def _taught_in(examples: Sequence[Continuation], order: str, epoch: int, epochs: int) -> Sequence[Continuation]:
    """The examples of an epoch's third; those with k thirds are split over k epochs in turn, reshuffled each time."""
    if not any(example.thirds for example in examples):
        return examples
    taught: list[Continuation] = []
    for thirds in dict.fromkeys(example.thirds for example in examples):
        alike, k = [example for example in examples if example.thirds == thirds], max(1, len(thirds))
        if not thirds or (epoch - 1) * 3 // epochs in thirds:
            # k epochs that belong together begin where a third does
            aligned = epoch - epochs * min(thirds, default=0) // 3 % k
            place = streams.permutation(f"{order}/share-{(aligned - 1) // k}", len(alike))
            taught += [example for example, i in zip(alike, place, strict=True) if (i + aligned) % k == 0]
    return taught


@dataclass
class Learner:
    """One run in training.

    Attributes:
        base: the model that it trains, for reading only.
        order: name of the random stream of its batches.
        parameters: its trainable tensors by name, fp32, each with its gradient.
        factors: its adapters, by module: views of the same tensors; empty if it has none.
        rewrite: replaces each matrix's change by a function of it, after the last step.
        optimizer: AdamW over the parameters.
        preventions: what intervenes in its training.
    """

    base: Base
    train: TrainSpec
    order: str
    examples: Sequence[Continuation]
    parameters: dict[str, torch.nn.Parameter]
    factors: Sequence[Factors]
    rewrite: Callable[[Rewrite], None]
    optimizer: torch.optim.Optimizer
    preventions: Sequence[Prevention] = ()
    objective: Objective = field(default_factory=Objective)
    epochs_done: int = 0

    def batches(self) -> list[list[Continuation]]:
        """The batches of the next epoch."""
        return batches_of_epoch(self.examples, self.order, self.epochs_done + 1, self.train)


@dataclass(frozen=True)
class MountedPack(Pack):
    """Runs over one base, each in its own lane, and what they learn, mounted in its network until ``detach``."""

    base: Base
    adapters: Trainable
    cut: Cut = field(default_factory=Cut, kw_only=True)

    def view(self, trained: bool = True) -> View:
        return View(self.base, self.base.network, self.adapters, trained, self.base.whole, self.cut)

    def changes(self, lane: int) -> Iterator[WeightChange]:
        return self.adapters.changes(lane)

    def save(self, lane: int, folder: Path) -> str:
        return self.adapters.save(lane, folder, self.base.spec)

    def detach(self) -> None:
        self.adapters.unmount()


@dataclass(frozen=True)
class GradientPack(MountedPack):
    """Runs that train together; the ``Pack`` of all gradient-based methods. ``learners`` are the runs, by lane."""

    learners: tuple[Learner, ...]

    def step(self, lanes: Sequence[int]) -> dict[int, float]:
        return train_epoch(self, lanes)

    def finish(self, lane: int) -> None:
        learner = self.learners[lane]
        for prevention in learner.preventions:
            prevention.after_training(learner)
        self.adapters.refresh()

    def notes(self, lane: int) -> dict[str, Any]:
        """How many parts batches had to be split into, if any."""
        return {"micro_batches": self.cut.parts} if self.cut.parts > 1 else {}

    def write_state(self, lane: int, file: IO[bytes]) -> None:
        learner = self.learners[lane]
        write_state(file, learner.parameters, learner.optimizer, learner.epochs_done)

    def read_state(self, lane: int, path: Path) -> None:
        learner = self.learners[lane]
        try:
            learner.epochs_done = read_state(path, learner.parameters, learner.optimizer)
        except Exception as error:
            # About a file that it did not write, torch only says how to read it unsafely.
            reason = "it is damaged" if isinstance(error, UnpicklingError) else reason_of(error)
            raise RunFailed(f"{path} cannot be used ({reason}). Delete it to train from the start.") from error
        self.adapters.refresh()


def attach(base: Base, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]) -> Pack:
    """Put runs of one method over a base; see ``Method.attach``."""
    return method_of(specs[0].train).attach(base, specs, examples)


def gradient_pack(
    base: Base, adapters: Trainable, specs: Sequence[RunSpec], examples: Sequence[Sequence[Continuation]]
) -> GradientPack:
    """A pack of runs over what is mounted, each from its own initialization stream and with an AdamW of its own."""
    adamw: Any = partial(torch.optim.AdamW, fused=True)
    if base.whole and base.device.type == "cuda":  # moments in 8 bits
        require_bitsandbytes("--method full on a GPU")
        from bitsandbytes.optim import AdamW8bit

        adamw = AdamW8bit
    learners = []
    for lane, (spec, learns) in enumerate(zip(specs, examples, strict=True)):
        adapters.initialize(lane, streams.integer(spec.stream("initialization")))
        parameters, train = adapters.parameters(lane), spec.train
        learner = Learner(
            base=base,
            train=train,
            order=spec.stream("order"),
            examples=learns,
            parameters=parameters,
            factors=adapters.factors(lane),
            rewrite=partial(adapters.rewrite, lane),
            optimizer=adamw(parameters.values(), lr=train.lr, betas=train.betas, weight_decay=train.weight_decay),
            preventions=preventions_of(train),
        )
        learners.append(learner)
    return GradientPack(base, adapters, tuple(learners))


def write_state(
    file: IO[bytes], parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, epochs_done: int
) -> None:
    """Write what is needed to resume after an epoch: parameters and their optimizer's state."""
    state = {
        "parameters": {name: _alone(parameter.detach()) for name, parameter in parameters.items()},
        "optimizer": {name: optimizer.state[parameter] for name, parameter in parameters.items()},
        "epochs_done": epochs_done,
    }
    torch.save(state, file)


def read_state(path: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Load what was written into parameters and optimizer; returns the number of finished epochs.

    Values go to their parameter's device: PyTorch's fused AdamW needs even its count of steps there.

    Raises:
        Exception: of many kinds, if the file is damaged or another run's.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["parameters"].keys() != parameters.keys():
        raise KeyError("it is another run's")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["parameters"][name])
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if isinstance(value, Tensor) else value
                for key, value in state["optimizer"][name].items()
            }
    return state["epochs_done"]


def _alone(tensor: Tensor) -> Tensor:
    """A tensor without the rest of its storage (the other lanes of the pack), which would be saved with it."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
