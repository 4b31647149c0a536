"""Forests laid out as a batch: every sequence is there, seen along its own path and from nowhere else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.data.stand_in_tokenizer import StandInTokenizer
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.packing.batch import lay_out, part, pieces_of
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.scoring.candidates import cut_probes
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec

#: Short statements in two rows; and many in one, of which some share a long beginning.
few = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)
many = st.tuples(
    st.lists(st.integers(0, 1), max_size=5),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=30, max_size=60),
).map(lambda drawn: [drawn[0] + sequence for sequence in drawn[1]])


def forest_of(sequences, answer=(9,)):
    forest = Forest()
    reads, _ = read_answers(forest, [(tuple(sequence), [answer]) for sequence in sequences])
    return forest, reads


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
        asked = [batch.kept[int(column)] for row, column in zip(batch.rows, batch.columns, strict=True) if row == k]
        assert [path(k, *divmod(place, B)) for place in asked] == [tuple(sequence) for sequence in sequences]
    assert set(batch.tokens.tolist()) == {9}
    assert batch.counts == [len(sequences) for sequences in rows]


@given(st.one_of(few, many), st.integers(1, 5))
def test_clumps_hold_every_node_and_read_each_once(sequences, count):
    forest, reads = forest_of(sequences)
    clumps = part(pieces_of(forest), reads, count)
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
    clumps = part(pieces_of(forest), reads, 5)
    assert [len(clump.nodes) for clump in clumps] == [1 + 8 * 6] * 5
    assert all(0 in clump.nodes for clump in clumps)


def test_a_long_shared_beginning_is_not_copied():
    """A hundred tokens that all share, and then twenty ends: a single clump, and no row is longer than its forest."""
    batch = lay_out([forest_of([[*range(100), 100 + last] for last in range(20)])])
    assert batch.sees.shape == (1, 1, 120, 120)


@pytest.mark.parametrize("bos", [[], [0]])
@pytest.mark.parametrize("association", [name for name in shipped_names("templates") if name != "known"])
def test_no_template_is_padded_much(association, bos):
    """Whatever words a template begins with, a third more than the nodes is laid out at most."""
    association = load_association(association)
    count = len(association.fact.templates)
    for template in range(count):
        data = {"templates": (template,), "probe_template": template}
        spec = make_run_spec(load_model_spec("smollm2-135m"), association, data, {}, 0)
        tokenizer = StandInTokenizer(1000, bos=bool(bos))
        probes = probe_tokens(tokenizer, build_task(spec))
        for size in (160, 512):
            for chunk in cut_probes(probes, size):
                forest = Forest()
                reads, _ = read_answers(forest, [(probes[i].prompt, probes[i].candidates) for i in chunk])
                batch = lay_out([(forest, reads)])
                assert batch.ids.shape[1] <= 1.34 * len(forest.ids)


def test_where_attention_knows_of_no_clumps_a_row_is_one():
    rows = [forest_of([[person, 1, 2, 3] for person in range(count)]) for count in (100, 50)]
    assert lay_out(rows).sees.shape == (2, 5, 80, 80)
    batch = lay_out(rows, by_clump=False)
    inputs = batch.inputs(torch.device("cpu"), torch.float32)
    assert inputs["attention_mask"].shape == (2, 1, 400, 400)
    assert inputs["logits_to_keep"] == list(range(300, 400))
