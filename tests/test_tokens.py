from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import ARCHITECTURES, load, tiny_run
from hypothesis import given
from hypothesis import strategies as st

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import continuations, probe_tokens, training_tokens, windows
from ocr_eval.packing.forest import ROOT, Forest, read_answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompt_and_answer_join_to_the_sentence(architecture, model_files):
    tokenizer = load(model_files[architecture]).tokenizer
    dataset = build_task(tiny_run(model_files[architecture]))
    for statement, tokens in zip(dataset.train, training_tokens(tokenizer, dataset), strict=True):
        assert tokenizer.decode([*tokens.prompt, *tokens.answer], skip_special_tokens=True) == statement.text
        starts_with_bos = tokens.prompt[0] == tokenizer.bos_token_id
        assert starts_with_bos == ARCHITECTURES[architecture][2]["bos"]


class FakeTokenizer:
    """Encodes by a function of the text; ends in EOS if told so."""

    eos_token_id = 1

    def __init__(self, encode: Callable[[str], list[int]], eos: bool = False) -> None:
        self.encode, self.tail = encode, [1] if eos else []

    def __call__(self, text: list[str]) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[[*self.encode(t), *self.tail] for t in text])


def space_pieces(text: str) -> list[int]:
    """Like some SentencePiece variants: a lone " word" begins with a space piece (2)."""
    return [2 if word == "" else sum(map(ord, word)) for word in text.split(" ")]


def test_answers_are_cut_from_the_sentence_and_not_encoded_alone():
    assert space_pieces(" Paris")[0] == space_pieces(" Rome")[0]
    pairs = [("Ann lives in", "Paris"), ("Ann lives in", "Rome")]
    paris, rome = continuations(FakeTokenizer(space_pieces), pairs)
    assert paris.prompt == rome.prompt
    assert paris.answer[0] != rome.answer[0]


def test_a_final_eos_is_not_part_of_prompt_or_answer():
    pairs = [("Ann lives in", "Paris")]
    assert continuations(FakeTokenizer(space_pieces, eos=True), pairs) == continuations(
        FakeTokenizer(space_pieces), pairs
    )


def test_a_boundary_that_does_not_split_is_an_error():
    merging = FakeTokenizer(lambda text: [hash(text) % 1000 + 10])
    with pytest.raises(UserError, match="does not split 'Ann lives in Paris'"):
        continuations(merging, [("Ann lives in", "Paris")])


def test_candidates_that_share_a_first_token_are_named(tiny):
    letters = FakeTokenizer(
        lambda text: [ord(text[i]) + 200 * (text[i - 1] == " ") for i in range(len(text)) if text[i] != " "]
    )
    dataset = build_task(tiny_run(tiny, candidates="all"))
    with pytest.raises(UserError, match=r"Madrid = Moscow|Moscow = Madrid"):
        probe_tokens(letters, dataset)


sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(sequences)
def test_a_forest_holds_each_prefix_once_and_every_sequence(rows):
    forest = Forest()
    paths = [forest.add(row) for row in rows]
    prefixes = {tuple(row[:i]) for row in rows for i in range(1, len(row) + 1)}
    assert len(forest.ids) == len(prefixes)
    for row, path in zip(rows, paths, strict=True):
        assert [forest.ids[node] for node in path] == row
        assert [forest.depths[node] for node in path] == list(range(len(row)))
        assert [forest.parents[node] for node in path] == [ROOT, *path[:-1]]


def test_the_last_token_of_an_answer_is_never_fed():
    forest = Forest()
    reads, spans = read_answers(forest, [((1, 2), [(3,), (4, 5)])])
    assert forest.ids == [1, 2, 4]
    assert [[(reads.nodes[reads.rows[i]], reads.tokens[i]) for i in span] for span in spans] == [
        [(1, 3)],
        [(1, 4), (2, 5)],
    ]


@pytest.mark.parametrize(
    ("ids", "bos", "pieces"),
    [
        ((7, 1, 2, 3, 4, 5), 7, [(7, 1, 2), (7, 3, 4), (7, 5)]),
        ((1, 2, 3, 4, 5), 7, [(1, 2, 3), (4, 5)]),
        ((1, 2, 3, 4), None, [(1, 2, 3), (4,)]),
    ],
)
def test_every_window_of_a_text_begins_as_the_text_does(ids, bos, pieces):
    assert windows(ids, bos, 3) == pieces
