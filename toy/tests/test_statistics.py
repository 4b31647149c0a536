"""The statistics: norms, margins, blocks, crossings, intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocr_toy import statistics as s
from ocr_toy.errors import ToyError
from ocr_toy.task import TaskSpec
from scipy.stats import t as student


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_norms_of_a_diagonal_matrix(values: list[float]) -> None:
    found = s.norms(np.diag(values))
    assert found.nuclear == pytest.approx(sum(values))
    assert found.frobenius == pytest.approx(math.hypot(*values))
    assert 1 - 1e-9 <= found.effective_rank <= len(values) + 1e-9


def test_effective_rank_counts_equal_singular_values() -> None:
    assert s.norms(np.diag([2.0, 2.0, 2.0, 0.0])).effective_rank == pytest.approx(3.0)


def test_a_zero_matrix_has_norms_and_rank_zero() -> None:
    assert s.norms(np.zeros((2, 3))) == s.Norms(0.0, 0.0, 0.0)


def test_answer_margin_looks_at_the_named_answers_only() -> None:
    f = np.array([[9.0, 1.0, 3.0, 0.5], [9.0, 4.0, 2.0, 3.5]])
    assert s.answer_margin(f, np.array([2, 1]), [1, 2, 3]) == pytest.approx(0.5)
    assert s.answer_margin(f, np.array([1, 1]), [1, 2]) == pytest.approx(-2.0)
    assert f[0, 2] == 3.0


def test_a_margin_ratio_without_a_positive_train_margin_is_none() -> None:
    assert s.margins(2.0, 1.0).normalized == pytest.approx(0.5)
    assert s.margins(-1.0, 1.0).normalized is None


def test_subject_blocks_average_the_subjects_of_a_pair() -> None:
    task = TaskSpec(n_pairs=2, m_train=1, m_test=2, n_noise=1, seq_len=4)
    effect = np.zeros((task.vocab, task.n_inputs))
    effect[task.first_answer + 2, 0] = 7.0  # c_1 from the train subject of pair 1
    effect[task.first_answer + 1, 4:6] = (1.0, 3.0)  # b_2 from both test subjects of pair 2
    blocks = s.subject_blocks(task, effect)
    assert blocks["train_c"].tolist() == [[7.0, 0.0], [0.0, 0.0]]
    assert blocks["test_b"].tolist() == [[0.0, 0.0], [0.0, 2.0]]
    assert not blocks["train_b"].any()
    assert s.contrast(blocks["train_c"]) == pytest.approx(3.5)
    assert "train_b" not in s.subject_blocks(TaskSpec(2, 0, 3, 1, 4), effect)


def test_contrast_takes_the_mean_of_all_other_answers() -> None:
    block = np.array([[5.0, 3.0, 0.0], [1.0, 4.0, 0.0], [0.0, 2.0, 6.0]])
    assert s.contrast(block) == pytest.approx(5.0 - 1.0)


def test_crossing_is_the_first_step_below() -> None:
    assert s.crossing([0, 10, 20, 30], [2.0, 0.9, 1.1, 0.5], 1.0) == 10
    assert s.crossing([0, 10], [2.0, 1.0], 1.0) is None


def test_interval_is_students() -> None:
    for count in range(2, 11):
        values = np.arange(count) ** 2.0
        found = s.interval(values.tolist())
        half = student.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
        assert found.mean == pytest.approx(values.mean())
        assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=3e-4)
    for count in (1, 11):
        with pytest.raises(ToyError, match=f"seeds = {count}"):
            s.interval([1.0] * count)
