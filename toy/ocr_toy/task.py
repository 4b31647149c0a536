"""The symbolic factual-recall task: tokens, the four question sets, and batches of sequences.

Every subject s of pair i has a fact (s, r1) -> b_i and an entailment (s, r2) -> c_i. Facts of all
subjects and entailments of train subjects are trained on; entailments of test subjects are held out.

Token ids, in this order: train subjects (pair-major), test subjects (pair-major), r1, r2, the noise
tokens, EOS, then the answers A1 = {b_i} and A2 = {c_i}. Answers never occur in a sequence, so only the
first `n_inputs` ids are read, while all `vocab` ids can be predicted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ocr_toy.errors import require

Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]
Floats = NDArray[np.float32]

TRAIN_FACT = "train_fact"
TRAIN_ENTAILMENT = "train_entailment"
TEST_FACT = "test_fact"
TEST_ENTAILMENT = "test_entailment"
TRAINED_SETS = (TRAIN_FACT, TRAIN_ENTAILMENT, TEST_FACT)
"""The question sets that are trained on; TEST_ENTAILMENT is the held-out one."""

MIN_SEQ_LEN = 3
"""Subject, relation and EOS."""


@dataclass(frozen=True)
class TaskSpec:
    """Sizes of the task. The defaults are the published run: 80 subjects, vocabulary 128.

    Raises ToyError for sizes that define no task.
    """

    n_pairs: int = 20
    m_train: int = 1
    m_test: int = 3
    n_noise: int = 5
    seq_len: int = 16

    def __post_init__(self) -> None:
        require(self.n_pairs >= 2, f"n = {self.n_pairs}: a wrong answer needs a second pair; use n >= 2")
        require(self.m_train >= 0, f"m_train = {self.m_train}: cannot be negative; use m_train >= 0")
        require(self.m_test >= 1, f"m_test = {self.m_test}: nothing is held out; use m_test >= 1")
        require(0 <= self.n_noise <= 255, f"noise = {self.n_noise}: out of range; use 0 to 255")
        require(
            self.seq_len >= MIN_SEQ_LEN,
            f"seq_len = {self.seq_len}: too short for subject, relation and EOS; use {MIN_SEQ_LEN} or more",
        )
        require(
            self.n_noise > 0 or self.seq_len == MIN_SEQ_LEN,
            f"seq_len = {self.seq_len} with noise = 0: no token to fill the sequence; "
            f"use seq_len = {MIN_SEQ_LEN} or noise >= 1",
        )

    @property
    def n_train_subjects(self) -> int:
        """Number of subjects whose entailment is trained on."""
        return self.n_pairs * self.m_train

    @property
    def n_test_subjects(self) -> int:
        """Number of subjects whose entailment is held out."""
        return self.n_pairs * self.m_test

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.n_train_subjects + self.n_test_subjects

    @property
    def n_inputs(self) -> int:
        """Number of tokens that occur in sequences: subjects, two relations, noise, EOS."""
        return self.n_subjects + 2 + self.n_noise + 1

    @property
    def vocab(self) -> int:
        """Vocabulary size d, the width of the one-hot embeddings."""
        return self.n_inputs + 2 * self.n_pairs

    @property
    def first_noise(self) -> int:
        """Id of the first noise token."""
        return self.n_subjects + 2

    @property
    def eos(self) -> int:
        """Id of EOS."""
        return self.n_inputs - 1

    @property
    def first_answer(self) -> int:
        """Id of b_1; b_i is at first_answer + i and c_i at first_answer + n_pairs + i."""
        return self.n_inputs


def noise_free(n_pairs: int, m_train: int, m_test: int) -> TaskSpec:
    """The setting of Theorems 1 and 2: sequences of subject, relation, EOS and nothing else."""
    return TaskSpec(n_pairs=n_pairs, m_train=m_train, m_test=m_test, n_noise=0, seq_len=MIN_SEQ_LEN)


@dataclass(frozen=True)
class Questions:
    """Parallel integer arrays [Q]: subject id, relation (0 for r1, 1 for r2), answer id."""

    subject: Ints
    relation: Ints
    answer: Ints

    def __len__(self) -> int:
        return len(self.subject)


def question_sets(task: TaskSpec) -> dict[str, Questions]:
    """The four question sets by name, in the order of TRAINED_SETS then TEST_ENTAILMENT.

    With m_train = 0 the two sets of train subjects do not exist and are omitted.
    """
    pair = subject_pairs(task)
    train = np.arange(task.n_train_subjects)
    test = np.arange(task.n_train_subjects, task.n_subjects)
    parts = {TRAIN_FACT: (train, 0), TRAIN_ENTAILMENT: (train, 1), TEST_FACT: (test, 0), TEST_ENTAILMENT: (test, 1)}
    return {
        name: Questions(
            subject=subjects,
            relation=np.full(len(subjects), relation),
            answer=task.first_answer + relation * task.n_pairs + pair[subjects],
        )
        for name, (subjects, relation) in parts.items()
        if len(subjects)
    }


def subject_pairs(task: TaskSpec) -> Ints:
    """The pair index of every subject, [n_subjects]."""
    pairs = np.arange(task.n_pairs)
    return np.concatenate([np.repeat(pairs, task.m_train), np.repeat(pairs, task.m_test)])


@dataclass(frozen=True)
class Batch:
    """Sequences reduced to what the models can see of them, with any leading dimensions.

    With one-hot embeddings and no positions, X^T X W_KQ x_T depends on a sequence only through its token
    counts: the subject (one occurrence) and the counts of all other input tokens.

    subject: [..., B] ids; context: [..., B, n_inputs - n_subjects] counts of r1, r2, noise tokens, EOS;
    answer: [..., B] ids.
    """

    subject: Ints
    context: Floats
    answer: Ints


def _batch(task: TaskSpec, questions: Questions, rng: np.random.Generator | None) -> Batch:
    rows = len(questions)
    context = np.zeros((rows, task.n_inputs - task.n_subjects), dtype=np.float32)
    context[np.arange(rows), questions.relation] = 1.0
    context[:, -1] = 1.0
    fill = task.seq_len - MIN_SEQ_LEN
    if fill and rng is not None:
        noise = rng.integers(0, task.n_noise, size=(rows, fill), dtype=np.uint8)
        cells = noise + np.arange(rows)[:, None] * task.n_noise
        counts = np.bincount(cells.ravel(), minlength=rows * task.n_noise)
        context[:, 2:-1] = counts.reshape(rows, task.n_noise)
    return Batch(subject=questions.subject, context=context, answer=questions.answer)


def concatenate(parts: list[Questions]) -> Questions:
    """Question sets one after another."""
    return Questions(
        subject=np.concatenate([p.subject for p in parts]),
        relation=np.concatenate([p.relation for p in parts]),
        answer=np.concatenate([p.answer for p in parts]),
    )


def trained_questions(task: TaskSpec) -> Questions:
    """All questions that are trained on, once each."""
    sets = question_sets(task)
    return concatenate([sets[name] for name in TRAINED_SETS if name in sets])


def require_batch(task: TaskSpec, batch_size: int) -> None:
    """Raise ToyError unless batches of this size exist; 0 is the full train set, for tasks without noise."""
    if batch_size == 0:
        require(
            task.n_noise == 0,
            f"batch = 0 (the full train set) with noise = {task.n_noise}: noise makes sequences random; "
            "use noise = 0 or batch >= 3",
        )
        return
    trained = len(TRAINED_SETS) if task.m_train else 1
    require(batch_size >= trained, f"batch = {batch_size}: fewer than the {trained} trained question sets; use more")


def full_batch(task: TaskSpec) -> Batch:
    """Every trained question once, for tasks without noise. Raises ToyError if noise makes sequences random."""
    require_batch(task, 0)
    return _batch(task, trained_questions(task), None)


def sample_batches(task: TaskSpec, batch_size: int, steps: int, rng: np.random.Generator) -> Batch:
    """`steps` random batches, [steps, batch_size]: equal shares of the trained question sets, in that order.

    A remainder goes to the earlier sets. Noise tokens are independent and uniform. Raises ToyError for
    a batch smaller than the number of sets.
    """
    require_batch(task, batch_size)
    sets = question_sets(task)
    trained = [sets[name] for name in TRAINED_SETS if name in sets]
    share, remainder = divmod(batch_size, len(trained))
    drawn = []
    for position, questions in enumerate(trained):
        rows = share + (position < remainder)
        picked = rng.integers(0, len(questions), size=(steps, rows))
        drawn.append((questions.subject[picked], questions.relation[picked], questions.answer[picked]))
    subject, relation, answer = (np.concatenate(parts, axis=1) for parts in zip(*drawn, strict=True))
    flat = _batch(task, Questions(subject.ravel(), relation.ravel(), answer.ravel()), rng)
    shape = (steps, batch_size)
    return Batch(subject, flat.context.reshape(*shape, -1), answer)


def batches(task: TaskSpec, batch_size: int, seed: int, chunk: int) -> Iterator[Batch]:
    """Endless chunks of `chunk` training batches from the seed's data stream."""
    rng = stream(seed, "data")
    while True:
        yield sample_batches(task, batch_size, chunk, rng)


