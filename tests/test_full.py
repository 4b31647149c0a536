"""Full fine-tuning on every architecture: all parameters learn, and the model is saved, reloaded, scored, resumed."""

import json

import pytest
import torch
from conftest import ARCHITECTURES, load, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import train_epoch
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.planning import memory
from ocr_eval.specs.model import load_model_spec


def packed(path, **changes):
    """A base to be trained in all its parameters, with its run attached."""
    spec = tiny_run(path, method="full", lr=1e-3, **changes)
    base = load_base(spec.model, locate(spec.model), "cpu", whole=True)
    return attach(base, [spec], [training_tokens(base.tokenizer, build_task(spec))])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_of_every_architecture_learns_as_in_a_plain_loop(architecture, model_files):
    pack = packed(model_files[architecture])
    (injection,) = pack.learners
    plain = AutoModelForCausalLM.from_pretrained(model_files[architecture].with_suffix(""), attn_implementation="eager")
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    expected = []
    for batch in injection.batches():
        nats, count = torch.zeros(()), 0
        for example in batch:
            ids = torch.tensor([[*example.prompt, *example.answer]])
            logits = plain(ids).logits[0, len(example.prompt) - 1 : -1]
            nats = nats + torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum")
            count += len(example.answer)
        (nats / count).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), injection.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        expected.append((nats.item(), count))
    before = {name: tensor.clone() for name, tensor in pack.adapters.matrices(0).items()}
    loss = train_epoch(pack, [0])[0]
    assert loss == pytest.approx(sum(nats for nats, _ in expected) / sum(count for _, count in expected), rel=1e-4)
    for name, tensor in pack.adapters.matrices(0).items():
        assert not torch.equal(tensor, before[name]), name
        assert torch.allclose(tensor, plain.get_parameter(name), atol=2e-4), name


@pytest.mark.parametrize("architecture", ["gemma2", "qwen2"])
def test_a_run_is_saved_reloaded_by_transformers_and_scored_again(ocr_eval, model_files, tmp_path, architecture):
    path = model_files[architecture]
    run = ["finetune", "--model", path, "--assoc", "city-language", "--method", "full", "--n", 3, "--m-test", 3]
    answer = ocr_eval(*run, "--epochs", 2, "-o", tmp_path, "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["train"]["method"] == "full"
    assert record["train"]["lr"] == 1e-5
    (folder,) = tmp_path.glob("runs/*/*/full/seed0-*")
    assert not (folder / "adapter").exists()
    stock = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert len(AutoTokenizer.from_pretrained(folder / "model")) > 0
    untouched = AutoModelForCausalLM.from_pretrained(path.with_suffix(""))
    ids = torch.arange(3, 12)[None]
    assert not torch.equal(stock(ids).logits, untouched(ids).logits)
    again = json.loads(ocr_eval("score", folder, "--json").out)
    assert again["first-token"]["test_entailment"] == pytest.approx(record["final"]["first-token"]["test_entailment"])
    assert "done before" in ocr_eval(*run, "--epochs", 2, "-o", tmp_path).out


def test_a_checkpoint_goes_on_bit_for_bit(tiny, tmp_path):
    undisturbed, interrupted, resumed = (packed(tiny) for _ in range(3))
    losses = [train_epoch(undisturbed, [0])[0] for _ in range(3)]
    train_epoch(interrupted, [0])
    with (tmp_path / "c.pt").open("wb") as file:
        interrupted.write_state(0, file)
    resumed.read_state(0, tmp_path / "c.pt")
    assert [train_epoch(resumed, [0])[0] for _ in range(2)] == losses[1:]
    for name, tensor in undisturbed.adapters.matrices(0).items():
        assert torch.equal(tensor, resumed.adapters.matrices(0)[name])


def test_full_runs_of_a_list_each_begin_with_the_untouched_model(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--assoc", "city-language", "--method", "full", "--n", 2, "--m-test", 2, "--epochs", 1]
    first = [json.loads(ocr_eval("finetune", *run, "--seed", s, "-o", tmp_path, "--json").out) for s in (0, 1)]
    ocr_eval(
        "sweep",
        "--models",
        tiny,
        "--assocs",
        "city-language",
        "--methods",
        "full",
        "--seeds",
        "0-1",
        "--n",
        2,
        "--m-test",
        2,
        "--epochs",
        1,
        "-o",
        tmp_path / "sweep",
        "--quiet",
    )
    swept = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("runs/*/*/*/*/result.json"))]
    assert [r["train_loss"] for r in swept] == [r["train_loss"] for r in first]


def test_what_cannot_fit_is_refused_with_numbers_before_anything_is_loaded(ocr_eval, tiny, tmp_path, monkeypatch):
    class Small:
        total = 2_000_000

    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: Small)
    answer = ocr_eval("finetune", "--model", tiny, "--assoc", "city-language", "--method", "full", "-o", tmp_path)
    assert answer.code == 2
    assert "tiny-llama by full needs at least 0 GB" in answer.err
    assert "Use --method lora" in answer.err


def test_per_model_defaults_of_full_are_the_published_sweeps():
    for name in ("gemma2-9b", "olmo-7b", "qwen2-7b", "mistral-7b", "llama3-8b"):
        full = load_model_spec(name).full
        assert 1e-6 <= full.lr <= 3e-5
        assert full.batch_size == 8


def test_the_base_of_a_qlora_run_is_bit_identical_afterwards(model_files):
    for architecture in ARCHITECTURES:
        base = load(model_files[architecture], quantized=True)
        before = {name: tensor.clone() for name, tensor in base.network.state_dict().items()}
        spec = tiny_run(model_files[architecture], method="qlora")
        pack = attach(base, [spec], [training_tokens(base.tokenizer, build_task(spec))])
        moved = {name: tensor.clone() for name, tensor in pack.adapters.matrices(0).items()}
        losses = [train_epoch(pack, [0])[0] for _ in range(2)]
        assert losses[1] < losses[0]
        assert all(not torch.equal(moved[name], tensor) for name, tensor in pack.adapters.matrices(0).items())
        assert {name.rpartition(".")[2] for name in pack.adapters.modules} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        pack.detach()
        after = base.network.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
