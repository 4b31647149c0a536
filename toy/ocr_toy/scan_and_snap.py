"""One layer that scans for telling tokens, then snaps (Tian et al. 2023, arXiv 2305.16380), against the published log.

A sequence is L draws from its class's token distribution, then a query that names the class; the next token is the
class's answer. The query is not attended. With Z = z[query, token] and Y the merged decoder, both starting at zero,

    logits = Y LN(sum_t softmax_t(z[query, x_t]) e_{x_t}),   LN(x) = x / ||x||,

trained by SGD with momentum, rate 1 for both, as for figure 4 in the paper's code (`PUBLISHED` is its log, with its
seed 2). Theorems: tokens of only one class gain attention, those common to both lose it (2), and the former grow in
order of frequency (3). With one-hot tokens and no positions only counts matter, and they are multinomial.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ocr_toy.report import Check, Report, Say, listed, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import stream
from ocr_toy.train import one_thread

check = partial(Check, "scan-and-snap")
COMMON, UNIQUE, CLASSES, VOCABULARY = 10, 10, 2, 34
LENGTH, BATCH, STEPS, RATE, MOMENTUM = 128, 128, 100, 1.0, 0.9
EVERY, NEAR, OWN = 2, 0.15, slice(COMMON, COMMON + UNIQUE)
PUBLISHED = (3.52636, 2.36791, 0.73348, 0.16080, 0.04443, 0.01295, 0.00439, 0.00181)
"""Loss at steps 0, 2, .., 14 in the official log."""


def frequencies() -> np.ndarray:
    """Each class's distribution over the common tokens and the unique ones of every class, [CLASSES, tokens]."""
    p = np.zeros((CLASSES, COMMON + CLASSES * UNIQUE))
    p[:, :COMMON] = 1.0
    for label in range(CLASSES):
        first = COMMON + label * UNIQUE
        p[label, first : first + UNIQUE] = np.linspace(0.1, 1.0, UNIQUE)
    return p / p.sum(axis=1, keepdims=True)


@one_thread()
def train(seed: int) -> tuple[list[float], np.ndarray]:
    """Losses at every second step, and z at the end, [CLASSES, tokens]."""
    rng, p = stream(seed, "data"), frequencies()
    z = torch.zeros(CLASSES, p.shape[1], requires_grad=True)
    y = torch.zeros(VOCABULARY, p.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([z, y], lr=RATE, momentum=MOMENTUM)
    losses = []
    for step in range(STEPS):
        label = rng.integers(0, CLASSES, BATCH)
        counts = torch.from_numpy(rng.multinomial(LENGTH, p[label]).astype(np.float32))
        query = torch.from_numpy(label)
        attended = counts * torch.exp(z[query])
        hidden = torch.nn.functional.normalize(attended, dim=1)  # the softmax's denominator cancels in LN
        answer = query + VOCABULARY - CLASSES
        loss = torch.nn.functional.cross_entropy(hidden @ y.T, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            losses.append(float(loss.detach()))
    return losses, z.detach().numpy()


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def order(z: np.ndarray) -> float:
    """Spearman correlation of z with frequency over each class's unique tokens, averaged over classes."""
    found = []
    for label in range(CLASSES):
        own = z[label, COMMON + label * UNIQUE : COMMON + (label + 1) * UNIQUE]
        found.append(float(np.corrcoef(_ranks(own), np.arange(UNIQUE))[0, 1]))
    return float(np.mean(found))


def on_common(z: np.ndarray) -> list[float]:
    """Share of each class's attention on the common tokens, at mean counts; 0.645 at z = 0."""
    attended = frequencies() * np.exp(z)
    return list((attended[:, :COMMON].sum(axis=1) / attended.sum(axis=1)).astype(float))


def report(seeds: Sequence[int], say: Say) -> Report:
    """The losses of every seed against the published ones, and the order of attention."""
    require_seeds(seeds, least=1)
    say("scan and snap")
    runs = [train(seed) for seed in seeds]
    at = range(0, EVERY * len(PUBLISHED), EVERY)
    rows = [["published log", *(f"{x:.5f}" for x in PUBLISHED), "", ""]]
    checks: list[Check] = []
    data: list[dict[str, Any]] = []
    for seed, (losses, z) in zip(seeds, runs, strict=True):
        common, ordered = float(z[:, :COMMON].mean()), order(z)
        rows.append(
            [f"seed {seed}", *(f"{x:.5f}" for x in losses[: len(PUBLISHED)]), f"{common:.3f}", f"{ordered:.3f}"]
        )
        name = f"seed {seed}"
        checks.append(check(f"{name}: first loss, log of the vocabulary", math.log(VOCABULARY), losses[0], 1e-5))
        for step, published, loss in zip(at[1:6], PUBLISHED[1:6], losses[1:6], strict=True):
            checks.append(check(f"{name}: loss at step {step}", published, loss, NEAR * published))
        checks.append(check(f"{name}: z of common tokens falls", 0.0, common, 0.0, "<="))
        checks.append(check(f"{name}: z of unique tokens in order of frequency", 0.95, ordered, 0.0, ">="))
        data.append({"seed": seed, "losses": losses, "z": z.tolist(), "order": ordered, "on_common": on_common(z)})
    first = runs[0][1]
    headings = ("loss at step", *map(str, at), "z common", "order")
    return Report(
        name="scan-and-snap",
        source="Tian et al. 2023 (arXiv 2305.16380), figure_4.log",
        checks=checks,
        lines=[*table(headings, rows), f"z of class 0's own tokens, seed {seeds[0]}: {listed(list(first[0, OWN]), 2)}"],
        data={"published": list(PUBLISHED), "steps": list(at), "runs": data},
    )
