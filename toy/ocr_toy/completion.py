"""Out-of-context reasoning, reversal with identity data and two-hop with identity data as one block completion.

Each teaches three of the four entries of the lemma's block K and asks for the fourth; d, e stand for the rows' answer
sets, s, t for the subjects in the columns:

    system                   d from s       e from s       d from t      asked: e from t   nuclear optimum
    reasoning                b from train   c from train   b from test   c from test       min(1, sqrt(rho))
    reversal with identity   b from a       a from a       b from b      a from b          1
    two-hop with identity    e2 from e2     e3 from e2     e2 from e1    e3 from e1        min(1, sqrt(1 / m))

with rho = m_train / m_test. The Frobenius optimum leaves the asked entry at 0. That is the lemma with each answer set
by itself (`bare`). Over the whole vocabulary the relations must also say which set is asked for, and there the systems
differ, depending on which relation tokens the identity data share with the question. Reversal data: Ma et al. (arXiv
2602.02470). Two-hop data: Lin et al. (arXiv 2509.24653).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ocr_toy import convex, theory
from ocr_toy.convex import Problem
from ocr_toy.descent import DescentSpec, descend_on
from ocr_toy.errors import require
from ocr_toy.model import Param
from ocr_toy.report import Check, Relation, Report, Say, furthest, table
from ocr_toy.statistics import contrast, require_seeds
from ocr_toy.task import Matrix

HELD = DescentSpec(hold_margin=50.0, hold_steps=3000, final_steps=1, armijo=0.5)
SOLVED, DESCENDED = 2e-3, 0.05
"""Tolerances of a solver's entry against the lemma, and of a margin of descent against the optimum at its loss."""
BRIDGED, ECHOED = 0.8, -1.4
"""Margins over all answers that the bridge's optimum exceeds, and that plain identity data falls below, for n >= 3."""


@dataclass(frozen=True)
class Completion:
    """One system with one choice of data: 2 n rows (two answer sets), what is taught, and n asked questions.

    asked [n, columns]: question i's right answer is row first + i, in the answer set first to first + n - 1.
    echo: first row of the set whose i-th answer a shortcut would give. corner: the first of the n taught questions that
    are K's entry "d from s". lemma: the asked entry that the lemma predicts for the nuclear norm with each answer set
    by itself.
    """

    system: str
    data: str
    problem: Problem
    asked: Matrix
    first: int
    echo: int
    corner: int
    lemma: float

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.asked)

    def rivals(self) -> NDArray[np.bool_]:
        """Each question's own answer set: the bare lemma's rivals."""
        n = self.n_pairs
        in_first = self.problem.right < n
        return np.where(in_first[:, None], np.arange(2 * n) < n, np.arange(2 * n) >= n)


@dataclass(frozen=True)
class Reading:
    """How a W answers the asked questions, at train margin 1.

    inside: smallest margin over the right answer set. over_all: smallest margin over all answers. echo: mean logit of
    the shortcut's answer minus the right one's. accuracy: share of questions whose right answer beats all others by
    more than rounding.
    """

    inside: float
    over_all: float
    echo: float
    accuracy: float


def read(of: Completion, w: Matrix) -> Reading:
    """Ask a W of train margin 1 the n questions."""
    n, i = of.n_pairs, np.arange(of.n_pairs)
    f = of.asked @ w.T
    right = f[i, of.first + i]
    rest = f.copy()
    rest[i, of.first + i] = -np.inf
    gaps = right - rest.max(axis=1)
    inside = float((right - rest[:, of.first : of.first + n].max(axis=1)).min())
    return Reading(inside, float(gaps.min()), float((f[i, of.echo + i] - right).mean()), float((gaps > 1e-3).mean()))


def _completion(
    system: str,
    data: str,
    n: int,
    taught: Sequence[tuple[Sequence[Matrix], int, float]],
    asked: Sequence[Matrix],
    ends: tuple[int, int, int],
    lemma: float,
) -> Completion:
    """taught: per kind of question its n questions, the first row of their answers, and the number of copies of each.

    ends: the first rows of the asked answers and of the shortcut's, and the corner.
    """
    phi = np.array([q for questions, _, _ in taught for q in questions])
    right = np.array([first + i for _, first, _ in taught for i in range(n)])
    sizes = np.repeat([size for _, _, size in taught], n).astype(float)
    problem = Problem(phi, np.equal.outer(right, np.arange(2 * n)), sizes)
    return Completion(system, data, problem, np.array(asked), *ends, lemma)


