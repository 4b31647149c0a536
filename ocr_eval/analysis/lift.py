"""What was inferred because of what was taught: scores minus those of the no-entailment control. Pure.

One rule for every table, sentence and file. p is that of ``difference``: two-sided sign flips over the seeds that both
have. It is Holm-corrected over all lifts shown together that have enough seeds for a p, including those without a
verdict, because only the outcome shows which controls forget. There is no verdict if a run or a control run did not
learn what it was taught, because the two then differ in more than the entailments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ocr_eval.analysis.difference import Difference, comparisons, corrected, mean_difference, sign_of
from ocr_eval.analysis.significance import seeds_needed
from ocr_eval.records.record import Record
from ocr_eval.records.rows import ranks_by_seed
from ocr_eval.specs.run import Scoring


@dataclass(frozen=True)
class Lift(Difference):
    """A condition minus its no-entailment control.

    Attributes:
        unlearned: number of runs of the condition in which a premise does not hold.
        control_runs: number of control runs in the seeds that are compared.
        control_unlearned: number of those in which a premise does not hold; their premises are the facts.
        p_holm: p corrected for all lifts shown together; None with fewer than six seeds, or if a premise fails.
        sign: the verdict: 1 above the control, -1 below, 0 neither is shown; None for no verdict.
        comparisons: number of lifts that p is corrected for, or would be if all had enough seeds.
    """

    unlearned: int = 0
    control_runs: int = 0
    control_unlearned: int = 0
    p_holm: float | None = None
    sign: int | None = None
    comparisons: int = 1

    @property
    def seeds_needed(self) -> int:
        """Seeds that a verdict takes."""
        return seeds_needed(self.comparisons)


def lift_over(pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]], scoring: Scoring) -> Lift | None:
    """A lift before its verdict, from the runs of each association and its control runs; None without a common seed.

    Raises:
        ValueError: no people in common, or groups that do not match.
    """
    pairs = [(runs, [run for run in of if run.seed in {each.seed for each in runs}]) for runs, of in pairs]
    ranks = [(ranks_by_seed(runs, scoring), ranks_by_seed(of, scoring)) for runs, of in pairs]
    if not set.intersection(*(set(of) for _, of in ranks)):
        return None
    return Lift(
        **vars(mean_difference(ranks)),
        unlearned=sum(not run.premises_hold for runs, _ in pairs for run in runs),
        control_runs=sum(len(of) for _, of in pairs),
        control_unlearned=sum(not run.premises_hold for _, of in pairs for run in of),
    )


def decided(lifts: Sequence[Lift | None]) -> list[Lift | None]:
    """Lifts that are shown together, each with its corrected p and its verdict; None stays None."""
    there = [lift for lift in lifts if lift is not None]
    found = map(_decided, there, corrected(there), comparisons(there))
    return [None if lift is None else next(found) for lift in lifts]


def _decided(lift: Lift, p: float | None, tests: int) -> Lift:
    if lift.unlearned or lift.control_unlearned:
        p = None
    return replace(lift, p_holm=p, sign=sign_of(lift, p, tests), comparisons=tests)
