"""Forests laid out as a batch: every sequence is there, seen along its own path and from nowhere else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ocr_eval.forest import ForestBuilder, read_answers
from ocr_eval.layout import CLUMP_NODES, lay_out, part

#: Short statements in two rows; and many in one, of which some share a long beginning.
few = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)
many = st.tuples(
    st.lists(st.integers(0, 1), max_size=5),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=30, max_size=60),
).map(lambda drawn: [drawn[0] + sequence for sequence in drawn[1]])


def forest_of(sequences, answer=(9,)):
    builder = ForestBuilder()
    reads, _ = read_answers(builder, [(tuple(sequence), [answer]) for sequence in sequences])
    return builder.build(), reads


@given(st.lists(st.one_of(few, many), min_size=1, max_size=3))
def test_a_node_attends_to_its_ancestors_and_itself_alone(rows):
    batch = lay_out([forest_of(sequences) for sequences in rows])
    K, C, B, _ = batch.sees.shape
    ids, positions = batch.ids.view(K, C, B), batch.positions.view(K, C, B)

    def path(k, c, node):
        seen = batch.sees[k, c, node]
        by_position = positions[k, c, seen].argsort()
        assert positions[k, c, seen][by_position].tolist() == list(range(int(seen.sum())))
        return tuple(ids[k, c, seen][by_position].tolist())

    for k, sequences in enumerate(rows):
        prefixes = {tuple(sequence[:i]) for sequence in sequences for i in range(1, len(sequence) + 1)}
        found = {path(k, c, node) for c in range(C) for node in range(B)}
        assert prefixes <= found <= prefixes | {(0,)}  # padding looks like a lonely first token
        asked = [int(batch.kept[column]) for row, column in zip(batch.rows, batch.columns, strict=True) if row == k]
        assert [path(k, *divmod(place, B)) for place in asked] == [tuple(sequence) for sequence in sequences]
    assert set(batch.tokens.tolist()) == {9}
    assert batch.counts == [len(sequences) for sequences in rows]


@given(st.one_of(few, many), st.integers(1, 5))
def test_clumps_hold_every_node_and_read_each_once(sequences, count):
    forest, reads = forest_of(sequences)
    clumps = part(forest, reads, count)
    assert len(clumps) == count
    assert set().union(*(clump.nodes for clump in clumps)) == set(range(len(forest.ids)))
    read = [node for clump in clumps for node in clump.nodes[len(clump.nodes) - clump.reads :]]
    assert sorted(read) == sorted(reads.nodes)
    for clump in clumps:
        assert len(set(clump.nodes)) == len(clump.nodes)
        assert all(forest.parents[node] in {-1, *clump.nodes} for node in clump.nodes)


def test_clumps_of_small_trees_are_of_nearly_one_size():
    """Forty people of seven tokens: 280 nodes in four clumps of ten people."""
    batch = lay_out([forest_of([[person, 1, 2, 3, 4, 5, 6] for person in range(40)])])
    assert batch.sees.shape == (1, 4, 70, 70)
    assert len(batch.kept) == 40


def test_statements_that_share_a_first_token_are_parted_with_a_copy_of_it():
    """As all statements do that begin with BOS."""
    forest, reads = forest_of([[0, person, 2, 3, 4, 5, 6] for person in range(1, 41)])
    clumps = part(forest, reads, 5)
    assert [len(clump.nodes) for clump in clumps] == [1 + 8 * 6] * 5
    assert all(0 in clump.nodes for clump in clumps)


def test_a_long_shared_beginning_is_not_copied():
    forest, reads = forest_of([[*range(100), 100 + last] for last in range(20)])
    assert sorted(len(clump.nodes) for clump in part(forest, reads, 3)) == [0, 0, 120]


@pytest.mark.parametrize("people", [3, 40])
def test_the_mask_of_whole_rows_says_what_the_masks_of_clumps_say(people):
    batch = lay_out([forest_of([[person, 1, 2, 3] for person in range(count)]) for count in (people, people // 2)])
    K, C, B, _ = batch.sees.shape
    assert (2 if 4 * people > CLUMP_NODES else 1) == C
    cpu = torch.device("cpu")
    by_clump, whole = (batch.inputs(cpu, torch.float32, by)["attention_mask"] for by in (True, False))
    assert by_clump.shape == (K * C, 1, B, B)
    assert whole.shape == (K, 1, C * B, C * B)
    for k in range(K):
        blocks = torch.block_diag(*(by_clump[k * C + c, 0] == 0 for c in range(C)))
        assert torch.equal(whole[k, 0] == 0, blocks.bool())