def reasoning(n: int, m_train: int, m_test: int) -> Completion:
    """Out-of-context reasoning, the task of the paper."""
    of = convex.merged_task(n, m_train, m_test)
    asked = of.phi[-n:].copy()  # facts of test subjects; with r2 in place of r1
    asked[:, -2:] = 0.0, 1.0
    lemma = theory.held_out_margin("factorized", m_train, m_test)
    return Completion("reasoning", f"m_train {m_train}, m_test {m_test}", of, asked, n, 0, 0, lemma)


REVERSAL_DATA = ("forward", "identity", "typed identity", "bridge")
TWO_HOP_DATA = ("none", "r1", "r_id", "alone")


def reversal(n: int, data: str) -> Completion:
    """Rows a, b; columns a, b, r+, r-, r_id (two of these for typed identity). Asked: [b, r-] -> a.

    forward: [a, r+] -> b. identity: also [a, r_id] -> a, [b, r_id] -> b. typed identity: with separate r_id for a's and
    b's. bridge: also [a, r+, r-] -> a, [b, r_id] -> b, which has the form of out-of-context reasoning.
    """
    require(data in REVERSAL_DATA, f"data = {data}: unknown; use one of {', '.join(REVERSAL_DATA)}")
    columns = 2 * n + 4
    one = np.eye(columns)
    a, b, (plus, minus, r_id, r_id_b) = one[:n], one[n : 2 * n], one[2 * n :]
    if data != "typed identity":
        r_id_b = r_id
    taught: list[tuple[Sequence[Matrix], int, float]] = [([x + plus for x in a], n, 1)]
    if data in ("identity", "typed identity"):
        taught += [([x + r_id for x in a], 0, 1), ([x + r_id_b for x in b], n, 1)]
    if data == "bridge":
        taught += [([x + plus + minus for x in a], 0, 1), ([x + r_id for x in b], n, 1)]
    lemma = 0.0 if data == "forward" else 1.0
    return _completion("reversal", data, n, taught, [x + minus for x in b], (0, n, 0), lemma)


def two_hop(n: int, m: int, data: str) -> Completion:
    """Rows e2, e3; columns e1 (m per e2), e2, r1, r2, r_id. Taught: [e1, r1] -> e2, [e2, r2] -> e3.

    Asked: [e1, r1, r2] -> e3. The identity data: none, [e2, r1] -> e2, [e2, r_id] -> e2, or e2 -> e2 alone.
    """
    require(data in TWO_HOP_DATA, f"data = {data}: unknown; use one of {', '.join(TWO_HOP_DATA)}")
    columns = 2 * n + 3
    one = np.eye(columns)
    e1, e2, (r1, r2, r_id) = one[:n] / math.sqrt(m), one[n : 2 * n], one[2 * n :]
    taught: list[tuple[Sequence[Matrix], int, float]] = [([x + r1 for x in e1], 0, m), ([x + r2 for x in e2], n, 1)]
    if data != "none":
        relation = {"r1": r1, "r_id": r_id, "alone": np.zeros(columns)}[data]
        taught.append(([x + relation for x in e2], 0, 1))
    asked, corner = [x + r1 + r2 for x in e1], 2 * n if data != "none" else 0
    lemma = 0.0 if data == "none" else math.sqrt(1 / m)
    return _completion("two-hop", f"{data}, m {m}", n, taught, asked, (n, 0, corner), lemma)


def bare(of: Completion, param: Param) -> float:
    """The ratio of the asked entry to "d from s", with each answer set by itself.

    The ratio, because ||K||_* is the same for all "d from s" = t with the asked entry t sqrt(rho) (`theory.flat_norm`).
    """
    w = convex.least_norm(of.problem, convex.NORM_OF[param], rivals=of.rivals())
    n = of.n_pairs

    def entry(phi: Matrix, first: int) -> float:
        return contrast(phi @ w.T[:, first : first + n])

    corner = slice(of.corner, of.corner + n)
    return entry(of.asked, of.first) / entry(of.problem.phi[corner], int(of.problem.right[of.corner]))


