"""Simulated studies with a known truth: what intervals and tests of analysis/ are held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ocr_eval.scoring.ranks import HeldOut


@dataclass(frozen=True)
class Study:
    """How the ranks of a simulated study come about.

    Attributes:
        score: OCR score to expect of a seed, on average.
        seed_sd: standard deviation of that expectation over seeds.
        together: how often a subject does what its group does: shares its luck in inferring, and its favourite
            answers where it infers nothing.
        n: groups, and answers in use.
        subjects: in each group.
    """

    score: float = 0.0
    seed_sd: float = 0.0
    together: float = 0.0
    n: int = 5
    subjects: int = 16

    def truth(self, rng: np.random.Generator) -> float:
        """The estimand: the mean over seeds of what each is to give."""
        return float(np.mean(np.clip(rng.normal(self.score, self.seed_sd, size=200_000), -1, 1)))

    def seeds(self, rng: np.random.Generator, count: int, shift: float = 0.0) -> list[list[HeldOut]]:
        """So many seeds of one run each, ``shift`` added to what each is to give."""
        return [[self._run(rng, shift, number)] for number in range(count)]

    def _run(self, rng: np.random.Generator, shift: float, number: int) -> HeldOut:
        n, per_group = self.n, self.subjects
        chance = float(np.clip(rng.normal(self.score, self.seed_sd) + shift, -1, 1))
        target_S = np.repeat(np.arange(n), per_group)
        alone_S = rng.random((n, per_group)) >= self.together
        luck_S = np.where(alone_S, rng.random((n, per_group)), rng.random((n, 1))).ravel()
        liked_Sn = np.repeat(rng.permuted(np.tile(np.arange(n), (n, 1)), axis=1), per_group, axis=0)
        own_Sn = rng.permuted(np.tile(np.arange(n), (n * per_group, 1)), axis=1)
        alone_S = rng.random(n * per_group) >= self.together
        ranks_Sn = np.where(alone_S[:, None], own_Sn, liked_Sn).astype(float)
        for i in np.flatnonzero(luck_S < abs(chance)):
            before, wanted = ranks_Sn[i, target_S[i]], 0 if chance > 0 else n - 1
            ranks_Sn[i] += (ranks_Sn[i] < before) if chance > 0 else -1.0 * (ranks_Sn[i] > before)
            ranks_Sn[i, target_S[i]] = wanted
        return HeldOut([f"s{number}-{i}" for i in range(n * per_group)], target_S, ranks_Sn)
