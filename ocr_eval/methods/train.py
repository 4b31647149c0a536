"""Trains the runs of a pack for one epoch. Neither scores nor writes.

A run's loss is its ``Objective`` (methods/objective.py), in fp32. Logits are computed only where an answer token is
predicted; a batch is one token forest per lane, so statements are not padded (packing/forest.py).

A batch may be split over processes that train together, and a process that runs out of memory splits its share into
micro-batches. Each part adds the gradient of its tokens' share of the mean, so the sum is the batch's gradient up to
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from ocr_eval.common.distributed import sum_over_processes
from ocr_eval.common.errors import RunFailed, TooLarge
from ocr_eval.common.messages import progress_bar, say
from ocr_eval.common.out_of_memory import free_cache, is_out_of_memory
from ocr_eval.data.task import Half
from ocr_eval.data.tokenize import Continuation, Ids
from ocr_eval.methods.adapters import Adapters
from ocr_eval.methods.objective import BatchSize
from ocr_eval.packing.forest import Forest, Reads, read_answers
from ocr_eval.packing.logprobs import Reader, read_logprobs

if TYPE_CHECKING:
    from ocr_eval.methods.pack import GradientPack


def train_epoch(pack: GradientPack, lanes: Sequence[int]) -> dict[int, float]:
    """Train some lanes for one epoch and return each one's mean loss in nats per answer token.

    Losses are measured before each step. Every lane takes its own step after each pass; one with fewer batches
    than the others sits out the rest. A lane whose loss is no longer finite stops there: that loss is returned,
    its weights stay as they were, and the others continue.

    Raises:
        RunFailed: part of an adapter gets no gradient.
        TooLarge: not even one example per lane fits into memory.
    """
    batches = {lane: pack.learners[lane].batches() for lane in lanes}
    nats, tokens = dict.fromkeys(lanes, 0.0), dict.fromkeys(lanes, 0)
    steps = max(len(todo) for todo in batches.values())
    epoch = max(pack.learners[lane].epochs_done for lane in lanes) + 1
    with progress_bar(steps, f"epoch {epoch}") as bar:
        for step in range(steps):
            going = [lane for lane in lanes if step < len(batches[lane]) and math.isfinite(nats[lane])]
            if not going:
                break
            losses = _gradients(pack, {lane: batches[lane][step] for lane in going})
            for lane, (loss, count) in losses.items():
                nats[lane] += loss * count
                tokens[lane] += count
                if math.isfinite(loss):
                    _step(pack, lane, step, len(batches[lane]))
            pack.adapters.refresh()
            bar.update()
    for lane in lanes:
        pack.learners[lane].epochs_done += 1
    return {lane: nats[lane] / tokens[lane] for lane in lanes}


def batch_forest(batch: Sequence[Continuation], answers: Sequence[Sequence[Ids]] | None = None) -> tuple[Forest, Reads]:
    """A batch of one run as a token forest, with the answers to read for each example (by default its own)."""
    forest, answers = Forest(), answers or [[example.answer] for example in batch]
    reads, _ = read_answers(forest, [(example.prompt, of) for example, of in zip(batch, answers, strict=True)])
    return forest, reads


def _gradients(pack: GradientPack, batches: dict[int, list[Continuation]]) -> dict[int, tuple[float, int]]:
    """Compute the gradients of all lanes; returns each lane's loss and its number of answer tokens.

    Several processes sum gradients and losses once, after each has done its share, so one of them can run out of
    memory and start over without affecting the others.
    """
    accelerator = pack.base.accelerator
    sizes = {lane: BatchSize(sum(len(e.answer) for e in batch), len(batch)) for lane, batch in batches.items()}
    share = {lane: batch[accelerator.process_index :: accelerator.num_processes] for lane, batch in batches.items()}
    nats = _backward_in_parts(pack, share, sizes)
    if isinstance(pack.adapters, Adapters):
        pack.adapters.learns(None)  # penalties are of the whole adapter
    for lane in batches:
        _add_penalties(pack, lane)
    if (scale := pack.base.loss_scale) != 1.0:
        torch._foreach_div_(pack.adapters.gradients(), scale)
    if accelerator.num_processes > 1:
        nats = sum_over_processes(pack.adapters.gradients(), nats)
    return {lane: (nats[lane], size.tokens) for lane, size in sizes.items()}


def _backward_in_parts(
    pack: GradientPack, batches: dict[int, list[Continuation]], sizes: dict[int, BatchSize]
) -> dict[int, float]:
    """Gradients and losses of this process's share, in as many parts as memory requires."""
    largest = max(len(batch) for batch in batches.values())
    while True:
        try:
            return _backward(pack, batches, sizes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        pack.adapters.zero_grad()
        free_cache(pack.base.device)
        if pack.cut.parts >= largest:
            raise TooLarge(reason)
        pack.cut.parts *= 2
        say(f"Out of memory: batches are now split into {pack.cut.parts} parts, with the same result")


def _backward(
    pack: GradientPack, batches: dict[int, list[Continuation]], sizes: dict[int, BatchSize]
) -> dict[int, float]:
    """Scaled gradients, and losses, part by part, as shares of means over whole batches."""
    pack.adapters.zero_grad()
    nats = dict.fromkeys(batches, 0.0)
    for half, part in _parts(batches, pack.cut.parts):
        if isinstance(pack.adapters, Adapters):
            pack.adapters.learns(half)
        aims = {lane: pack.learners[lane].objective for lane in part}
        answers = {lane: aims[lane].answers(some, pack.learners[lane].epochs_done) for lane, some in part.items()}
        forests = {lane: batch_forest(some, answers[lane]) for lane, some in part.items()}
        with torch.no_grad():
            of_base = {lane: forest for lane, forest in forests.items() if aims[lane].reads_base}
            base = pack.view(trained=False).token_logprobs(of_base) if of_base else {}
        with ExitStack() as hooks:
            for prevention in pack.learners[min(part)].preventions:  # a run that hooks the network is alone in its pack
                hooks.enter_context(prevention.forward(pack.base.network))
            logprobs = pack.view().token_logprobs(forests)
        losses = {
            lane: aims[lane].loss(part[lane], answers[lane], values, base.get(lane), sizes[lane])
            for lane, values in logprobs.items()
        }
        # Lanes share no parameter, so the gradient of the sum gives each lane its own.
        pack.base.accelerator.backward(torch.stack(list(losses.values())).sum() * pack.base.loss_scale)
        for lane, loss in losses.items():
            nats[lane] += loss.item()
    return nats


def _parts(
    batches: dict[int, list[Continuation]], parts: int
) -> Iterator[tuple[Half | None, dict[int, list[Continuation]]]]:
    """Split batches by the half of an adapter that learns, because a node has only one, and then into parts."""
    halves: tuple[Half | None, ...] = (0, 1, None)
    for half in halves:
        mine = {lane: [example for example in batch if example.half == half] for lane, batch in batches.items()}
        for first in range(parts):
            part = {lane: some for lane, batch in mine.items() if (some := batch[first::parts])}
            if part:
                yield half, part


def _add_penalties(pack: GradientPack, lane: int) -> None:
    """Add the scaled gradients of the terms that a lane's preventions add to its loss."""

    def read(examples: Sequence[Continuation], trained: bool, reader: Reader = read_logprobs) -> torch.Tensor:
        return pack.view(trained).read({lane: batch_forest(examples)}, reader)[lane]

    if pack.base.accelerator.process_index == 0:  # gradients are summed over processes
        for prevention in pack.learners[lane].preventions:
            term = prevention.loss(pack.learners[lane], read)
            if term is not None and term.requires_grad:
                pack.base.accelerator.backward(term * pack.base.loss_scale)


def _step(pack: GradientPack, lane: int, step: int, steps: int) -> None:
    """Take an optimizer step of a lane: step ``step`` (from 0) out of ``steps`` in this epoch."""
    learner = pack.learners[lane]
    if step == learner.epochs_done == 0:
        silent = pack.adapters.silent(lane)
        if silent:
            raise RunFailed(
                f"No gradient reaches {len(silent)} of {len(pack.adapters.modules)} trained modules, first {silent[0]}."
            )
    pack.base.accelerator.clip_grad_norm_(learner.parameters.values(), learner.train.max_grad_norm)
    rate = learner.train.rate(learner.epochs_done * steps + step, learner.train.epochs * steps)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    for prevention in learner.preventions:
        prevention.before_step(learner)
    learner.optimizer.step()
