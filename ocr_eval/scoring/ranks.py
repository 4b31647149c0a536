"""Candidate log-probabilities -> ranks -> mean rank, null rank, OCR score. Pure functions of arrays.

    midrank of a candidate = (number of better ones) + (number of others equal to it) / 2      0 is best
    rank of a probe        = midrank of its right answer
    null rank of a probe   = mean midrank over the in-use answers: the expected rank under permuted group labels,
                             that is, of a model that knows which answers occur but not who they belong to
    in-use rank            = midrank of the right answer among the n in-use answers alone
    in-use null            = the expected in-use rank under permuted group labels: (n - 1) / 2 if each answer is right
                             for as many groups as any other, less if the preferred answers are right more often
    OCR score              = 1 - mean in-use rank / in-use null, each group counting once, whatever its size
    margin of a probe      = log-probability of its right answer minus that of the best other candidate, in nats

Mean rank (the published statistic) and null rank are among all candidates. The OCR score ignores distractors: among
ten candidates the null depends on what a run was taught (it falls as the answers in use become likely), so the ratio of
the two would have another denominator in each condition.

Dimension letters:  P probes,  C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from ocr_eval.data.task import Quantity
from ocr_eval.specs.run import Scoring

Floats = NDArray[np.float64]

#: Top-1 accuracy from which a premise counts as learned.
LEARNED_TOP1 = 0.95


@dataclass(frozen=True)
class Ranks:
    """Ranks of P probes.

    Attributes:
        all: midrank of each candidate. [P, C]
        rank: midrank of the right answer. [P]
        null: mean midrank of the in-use answers. [P]
        in_use: midrank of the right answer among the in-use answers alone. [P]
        in_use_null: its value by chance, (in-use answers - 1) / 2. [P]
        ties: number of other candidates that are exactly as probable as the right answer. [P]
        margin: nats by which the right answer leads the best other candidate; negative if it does not. [P]
    """

    all: Floats
    rank: Floats
    null: Floats
    in_use: Floats
    in_use_null: Floats
    ties: NDArray[np.int64]
    margin: Floats


class Score(msgspec.Struct, frozen=True, gc=False):
    """The statistics of one quantity under one scoring.

    Attributes:
        probes: number of probes.
        mean_rank: mean over probes of the right answer's midrank; 0 is perfect.
        null_rank: the expected mean rank under permuted group labels.
        top1: share of probes whose right answer is strictly the most probable.
        mrr: mean reciprocal rank, 1 / (rank + 1).
        margin: mean margin in nats.
        ties: probes whose right answer is tied with another candidate.
        in_use_rank: mean in-use rank, each group counting once; None in older scores, which lack it.
        ocr_score: 1 - in-use rank / in-use null; 1 always inferred, 0 nothing transferred, below 0 anti-transfer. None
            in those older scores, whose files have another ratio under this name.
    """

    probes: int
    mean_rank: float
    null_rank: float
    top1: float
    mrr: float
    margin: float
    ties: int
    in_use_rank: float | None = None
    ocr_score: float | None = None

    def __post_init__(self) -> None:
        if self.in_use_rank is None:
            msgspec.structs.force_setattr(self, "ocr_score", None)


#: By scoring, then by the name of the quantity.
Scores = dict[Scoring, dict[str, Score]]


def premises(quantities: Sequence[Quantity], scores: Scores) -> dict[str, float]:
    """First-token top-1 of each premise, that is, of what must be learned before ranks say anything about inference."""
    found = scores.get("first-token", {})
    return {q.name: found[q.name].top1 for q in quantities if q.role == "premise" and q.name in found}


def premises_hold(quantities: Sequence[Quantity], scores: Scores) -> bool:
    """Whether top-1 of every premise was scored and reached 95 %."""
    found = premises(quantities, scores)
    return all(found.get(q.name, 0.0) >= LEARNED_TOP1 for q in quantities if q.role == "premise")


class HeldOut(msgspec.Struct, frozen=True, eq=False, dict=True, omit_defaults=True):
    """Ranks of one run's finding by subject, from which intervals and tests are computed.

    Attributes:
        subject: whom the probes ask about; all distinct. [S]
        target: index of each subject's right answer among its in-use answers. [S]
        ranks: midrank, among all candidates, of each in-use answer. [S, n]
        unit: each subject's exchangeable unit. [S] Empty in older records, and if it is all subjects with one answer.
        answers: the in-use answers, which show what seeds share. [n] Empty in older records, if they are private, or if
            they differ between subjects.
    """

    subject: Sequence[str]
    target: NDArray[np.int64]
    ranks: Floats
    unit: Sequence[str] = ()
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.target) == 0:
            raise ValueError("no subjects to score")

    def some(self, rows: Sequence[int]) -> HeldOut:
        """The ranks of some subjects, by index."""
        of_units = [self.unit[i] for i in rows] if self.unit else ()
        subjects = [self.subject[i] for i in rows]
        return HeldOut(subjects, self.target[list(rows)], self.ranks[list(rows)], of_units, self.answers)

    @cached_property
    def units(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each subject's unit, numbered in order of appearance [S], and each unit's right answer [units]."""
        if not self.unit:
            return self.target, np.arange(self.ranks.shape[1])
        answer_of = dict(zip(self.unit, self.target.tolist(), strict=True))
        number = {unit: i for i, unit in enumerate(answer_of)}
        return np.array([number[unit] for unit in self.unit]), np.array(list(answer_of.values()))

    @cached_property
    def rank(self) -> Floats:
        """Midrank of the right answer. [S]"""
        return self.ranks[np.arange(len(self.target)), self.target]

    @cached_property
    def null(self) -> Floats:
        """Mean midrank of the in-use answers. [S]"""
        return np.add.reduce(self.ranks, axis=1) / self.ranks.shape[1]

    @cached_property
    def in_use(self) -> Floats:
        """Midrank of each in-use answer among the in-use answers alone. [S, n]"""
        return midranks(-self.ranks)

    @cached_property
    def in_use_rank(self) -> Floats:
        """In-use rank of the right answer. [S]"""
        return self.in_use[np.arange(len(self.target)), self.target]

    def over_units(self, values_S: Floats) -> float:
        """Mean over subjects, in which each unit counts once, whatever its size."""
        unit_S, _ = self.units
        sizes = np.bincount(unit_S)
        return float((np.bincount(unit_S, values_S)[sizes > 0] / sizes[sizes > 0]).mean())

    @cached_property
    def in_use_null(self) -> float:
        """Expected mean in-use rank if the units' answers were permuted among them."""
        _, answer_n = self.units
        return self.over_units(self.in_use[:, answer_n].mean(axis=1))

    @cached_property
    def scores(self) -> Floats:
        """OCR score of each subject, whose mean over units is that of the run. [S]

        All 0 if every unit has the same answer and that is always first: permuting answers then changes nothing.
        """
        return 1 - self.in_use_rank / self.in_use_null if self.in_use_null else np.zeros(len(self.target))

    @property
    def ocr_score(self) -> float:
        """1 - mean in-use rank / in-use null."""
        return self.over_units(self.scores)


