"""Norms of frozen weight: the library's bits forward, its gradient backward, and the library's own where they learn."""

import importlib

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from ocr_eval.models.rms_norm import ROUNDED_FIRST, ROUNDED_LAST, hasten

NAMES = sorted(ROUNDED_FIRST | ROUNDED_LAST)


def norms(name, dtype=torch.bfloat16, width=96):
    """The library's norm with frozen weights far from one, and the same hastened."""
    family = name.removesuffix("RMSNorm").lower()
    norm_class = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
    torch.manual_seed(0)
    weight = torch.randn(width).to(dtype)
    both = []
    for _ in range(2):
        norm = norm_class(width, eps=1e-5).to(dtype).requires_grad_(False)
        norm.weight.copy_(weight)
        both.append(norm)
    hasten(torch.nn.ModuleList(both[1:]))
    return both


def rows(dtype):
    """Hidden states, heads within them (not contiguous), and rows of very different sizes."""
    heads = torch.randn(2, 5, 3, 96).to(dtype).transpose(1, 2)
    return [torch.randn(2, 7, 96).to(dtype), heads, (torch.randn(4, 96) * torch.logspace(-4, 3, 4)[:, None]).to(dtype)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_bit_for_bit_the_librarys(name, dtype):
    plain, own = norms(name, dtype)
    for x in rows(dtype):
        before = x.clone()
        assert torch.equal(own(x), plain(x))
        assert torch.equal(own(x.clone().requires_grad_()), plain(x))
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_librarys(name):
    exact, hastened = norms(name, torch.float32)
    plain, own = norms(name)
    exact.weight.copy_(plain.weight)
    hastened.weight.copy_(plain.weight)
    for x in rows(torch.bfloat16):
        dy = torch.randn(x.shape).to(x.dtype)
        got = []
        for norm, dtype in ((exact, torch.float32), (hastened, torch.float32), (plain, x.dtype), (own, x.dtype)):
            leaf = x.to(dtype, copy=True).requires_grad_()
            norm(leaf).backward(dy.to(dtype))
            assert leaf.grad.dtype == dtype
            got.append(leaf.grad.float())
        expected, same, librarys, ours = got
        torch.testing.assert_close(same, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
        size = expected.norm(dim=-1)
        assert torch.all((ours - expected).norm(dim=-1) < 0.01 * size)
        assert (ours - expected).norm() < 1.1 * (librarys - expected).norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_that_learns_or_has_another_precision_is_the_librarys(name):
    plain, own = norms(name, torch.float32)
    x = torch.randn(4, 96)
    for norm in (plain, own):
        norm.requires_grad_(True)
        norm(x).square().sum().backward()
    assert torch.equal(own.weight.grad, plain.weight.grad)
    plain.requires_grad_(False)
    own.requires_grad_(False)
    y = own(x.bfloat16())
    assert y.dtype == plain(x.bfloat16()).dtype
    assert torch.equal(y, plain(x.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(x), plain(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_stays_what_it_is_and_others_are_left_alone(name):
    plain, own = norms(name)
    assert isinstance(own, type(plain))
    assert "RMSNorm" in type(own).__name__  # by which transformers initializes it
    assert own.state_dict().keys() == plain.state_dict().keys()
    hastened = type(own)
    others = [GemmaRMSNorm(4), OlmoLayerNorm(4), torch.nn.LayerNorm(4)]
    kinds = [type(other) for other in others]
    hasten(torch.nn.ModuleList([own, *others]))
    assert [type(other) for other in others] == kinds
    assert type(own) is hastened


def test_nothing_but_the_input_and_a_number_a_row_is_kept():
    _, own = norms("LlamaRMSNorm")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        own(torch.randn(7, 96).bfloat16().requires_grad_())
    assert sorted(tuple(t.shape) for t in kept) == [(7, 1), (7, 96), (96,)]