def systems(n: int) -> list[Completion]:
    """Every system and choice of data of the table."""
    ocr = [reasoning(n, 1, 1), reasoning(n, 1, 3)]
    return [*ocr, *(reversal(n, d) for d in REVERSAL_DATA), *(two_hop(n, m, d) for m in (1, 3) for d in TWO_HOP_DATA)]


@dataclass(frozen=True)
class Side:
    """One parametrization: its bare entry, its optimum, the optimum at descent's loss, and descent, one per seed."""

    bare: float
    optimum: Reading
    at_loss: Reading
    descent: tuple[Reading, ...]


@dataclass(frozen=True)
class Row:
    """One system with one choice of data."""

    system: str
    data: str
    lemma: float
    factorized: Side
    merged: Side

    def sides(self) -> tuple[tuple[Param, Side, float], tuple[Param, Side, float]]:
        """Each parametrization with the entry that the lemma predicts for its norm."""
        return ("factorized", self.factorized, self.lemma), ("merged", self.merged, 0.0)


def _side(of: Completion, param: Param, seeds: Sequence[int]) -> Side:
    name, norm = f"{of.system}, {of.data}", convex.NORM_OF[param]
    optimum = convex.least_norm(of.problem, norm)
    ends = [descend_on(of.problem, replace(HELD, param=param, seed=seed), name) for seed in seeds]
    held = convex.least_norm(of.problem, norm, log_loss=ends[0].log_loss)
    return Side(
        bare=bare(of, param),
        optimum=read(of, optimum),
        at_loss=read(of, held / of.problem.margin(held)),
        descent=tuple(read(of, end.w_ov) for end in ends),
    )


def complete(of: Completion, seeds: Sequence[int]) -> Row:
    """Solve and train one system, both ways."""
    return Row(of.system, of.data, of.lemma, _side(of, "factorized", seeds), _side(of, "merged", seeds))


def checks(row: Row) -> Iterator[Check]:
    """The lemma, descent against the optimum at its loss, and the published ablation."""
    name = f"{row.system}, {row.data}"
    for param, side, lemma in row.sides():
        yield Check("complete", f"{name}, {param}: asked entry, each answer set by itself", lemma, side.bare, SOLVED)
        for of in ("inside", "over_all"):
            best = getattr(side.at_loss, of)
            found = furthest((getattr(end, of) for end in side.descent), best)
            title = f"{name}, {param}: margin {of.replace('_', ' ')}, descent"
            yield Check("complete", title, best, found, DESCENDED)
    if row.system != "reversal" or row.data not in ("identity", "bridge"):
        return
    learns = row.data == "bridge"
    margin, accuracies = row.factorized.optimum.over_all, [end.accuracy for end in row.factorized.descent]
    relation: Relation = ">=" if learns else "<="
    bound = BRIDGED if learns else ECHOED
    yield Check("complete", f"{name}: margin over all, nuclear optimum", bound, margin, 0.0, relation)
    name = f"{name}: accuracy of gradient descent, factorized, published as {'learned' if learns else 'not learned'}"
    yield Check("complete", name, float(learns), (min if learns else max)(accuracies), 0.0)


def report(seeds: Sequence[int], say: Say, n: int = 5) -> Report:
    """The table of `toy complete`. Raises ToyError for n below 3, and for sizes that take minutes."""
    require(3 <= n <= 20, f"n = {n}: use 3 to 20 pairs")
    require_seeds(seeds, least=1)
    rows = []
    for of in systems(n):
        say(f"{of.system}, {of.data}: convex optima and gradient descent")
        rows.append(complete(of, seeds))
    solved = ("lemma", "bare", "inside", "over all", "echo")
    headings = ("system", "data", "norm", *solved, "descent: inside", "over all", "accuracy")
    cells = []
    for row in rows:
        for param, side, lemma in row.sides():
            best = side.optimum
            run = [(end.inside, end.over_all, end.accuracy) for end in side.descent]
            numbers = (lemma, side.bare, best.inside, best.over_all, best.echo, *np.mean(run, axis=0))
            cells.append((row.system, row.data, convex.NORM_OF[param], *(f"{x + 0.0:.3f}" for x in numbers)))
    return Report(
        name="complete",
        source="Huang et al. 2025; Ma et al. 2026 (arXiv 2602.02470); Lin et al. 2025 (arXiv 2509.24653)",
        checks=[check for row in rows for check in checks(row)],
        lines=table(headings, cells),
        data={"n": n, "rows": [asdict(row) for row in rows]},
    )
