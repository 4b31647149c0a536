"""Adapted layers against autograd over plain ones, and that nothing of them is kept."""

import gc
import weakref

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from ocr_eval.methods.adapters import Adapters, LaneShape


class Block(torch.nn.Module):
    """Two layers that read the same input, with biases, and one that reads what comes of them."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            torch.nn.Linear(5, 4),
            torch.nn.Linear(5, 4),
            torch.nn.Linear(4, 6),
        )

    def forward(self, x):
        return self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("targets", ["all-linear", ["up_proj", "down_proj"]])
@pytest.mark.parametrize("hooked", [False, True])
def test_outputs_and_gradients_of_adapted_layers_are_those_of_autograd(targets, hooked):
    torch.manual_seed(0)
    shapes = [LaneShape(3, 6.0), LaneShape(2, 8.0), LaneShape(3, 3.0)]
    network = Block().requires_grad_(False)
    if hooked:  # as accelerate does where layers are spread over devices
        for linear in network.children():
            add_hook_to_module(linear, ModelHook())
    bare = Block().requires_grad_(False)
    bare.load_state_dict(network.state_dict())
    adapters = Adapters(network, targets, shapes, torch.float32)
    for lane in range(3):
        adapters.initialize(lane, seed=lane)
        for each in adapters.factors(lane):
            torch.nn.init.normal_(each.b)
    adapters.refresh()
    x = torch.randn(2, 7, 5, requires_grad=True)
    for lanes in ([0, 1], [0, 2], [1, 2]):
        adapters.zero_grad()
        x.grad = None
        adapters.select(lanes)
        with torch.no_grad():
            network(x)
        y = network(x)
        y.square().sum().backward()
        leaves = {lane: adapted_copies(adapters, lane) for lane in lanes}
        rows = []
        for lane, own in zip(lanes, x.detach().clone().requires_grad_(), strict=True):
            merged = {
                f"{name}.weight": bare.get_submodule(name).weight + shapes[lane].scale * (a.t() @ b).t()
                for name, (a, b) in leaves[lane].items()
            }
            own.retain_grad()
            out = torch.func.functional_call(bare, merged, own)
            out.square().sum().backward()
            rows.append((out.detach(), own.grad))
        expected, gradient = (torch.stack(part) for part in zip(*rows, strict=True))
        torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=1e-4)
        for lane, name, layer in ((lane, name, layer) for lane in lanes for name, layer in adapters.layers.items()):
            rank = shapes[lane].rank
            for stacks, leaf in zip((layer.a, layer.b), leaves[lane][name], strict=True):
                assert torch.allclose(stacks.grad[lane, :rank], leaf.grad, atol=1e-4), (lanes, name)
                assert not stacks.grad[lane, rank:].any()


def adapted_copies(adapters, lane):
    """A and B of a lane as leaves of a graph of their own."""
    return {each.module: [t.clone().requires_grad_() for t in (each.a, each.b)] for each in adapters.factors(lane)}


def test_nothing_of_a_pack_outlives_it():
    network = Block().requires_grad_(False)
    adapters = Adapters(network, "all-linear", [LaneShape(2, 4.0)], torch.float32)
    held = weakref.ref(network.gate_proj.a.master)
    gc.disable()
    try:
        adapters.unmount()
        del adapters
        assert held() is None
    finally:
        gc.enable()


def test_rows_without_lanes_of_their_own_go_lane_after_lane():
    """Experts that all tokens share get them in two dimensions, as in Qwen2-MoE."""
    torch.manual_seed(0)
    network = Block().requires_grad_(False)
    adapters = Adapters(network, "all-linear", [LaneShape(3, 6.0)] * 3, torch.float32)
    for lane in range(3):
        for each in adapters.factors(lane):
            torch.nn.init.normal_(each.a)
            torch.nn.init.normal_(each.b)
    adapters.refresh()
    x = torch.randn(2, 7, 5)
    for lanes in ([0, 1], [0, 2]):
        adapters.select(lanes)
        torch.testing.assert_close(network(x.flatten(0, 1)), network(x).flatten(0, 1))
