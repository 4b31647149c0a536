"""The learning rate over a run against transformers' schedulers, and AdamW's settings against a plain loop."""

import pytest
import torch
from conftest import load, packed, tiny_run
from transformers import get_scheduler, get_wsd_schedule

from ocr_eval.execution.execute import finetune
from ocr_eval.execution.run_pack import Execution
from ocr_eval.methods.train import train_epoch
from ocr_eval.specs.model import TrainSpec


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_are_those_of_transformers(schedule, warmup):
    train, steps = TrainSpec(lr=0.3, schedule=schedule, warmup=warmup), 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=round(warmup * steps), num_training_steps=steps)
    for step in range(steps):
        assert train.rate(step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_wsd_is_that_of_transformers(warmup):
    train, steps = TrainSpec(lr=0.3, schedule="wsd", warmup=warmup), 40
    warm = round(warmup * steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    half = (steps - warm) // 2
    stages = {"num_warmup_steps": warm, "num_decay_steps": half, "num_training_steps": steps}
    theirs = get_wsd_schedule(optimizer, **stages, decay_type="linear")
    for step in range(steps):
        assert train.rate(step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_every_step_of_a_run_has_its_rate_also_after_it_resumes(tiny):
    spec = tiny_run(tiny, schedule="linear", warmup=0.25, epochs=4)
    seen = []
    for first in (0, 2):
        base = load(tiny)
        pack = packed(base, spec)
        (injection,) = pack.learners
        injection.epochs_done, steps = first, len(injection.batches())
        injection.optimizer.step = lambda own=injection: seen.append(own.optimizer.param_groups[0]["lr"])
        for _ in range(2):
            train_epoch(pack, [0])
    assert seen == [spec.train.rate(step, 4 * steps) for step in range(4 * steps)]
    assert seen[0] == 0.0 < seen[1] < max(seen) == spec.train.lr


def test_decay_and_betas_are_adamws(tiny):
    """Against torch's own AdamW, one tensor at a time, over the same gradients."""
    spec = tiny_run(tiny, weight_decay=0.1, beta1=0.8, beta2=0.95, rank=4)
    base = load(tiny)
    pack = packed(base, spec)
    (injection,) = pack.learners
    plain = {name: torch.nn.Parameter(p.detach().clone()) for name, p in injection.parameters.items()}
    theirs = torch.optim.AdamW(plain.values(), lr=spec.train.lr, betas=(0.8, 0.95), weight_decay=0.1, foreach=False)
    ours = injection.optimizer.step

    def both():
        for name, parameter in injection.parameters.items():
            plain[name].grad = parameter.grad.clone()
        theirs.step()
        ours()

    injection.optimizer.step = both
    train_epoch(pack, [0])
    for name, parameter in injection.parameters.items():
        assert torch.allclose(parameter, plain[name], atol=1e-6)


def test_lanes_of_one_pack_decay_apart(tiny):
    specs = [tiny_run(tiny, weight_decay=decay, rank=4) for decay in (0.0, 5.0)]
    base = load(tiny)
    pack = packed(base, *specs)
    train_epoch(pack, [0, 1])
    norms = [injection.parameters["lora_A"].norm().item() for injection in pack.learners]
    assert norms[1] < 0.9 * norms[0]


def test_a_record_has_the_settings_and_full_training_takes_them(tiny, tmp_path):
    spec = tiny_run(tiny, method="full", schedule="cosine", weight_decay=0.01, epochs=2, m_test=1)
    record = finetune(spec, tmp_path, Execution("cpu"))[0].record
    assert (record.train.schedule, record.train.weight_decay) == ("cosine", 0.01)
