"""Log-probabilities read from logits block by block, against a log-softmax over all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ocr_eval.packing.logprobs import block_rows, read_logprobs


def both(logits, rows, tokens, at_once):
    """Values and gradients of the naive way and of this one, for a loss that weighs every token differently."""
    weights = torch.linspace(-1.0, 2.0, len(rows))
    found = []
    for read in (
        lambda x: torch.log_softmax(x.float(), dim=-1)[rows, tokens],
        lambda x: read_logprobs(x, rows, tokens, at_once),
    ):
        x = logits.clone().requires_grad_()
        values = read(x)
        (values * weights).sum().backward()
        found.append((values.detach(), x.grad))
    return found


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 9),
    vocabulary=st.integers(1, 12),
    expected=st.integers(1, 20),
    at_once=st.integers(1, 12),
)
def test_blocks_are_the_whole(seed, rows, vocabulary, expected, at_once):
    """Any number of blocks, rows that nothing is read in, and tokens that are expected more than once."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 5
    where = torch.randint(0, rows, (expected,), generator=generator)
    tokens = torch.randint(0, vocabulary, (expected,), generator=generator)
    (values, gradient), (own_values, own_gradient) = both(logits, where, tokens, at_once)
    assert torch.equal(own_values, values)
    rounding = 1e-6 * expected  # each term of a sum that may cancel is rounded, in another order
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-5, atol=rounding)


def test_bf16_logits_have_a_bf16_gradient_that_is_rounded_once():
    torch.manual_seed(0)
    logits = (torch.randn(6, 50) * 5).bfloat16()
    rows, tokens = torch.tensor([0, 0, 3, 5, 5]), torch.tensor([4, 4, 9, 0, 49])
    (values, gradient), (own_values, own_gradient) = both(logits, rows, tokens, at_once=4)
    assert torch.equal(own_values, values)
    assert own_values.dtype == torch.float32
    assert own_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(own_gradient.float(), gradient.float(), rtol=2**-8, atol=1e-6)


def test_a_row_of_no_numbers_leaves_the_others_as_they_are():
    logits = torch.randn(3, 7)
    logits[1] = float("nan")
    rows, tokens = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
    values = read_logprobs(logits, rows, tokens, at_once=2)
    assert values[1].isnan()
    assert torch.equal(values[[0, 2]], torch.log_softmax(logits, dim=-1)[[0, 2], [1, 3]])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_row_is_taken_even_of_a_vocabulary_larger_than_a_block(device):
    assert block_rows(2**25, device) == 1
    assert block_rows(49_152, device) > 4