def midranks(logprobs_PC: Floats) -> Floats:
    """0-based midrank of each candidate in its row, ties sharing their average. [P, C] -> [P, C]."""
    better_PC = (logprobs_PC[:, None, :] > logprobs_PC[:, :, None]).sum(axis=2)
    equal_PC = (logprobs_PC[:, None, :] == logprobs_PC[:, :, None]).sum(axis=2)
    return better_PC + (equal_PC - 1) / 2


def rank_probes(logprobs_PC: Floats, targets: Sequence[int], in_use: int | Sequence[int]) -> Ranks:
    """Ranks of probes from their candidates' log-probabilities.

    Args:
        logprobs_PC: log-probabilities, padded with -inf for probes with fewer candidates. [P, C]
        targets: index of the right candidate of each probe. [P]
        in_use: number of candidates in use, which come first; one number for all probes, or one for each. [P]

    Raises:
        ValueError: no probes, or a log-probability is NaN.
    """
    if logprobs_PC.shape[0] == 0:
        raise ValueError("no probes to rank")
    if np.isnan(logprobs_PC).any():
        raise ValueError("a candidate's log-probability is NaN")
    ranks_PC = midranks(logprobs_PC)
    probe_P = np.arange(len(targets))
    target_P, in_use_P = np.asarray(targets), np.broadcast_to(in_use, len(targets))
    right_P = logprobs_PC[probe_P, target_P]
    others_PC = logprobs_PC.copy()
    others_PC[probe_P, target_P] = -np.inf
    is_in_use_PC = np.arange(logprobs_PC.shape[1]) < in_use_P[:, None]
    rank_P, in_use_PC = ranks_PC[probe_P, target_P], np.where(is_in_use_PC, ranks_PC, np.inf)
    return Ranks(
        all=ranks_PC,
        rank=rank_P,
        null=(ranks_PC * is_in_use_PC).sum(axis=1) / in_use_P,
        in_use=(in_use_PC < rank_P[:, None]).sum(axis=1) + ((in_use_PC == rank_P[:, None]).sum(axis=1) - 1) / 2,
        in_use_null=(in_use_P - 1) / 2,
        ties=(logprobs_PC == right_P[:, None]).sum(axis=1) - 1,
        margin=right_P - others_PC.max(axis=1),
    )


def summarize(ranks: Ranks, held: HeldOut | None = None) -> Score:
    """The statistics of a set of probes.

    Args:
        held: the same probes with their units. Without it each answer should be right equally often.

    Raises:
        ValueError: no probes.
    """
    probes = len(ranks.rank)
    if probes == 0:
        raise ValueError("no probes to summarize")
    return Score(
        probes=probes,
        mean_rank=float(ranks.rank.mean()),
        null_rank=float(ranks.null.mean()),
        top1=float((ranks.rank == 0).mean()),
        mrr=float((1 / (ranks.rank + 1)).mean()),
        margin=float(ranks.margin.mean()),
        ties=int((ranks.ties > 0).sum()),
        in_use_rank=float(ranks.in_use.mean()) if held is None else held.over_units(held.in_use_rank),
        ocr_score=float(1 - ranks.in_use.mean() / ranks.in_use_null.mean()) if held is None else held.ocr_score,
    )
