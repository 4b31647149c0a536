import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ocr_eval.data.task import Probe, Quantity
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.quantities import summarize_quantities
from ocr_eval.scoring.ranks import Score, midranks, rank_probes, summarize

logprobs = arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 12)), elements=st.sampled_from([-9.0, -3.5, -1.0, -0.5])
)


def naive_midrank(row: list[float], index: int) -> float:
    """The definition: the average of the places a candidate could have among its equals."""
    places = [i for i, value in enumerate(sorted(row, reverse=True)) if value == row[index]]
    return sum(places) / len(places)


@given(logprobs)
def test_midranks_are_their_definition(values):
    expected = [[naive_midrank(list(row), i) for i in range(len(row))] for row in values]
    assert midranks(values).tolist() == expected


@given(logprobs, st.randoms(use_true_random=False))
def test_permuting_candidates_permutes_ranks_and_nothing_else(values, random):
    order = list(range(values.shape[1]))
    random.shuffle(order)
    assert (midranks(values)[:, order] == midranks(values[:, order])).all()


@given(logprobs, st.sampled_from([-64.0, -0.5, 2.0, 1024.0]))
def test_adding_a_constant_changes_nothing(values, constant):
    assert (midranks(values) == midranks(values + constant)).all()


@given(logprobs)
def test_ranks_of_a_row_sum_to_those_of_any_order(values):
    candidates = values.shape[1]
    assert midranks(values).sum(axis=1) == pytest.approx(candidates * (candidates - 1) / 2)


def test_hand_worked_case():
    values = np.log(np.array([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]))
    ranks = rank_probes(values, targets=[1, 1, 3], in_use=2)
    assert ranks.rank.tolist() == [1.5, 0.0, 1.5]
    assert ranks.null.tolist() == [0.75, 1.25, 1.5]  # (0 + 1.5) / 2, (2.5 + 0) / 2, (1.5 + 1.5) / 2
    assert ranks.ties.tolist() == [1, 0, 3]
    assert ranks.margin == pytest.approx([np.log(0.2 / 0.5), np.log(0.6 / 0.2), 0.0])
    summary = summarize(ranks)
    assert summary.probes == 3
    assert summary.mean_rank == pytest.approx(1.0)
    assert summary.null_rank == pytest.approx(3.5 / 3)
    assert ranks.in_use.tolist() == [1.0, 0.0, 0.5]  # of the two in use, in the third row tied
    assert summary.in_use_rank == pytest.approx(0.5)
    assert summary.ocr_score == pytest.approx(1 - 0.5 / 0.5)
    assert summary.top1 == pytest.approx(1 / 3)
    assert summary.mrr == pytest.approx((1 / 2.5 + 1 + 1 / 2.5) / 3)
    assert summary.margin == pytest.approx((np.log(0.4) + np.log(3)) / 3)
    assert summary.ties == 2


def test_probes_with_candidates_of_their_own_are_compared_with_chance_among_them():
    asked = [Probe(who, tuple(words), 0, (0, 1, 2), "taught", who, who) for who, words in (("A", "abc"), ("B", "def"))]
    scores = CandidateScores({"first-token": np.log([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]])})
    score = summarize_quantities([Quantity("taught", "premise")], asked, scores)["first-token"]["taught"]
    assert (score.in_use_rank, score.ocr_score) == (0.5, 0.5)  # in-use ranks 0 and 1, by chance (3 - 1) / 2


def test_distractors_move_no_score():
    """Nor does how likely the answers in use are beside them, which moves mean rank and null."""
    rng = np.random.default_rng(0)
    in_use, targets = rng.normal(size=(8, 5)), [i % 5 for i in range(8)]
    alone = summarize(rank_probes(in_use, targets, in_use=5))
    for shift in (-5.0, 0.0, 5.0):
        among = summarize(rank_probes(np.hstack([in_use + shift, rng.normal(size=(8, 5))]), targets, in_use=5))
        assert (among.ocr_score, among.in_use_rank) == (alone.ocr_score, alone.in_use_rank)


def test_scores_from_before_in_use_ranks_state_no_ocr_score():
    old = b'{"probes":1,"mean_rank":1,"null_rank":2,"ocr_score":0.5,"top1":0,"mrr":0.5,"margin":0,"ties":0}'
    assert msgspec.json.decode(old, type=Score).ocr_score is None


@given(st.integers(2, 10), st.integers(0, 5), st.randoms(use_true_random=False))
def test_null_rank_is_the_mean_rank_under_every_permutation_of_groups(in_use, spare, random):
    values = np.array([[random.gauss(0, 1) for _ in range(in_use + spare)] for _ in range(4)])
    each = [rank_probes(values, [target] * 4, in_use).rank for target in range(in_use)]
    assert rank_probes(values, [0] * 4, in_use).null == pytest.approx(np.mean(each, axis=0))


def test_a_model_that_knows_only_which_answers_occur_scores_zero():
    rows = [[-1.0] * 5 + [-9.0] * 5] * 8
    summary = summarize(rank_probes(np.array(rows), [i % 5 for i in range(8)], in_use=5))
    assert summary.mean_rank == summary.null_rank == 2.0
    assert summary.ocr_score == 0.0


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="no probes"):
        rank_probes(np.empty((0, 10)), [], in_use=5)


def test_a_log_probability_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="is NaN"):
        rank_probes(np.array([[0.0, float("nan")]]), [0], in_use=2)
