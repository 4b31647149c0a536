"""One epoch of the runs of a pack. Neither scores nor writes.

A run's loss is the mean cross-entropy over its batch's answer tokens, in fp32. Logits are computed only where
an answer token is predicted; a batch is one token forest a lane, so statements are not padded (forest.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ocr_eval.errors import RunFailed
from ocr_eval.forest import Forest, ForestBuilder, Reads, read_answers
from ocr_eval.injection import Pack
from ocr_eval.progress import ticking
from ocr_eval.tokens import Continuation


def train_epoch(pack: Pack, lanes: Sequence[int]) -> dict[int, float]:
    """Train one epoch of some lanes and return each one's mean loss in nats an answer token.

    Losses are measured before each step. Every lane takes a step of its own at each pass; one with fewer batches
    than the others sits out the rest. A lane whose loss is no longer finite stops there: its loss is returned as
    it became, its weights stay as they were, and the others go on.

    Raises:
        RunFailed: no gradient reaches part of an adapter.
    """
    batches = {lane: pack.injections[lane].batches() for lane in lanes}
    nats, tokens = dict.fromkeys(lanes, 0.0), dict.fromkeys(lanes, 0)
    steps = max(len(todo) for todo in batches.values())
    epoch = max(pack.injections[lane].epochs_done for lane in lanes) + 1
    with ticking(steps, f"epoch {epoch}") as ticker:
        for step in range(steps):
            going = [lane for lane in lanes if step < len(batches[lane]) and math.isfinite(nats[lane])]
            if not going:
                break
            losses = _backward(pack, {lane: batches[lane][step] for lane in going})
            for lane, (loss, count) in losses.items():
                nats[lane] += loss * count
                tokens[lane] += count
                if math.isfinite(loss):
                    _step(pack, lane, first=step == 0)
            pack.adapters.refresh()
            ticker.tick()
    for lane in lanes:
        pack.injections[lane].epochs_done += 1
    return {lane: nats[lane] / tokens[lane] for lane in lanes}


def batch_forest(batch: Sequence[Continuation]) -> tuple[Forest, Reads]:
    """A batch of one run as a token forest."""
    builder = ForestBuilder()
    reads, _ = read_answers(builder, [(example.prompt, [example.answer]) for example in batch])
    return builder.build(), reads


def _backward(pack: Pack, batches: dict[int, list[Continuation]]) -> dict[int, tuple[float, int]]:
    """Compute the gradients of all lanes in one pass; the loss of each lane and its answer tokens."""
    pack.adapters.zero_grad()
    logprobs = pack.view.token_logprobs({lane: batch_forest(batch) for lane, batch in batches.items()})
    losses = {lane: -values.mean() for lane, values in logprobs.items()}
    # Lanes share no parameter, so the gradient of the sum holds the gradient of each.
    pack.base.accelerator.backward(torch.stack(list(losses.values())).sum())
    return {lane: (loss.item(), len(logprobs[lane])) for lane, loss in losses.items()}


def _step(pack: Pack, lane: int, first: bool) -> None:
    injection = pack.injections[lane]
    if first and injection.epochs_done == 0:
        silent = pack.adapters.silent(lane)
        if silent:
            raise RunFailed(
                f"No gradient reaches {len(silent)} of {len(pack.adapters.modules)} trained modules, first {silent[0]}."
            )
    pack.base.accelerator.clip_grad_norm_(injection.parameters.values(), injection.train.max_grad_norm)
    injection.optimizer.step()
