"""Block completions: the three systems by the lemma, and the Identity Bridge's ablation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from ocr_toy import completion, convex, theory
from ocr_toy.completion import Reading
from ocr_toy.errors import ToyError


@pytest.mark.parametrize(
    "of",
    [
        completion.reasoning(4, 2, 5),
        completion.reversal(4, "bridge"),
        completion.two_hop(4, 2, "r1"),
        completion.two_hop(3, 5, "alone"),
    ],
    ids=lambda of: f"{of.system}, {of.data}",
)
def test_three_entries_of_a_2x2_block_leave_the_fourth(of: completion.Completion) -> None:
    assert 0 < of.lemma <= 1
    assert completion.bare(of, "factorized") == pytest.approx(of.lemma, abs=2e-3)
    assert completion.bare(of, "merged") == pytest.approx(0.0, abs=1e-3)


def test_the_bare_norms_of_reversal() -> None:
    """Worked by hand: n - 1 blocks with all entries 1 (nuclear norm 2), or with one entry 0 (squares sum to 3)."""
    of = completion.reversal(5, "bridge")
    for param, norm in (("factorized", 2.0 * 4), ("merged", 3.0 * 4)):
        w = convex.least_norm(of.problem, convex.NORM_OF[param], rivals=of.rivals())
        assert theory.norm(param, w) == pytest.approx(norm, rel=1e-4)


def _readings(of: completion.Completion) -> tuple[Reading, Reading]:
    nuclear, frobenius = (completion.read(of, convex.least_norm(of.problem, kind)) for kind in ("nuclear", "frobenius"))
    return nuclear, frobenius


def test_the_identity_bridge_ablation_over_the_whole_vocabulary() -> None:
    forward, _ = _readings(completion.reversal(5, "forward"))
    assert (forward.inside, forward.over_all) == pytest.approx((0.0, 0.0), abs=1e-4)
    identity, squares = _readings(completion.reversal(5, "identity"))
    assert (identity.inside, identity.over_all, identity.echo) == pytest.approx((0.006, -1.498, 1.498), abs=2e-3)
    assert squares.over_all == pytest.approx(-1.615, abs=2e-3)
    bridge, squares = _readings(completion.reversal(5, "bridge"))
    assert (bridge.inside, bridge.over_all, bridge.echo) == pytest.approx((0.896, 0.896, -1.764), abs=2e-3)
    assert squares.over_all == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(("data", "m1", "m3"), [("none", 0, 0), ("r1", 1, 0.5774), ("r_id", 0.688, 0.440)])
def test_two_hops_inside_the_answer_set(data: str, m1: float, m3: float) -> None:
    for m, expected in ((1, m1), (3, m3)):
        nuclear, frobenius = _readings(completion.two_hop(3, m, data))
        assert nuclear.inside == pytest.approx(expected, abs=2e-3)
        assert frobenius.inside == pytest.approx(0.0, abs=1e-3)
        assert nuclear.over_all < 1e-3


def test_a_row_checks_descent_against_the_optimum_of_its_loss() -> None:
    row = completion.complete(completion.reversal(3, "bridge"), [0])
    assert [c.name for c in completion.checks(row) if not c.passed] == []
    swapped = replace(row, factorized=row.merged, merged=row.factorized)
    assert len([c for c in completion.checks(swapped) if not c.passed]) == 4


def test_reading_a_matrix_by_hand() -> None:
    of = completion.reversal(3, "bridge")
    w = np.zeros((6, 10))
    w[[0, 1, 2], [3, 4, 5]] = 2.0  # b_i says a_i
    w[[3, 4, 5], [3, 4, 5]] = 3.0  # and b_i, more
    assert completion.read(of, w) == Reading(inside=2.0, over_all=-1.0, echo=1.0, accuracy=0.0)


def test_bad_choices_are_errors() -> None:
    for call in (lambda: completion.reversal(3, "x"), lambda: completion.two_hop(3, 1, "x")):
        with pytest.raises(ToyError, match="data = x: unknown"):
            call()
    with pytest.raises(ToyError, match="n = 2"):
        completion.report([0], lambda line: None, n=2)
    assert math.isclose(completion.two_hop(3, 4, "alone").lemma, 0.5)