def evaluation_batch(task: TaskSpec, seed: int, draws: int) -> tuple[Batch, dict[str, slice]]:
    """Every question of every set `draws` times with independent noise, and the rows of each set."""
    require(draws >= 1, f"draws = {draws}: nothing to evaluate; use draws >= 1")
    sets = question_sets(task)
    repeats = draws if task.seq_len > MIN_SEQ_LEN else 1
    rows, start = {}, 0
    for name, questions in sets.items():
        rows[name] = slice(start, start + len(questions) * repeats)
        start = rows[name].stop
    repeated = [q for questions in sets.values() for q in [questions] * repeats]
    return _batch(task, concatenate(repeated), stream(seed, "evaluation")), rows


def to_tokens(task: TaskSpec, batch: Batch, rng: np.random.Generator) -> Ints:
    """Write the rows of a batch [B] out as token sequences [B, seq_len].

    One subject, one relation at a random position after it, noise elsewhere, EOS last.
    """
    rows = len(batch.subject)
    relation = task.n_subjects + batch.context[:, :2].argmax(axis=1)
    noise_ids = np.arange(task.first_noise, task.eos)
    tokens = np.empty((rows, task.seq_len), dtype=np.int64)
    for row in range(rows):
        counts = batch.context[row, 2:-1].astype(int)
        places = np.sort(rng.choice(task.seq_len - 1, size=2, replace=False))
        rest = np.setdiff1d(np.arange(task.seq_len - 1), places)
        tokens[row, rest] = rng.permutation(np.repeat(noise_ids, counts))
        tokens[row, places] = batch.subject[row], relation[row]
    tokens[:, -1] = task.eos
    return tokens


def stream(seed: int, name: str) -> np.random.Generator:
    """The seed's random stream of this name; streams with different names are independent."""
    require(seed >= 0, f"seed = {seed}: cannot be negative; use seed >= 0")
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(crc32(name.encode()),)))
