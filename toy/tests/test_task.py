"""The task: its tokens, its question sets, its batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ocr_toy import task as t
from ocr_toy.errors import ToyError

sizes = st.builds(
    lambda n, m_train, m_test, noise, fill: t.TaskSpec(n, m_train, m_test, noise, 3 + (fill if noise else 0)),
    st.integers(2, 6),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(0, 9),
)


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_question_sets_hold_each_question_once_and_hold_test_entailments_out(task: t.TaskSpec) -> None:
    sets = t.question_sets(task)
    asked = [(s, r) for q in sets.values() for s, r in zip(q.subject, q.relation, strict=True)]
    assert sorted(asked) == [(s, r) for s in range(task.n_subjects) for r in (0, 1)]
    trained = t.trained_questions(task)
    assert len(trained) == 2 * task.n_train_subjects + task.n_test_subjects
    held_out = sets[t.TEST_ENTAILMENT]
    assert set(held_out.subject) == set(range(task.n_train_subjects, task.n_subjects))
    assert set(held_out.relation) == {1}
    pair = t.subject_pairs(task)
    for questions in sets.values():
        expected = task.first_answer + questions.relation * task.n_pairs + pair[questions.subject]
        assert (questions.answer == expected).all()
    assert task.vocab == task.n_subjects + 2 + 2 * task.n_pairs + task.n_noise + 1


@given(sizes, st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_batches_share_the_rows_out_and_survive_being_written_as_tokens(task: t.TaskSpec, seed: int) -> None:
    batch = t.sample_batches(task, 20, 2, t.stream(seed, "data"))
    groups = 3 if task.m_train else 1
    trained = 1 + (groups == 3)
    entailments = batch.context[..., 1].sum(axis=1)
    assert (entailments == (7 if groups == 3 else 0)).all()
    assert (batch.subject < task.n_train_subjects).sum() == (28 if trained == 2 else 0)
    assert (batch.context.sum(axis=2) + 1 == task.seq_len).all()

    first = t.Batch(batch.subject[0], batch.context[0], batch.answer[0])
    tokens = t.to_tokens(task, first, t.stream(seed, "layout"))
    counts = np.stack([np.bincount(row, minlength=task.n_inputs) for row in tokens])
    assert tokens.shape == (20, task.seq_len)
    assert (counts[:, task.n_subjects :] == first.context).all()
    assert (counts[np.arange(20), first.subject] == 1).all()
    assert (counts[:, : task.n_subjects].sum(axis=1) == 1).all()
    assert (tokens[:, -1] == task.eos).all()
    subject_place = (tokens < task.n_subjects).argmax(axis=1)
    relation_place = ((tokens >= task.n_subjects) & (tokens < task.first_noise)).argmax(axis=1)
    assert (subject_place < relation_place).all()


def test_the_published_task_has_80_subjects_and_128_tokens() -> None:
    task = t.TaskSpec()
    assert (task.n_subjects, task.vocab) == (80, 128)


def test_noise_is_uniform() -> None:
    task = t.TaskSpec()
    counts = t.sample_batches(task, 252, 40, t.stream(0, "data")).context[..., 2:-1].reshape(-1, 5)
    per_token = counts.sum(axis=0) / counts.sum()
    assert np.abs(per_token - 0.2).max() < 0.01
    assert counts.var(axis=0).mean() == pytest.approx(13 * 0.2 * 0.8, rel=0.05)


def test_streams_of_one_seed_differ_and_repeat() -> None:
    data, again, init = (t.stream(3, name).integers(0, 10**9, 4).tolist() for name in ("data", "data", "init"))
    assert data == again
    assert data != init


def test_evaluation_repeats_every_question_with_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    task = t.TaskSpec(n_pairs=3, m_train=1, m_test=2, n_noise=4, seq_len=12)
    batch, rows = t.evaluation_batch(task, 0, 5)
    assert {name: len(batch.subject[part]) for name, part in rows.items()} == {
        "train_fact": 15,
        "train_entailment": 15,
        "test_fact": 30,
        "test_entailment": 30,
    }
    noise = batch.context[rows["test_entailment"], 2:-1].reshape(5, 6, 4)
    assert not any((noise[0] == other).all() for other in noise[1:])

    drawn: list[str] = []
    real = t.stream

    def named(seed: int, name: str) -> np.random.Generator:
        drawn.append(name)
        return real(seed, name)

    monkeypatch.setattr(t, "stream", named)
    t.evaluation_batch(task, 0, 5)
    next(t.batches(task, 9, 0, 1))
    assert len(set(drawn)) == len(drawn) == 2


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"m_test": 0}, "m_test = 0"),
        ({"n_pairs": 1}, "n = 1"),
        ({"m_train": -1}, "m_train = -1"),
        ({"seq_len": 2}, "seq_len = 2"),
        ({"n_noise": 0}, "seq_len = 16 with noise = 0"),
        ({"n_noise": -1}, "noise = -1"),
    ],
)
def test_sizes_that_define_no_task_are_refused_by_name(change: dict[str, int], names: str) -> None:
    with pytest.raises(ToyError, match="^" + names):
        t.TaskSpec(**change)


def test_the_full_train_set_needs_a_task_without_noise() -> None:
    with pytest.raises(ToyError, match="noise = 5"):
        t.full_batch(t.TaskSpec())
    assert len(t.full_batch(t.noise_free(3, 1, 2)).subject) == 12
