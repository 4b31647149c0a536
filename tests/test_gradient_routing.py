"""gradient-routing: which half of an adapter learns what, and which half is kept."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import load, prevented, tiny_run
from safetensors.torch import load_file

from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.methods.prevention import Prevention, task_of_run


def routed_gradients(network, factors, examples):
    """Gradients of the mean loss of routed examples, by autograd through each adapted module, text by text."""
    leaves = {each.module: (each.a.clone().requires_grad_(), each.b.clone().requires_grad_()) for each in factors}
    half, learning = len(factors[0].a) // 2, []

    def hook(a, b):
        def add(module, inputs, y):
            for part, rows in enumerate((slice(half), slice(half, None))):
                z = factors[0].scale * inputs[0] @ a[rows].T @ b[rows]
                y = y + (z if part in learning else z.detach())
            return y

        return add

    handles = [network.get_submodule(name).register_forward_hook(hook(*of)) for name, of in leaves.items()]
    nats, count = 0, sum(len(example.answer) for example, _ in examples)
    for example, role in examples:
        learning[:] = [1 if role == "entailment" else 0]
        logits = network(torch.tensor([example.prompt + example.answer])).logits[0, len(example.prompt) - 1 : -1]
        nats = nats + torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum")
    (nats / count).backward()
    for handle in handles:
        handle.remove()
    return {name: (a.grad, b.grad) for name, (a, b) in leaves.items()}


def test_penalties_reach_the_whole_adapter_whatever_half_learned_last(tiny, add_prevention):
    """After a batch of entailments alone, a term of the loss still has gradients in both halves."""
    rows = []

    class Whole(Prevention):
        """The mean log-probability of the first example."""

        def loss(self, learner, read):
            for each in learner.factors:
                each.grad_b.zero_()
            return read(learner.examples[:1], True).mean()

        def before_step(self, learner):
            rows.append(learner.factors[0].grad_b.abs().sum(dim=1))

    add_prevention("whole", Whole)
    spec = prevented(tiny, "gradient-routing", "whole", rank=4, batch_size=64, max_grad_norm=1e6)
    base = load(tiny)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, task_of_run(spec))])
    pack.step([0])
    assert (rows[0] > 0).all()


@pytest.mark.parametrize("first", ["replay:facts=7", "gradient-routing"])
def test_what_others_add_is_routed_as_facts_in_either_order(tiny, first):
    both = ["replay:facts=7", "gradient-routing"]
    task = task_of_run(prevented(tiny, *sorted(both, key=lambda name: name != first), rank=4))
    assert {example.half for example in task.train if example.role == "replay"} == {0}
    assert {example.half for example in task.train if example.role == "entailment"} == {1}


@pytest.mark.parametrize("rank", [4, 5])
def test_routed_gradients_reach_the_half_that_they_are_for(tiny, add_prevention, rank):
    seen = []

    class Noted(Prevention):
        """Keeps factors and gradients of the last step."""

        def before_step(self, learner):
            seen[:] = [
                replace(each, **{key: getattr(each, key).clone() for key in ("a", "b", "grad_a", "grad_b")})
                for each in learner.factors
            ]

    add_prevention("noted", Noted)
    spec = prevented(tiny, "gradient-routing", "noted", rank=rank, lr=1e-2, max_grad_norm=1e6, batch_size=64)
    base = load(tiny)
    task = task_of_run(spec)
    examples = training_tokens(base.tokenizer, task)
    pack = attach(base, [tiny_run(tiny, rank=8), spec], [examples, examples])
    for _ in range(3):
        pack.step([0, 1])
    pack.detach()
    routed = [(tokens, example.role) for tokens, example in zip(examples, task.train, strict=True)]
    assert {role for _, role in routed} == {"fact", "entailment"}
    expected = routed_gradients(base.network, seen, routed)
    for each in seen:
        assert float(each.b.abs().max()) > 1e-3
        for found, of in zip((each.grad_a, each.grad_b), expected[each.module], strict=True):
            torch.testing.assert_close(found, of, rtol=1e-3, atol=1e-4 * float(of.abs().max()))


def test_the_half_of_entailments_is_dropped_or_kept(ocr_eval, tiny, tmp_path):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "--rank", 6, "--json"]
    saved, margins = {}, {}
    for keep in ("facts", "entailments", "both"):
        record = json.loads(ocr_eval(*run, "--prevent", f"gradient-routing:keep={keep}", "-o", tmp_path).out)
        saved[keep] = load_file(tmp_path / "runs" / record["run"] / "adapter/adapter_model.safetensors")
        margins[keep] = [score["margin"] for score in record["final"]["sequence"].values()]
    for name, tensor in saved["both"].items():
        if "lora_B" in name:
            assert bool(tensor[:, 3:].any())
            assert torch.equal(saved["facts"][name][:, :3], tensor[:, :3])
            assert torch.equal(saved["entailments"][name][:, 3:], tensor[:, 3:])
            assert not saved["facts"][name][:, 3:].any()
            assert not saved["entailments"][name][:, :3].any()
        else:
            assert torch.equal(tensor, saved["facts"][name])
    assert len(set(map(tuple, margins.values()))) == 3


def test_routing_needs_entailments_and_two_halves(ocr_eval, tiny, tmp_path):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path]
    for flags, word in ((["--m-train", 0], "entailments"), (["--rank", 1], "--rank")):
        answer = ocr_eval(*run, *flags, "--prevent", "gradient-routing")
        assert answer.code == 2
        assert word in answer.err.splitlines()[-1]
        assert "Traceback" not in answer.err
