from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, load, packed, tiny_run
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.adapters import Stacks
from ocr_eval.methods.load_adapter import load_adapter
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import train_epoch

GOLDEN = [8.398730, 6.677971, 5.094757]


def injected(path, epochs, **changes):
    """A pack of one after some epochs, its injection, and the losses."""
    base = load(path)
    spec = tiny_run(path, **changes)
    pack = packed(base, spec)
    return pack, pack.learners[0], [train_epoch(pack, [0])[0] for _ in range(epochs)]


def test_the_loss_honours_the_weights_of_examples(tiny):
    spec = tiny_run(tiny, batch_size=64)

    def loss(weight):
        base = load(tiny)
        task = build_task(spec)
        weighted = (replace(example, weight=float(weight(i))) for i, example in enumerate(task.train))
        tokens = training_tokens(base.tokenizer, replace(task, train=tuple(weighted)))
        return train_epoch(attach(base, [spec], [tokens]), [0])[0]

    whole = loss(lambda i: 1)
    assert loss(lambda i: 2) == pytest.approx(2 * whole)
    even, odd = (loss(lambda i, rest=rest: i % 2 == rest) for rest in (0, 1))
    assert even + odd == pytest.approx(whole)
    assert even != pytest.approx(odd)


def test_golden_losses(tiny):
    """A refactoring must not move these; a change of data, order, initialization or arithmetic does."""
    _, _, losses = injected(tiny, 3)
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


def test_the_same_run_twice_is_the_same_bit_for_bit(tiny):
    runs = [injected(tiny, 2) for _ in range(2)]
    assert runs[0][2] == runs[1][2]
    for first, second in zip(runs[0][1].parameters.values(), runs[1][1].parameters.values(), strict=True):
        assert torch.equal(first, second)


def test_another_seed_is_another_run(tiny):
    assert injected(tiny, 1)[2] != injected(tiny, 1, seed=1)[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_its_base_stays_as_it_was(architecture, model_files):
    base = load(model_files[architecture])
    before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
    spec = tiny_run(model_files[architecture])
    pack = packed(base, spec)
    losses = [train_epoch(pack, [0])[0] for _ in range(3)]
    assert losses[-1] < losses[0]
    adapted = {name.rpartition(".")[2] for name in pack.adapters.layers}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    pack.detach()
    after = base.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_two_runs_over_one_base_are_what_each_is_alone(tiny):
    base = load(tiny)
    losses = []
    for seed in (0, 1):
        spec = tiny_run(tiny, seed=seed)
        pack = packed(base, spec)
        losses.append([train_epoch(pack, [0])[0] for _ in range(2)])
        pack.detach()
    assert losses == [injected(tiny, 2)[2], injected(tiny, 2, seed=1)[2]]


def test_a_checkpoint_goes_on_bit_for_bit(tiny, tmp_path):
    _, undisturbed, losses = injected(tiny, 3)
    interrupted, _, _ = injected(tiny, 1)
    with (tmp_path / "c.pt").open("wb") as file:
        interrupted.write_state(0, file)
    pack, resumed, _ = injected(tiny, 0)
    pack.read_state(0, tmp_path / "c.pt")
    assert [train_epoch(pack, [0])[0] for _ in range(2)] == losses[1:]
    for name, parameter in undisturbed.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name])


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    pack, _, _ = injected(tiny, 0)
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RunFailed, match=r"c\.pt cannot be used \(it is damaged\)"):
        pack.read_state(0, tmp_path / "c.pt")


def test_the_adapter_loads_with_stock_peft(tiny, model_files, tmp_path):
    pack, _injection, _ = injected(tiny, 2)
    pack.save(0, tmp_path)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = pack.base.network(ids).logits
    stock = AutoModelForCausalLM.from_pretrained(model_files["llama"].with_suffix(""))
    stock = PeftModel.from_pretrained(stock, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, expected, atol=1e-5)
    pack.detach()
    view = load_adapter(pack.base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(view.network(ids).logits, expected, atol=1e-5)


def test_an_untrained_adapter_is_refused(tiny, tmp_path):
    pack, _injection, _ = injected(tiny, 0)
    pack.save(0, tmp_path)
    pack.detach()
    with pytest.raises(UserError, match="never trained"):
        load_adapter(pack.base, tmp_path / "adapter")


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_an_adapter_that_does_not_fit_its_base_is_refused(tiny, tmp_path, fault):
    pack, _injection, _ = injected(tiny, 1)
    pack.save(0, tmp_path)
    pack.detach()
    before = pack.base.network(torch.arange(3, 9)[None]).logits
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name if fault == "missing" else name.replace("layers.0", "layers.7")] = tensors[name].clone()
    if fault == "missing":
        del tensors[name]
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(UserError, match="not those of an adapter over tiny-llama"):
        load_adapter(pack.base, tmp_path / "adapter")
    assert torch.equal(pack.base.network(torch.arange(3, 9)[None]).logits, before)


def test_a_target_that_is_not_there_is_an_error(tiny):
    with pytest.raises(UserError, match="targets"):
        injected(tiny, 0, targets=["no_such_projection"])


class Deaf(Stacks):
    """A factor that no gradient reaches."""

    def add_gradient(self, lanes, grad):
        pass


def test_an_adapter_that_gradients_do_not_reach_stops_the_run(tiny):
    pack, _, _ = injected(tiny, 0)
    layer = next(iter(pack.adapters.layers.values()))
    layer.b = Deaf(layer.b.master, layer.b.grad, layer.b.compute)
    with pytest.raises(
        RunFailed, match=r"No gradient reaches 1 of 14 trained modules, first model\.layers\.0\.self_attn\.q_proj\."
    ):
        train_epoch(pack, [0])


def test_an_adapter_of_another_kind_is_read_through_peft(tiny, model_files, tmp_path):
    """DoRA is no plain LoRA: PEFT's own forward pass has the last word."""
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_pretrained(model_files["llama"].with_suffix(""))
    stock = get_peft_model(stock, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False))
    stock.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(3, 12)[None]
    view = load_adapter(load(tiny), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(view.network(ids).logits, stock(ids).logits, atol=1e-5)
