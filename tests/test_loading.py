"""Loading a base: what its files must hold, where its layers go, and what is said of memory and devices."""

import gc
import shutil
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import tiny_run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ocr_eval.common.errors import UserError
from ocr_eval.execution import execute
from ocr_eval.models import base
from ocr_eval.models.base import load_base, make_accelerator
from ocr_eval.models.precision import choose_for
from ocr_eval.models.weights import WeightFolder, locate
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec

GIB = 2**30


def changed(model_files, tmp_path, name, change):
    """A copy of a tiny model with other tensors."""
    folder = tmp_path / name
    shutil.copytree(model_files[name].with_suffix(""), folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_model_that_lacks_tensors_is_refused(model_files, tmp_path, architecture, method):
    def without(tensors):
        return {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}

    spec = load_model_spec(str(changed(model_files, tmp_path, architecture, without)))
    spec = spec.model_copy(update={"dtype": choose_for(spec, "cpu").dtype})
    with pytest.raises(
        UserError, match=r"lacks 3 of the model's tensors.* first model\.layers\.1\.mlp\.down_proj\.weight"
    ):
        load_base(spec, locate(spec), "cpu", method == "qlora", method == "full")


def test_a_model_with_a_tensor_of_another_shape_is_refused(ocr_eval, model_files, tmp_path):
    def narrow(tensors):
        return tensors | {"model.norm.weight": torch.ones(3)}

    answer = ocr_eval("score", "--model", changed(model_files, tmp_path, "llama", narrow), "--assoc", "city-language")
    assert answer.code == 2, answer.err
    assert "model.norm.weight" in answer.err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (("seed: 0", "seed: 1"), "the seed differs from result.json"),
        (("  n: 2", "  n: 3"), "n differs from result.json"),
        (("  rank: 4", "  rank: 8"), "rank differs from result.json"),
        (("- French", "- Frensh"), "the association's content differs from result.json"),
    ],
)
def test_a_run_whose_configuration_was_edited_is_not_scored_as_another(ocr_eval, tiny, tmp_path, edit, says):
    command = ["finetune", "--model", tiny, "--assoc", "city-language", "--n", 2, "--epochs", 1, "--measures", "none"]
    assert ocr_eval(*command, "-o", tmp_path).code == 0
    (folder,) = tmp_path.glob("runs/*/*/*/*")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(*edit))
    answer = ocr_eval("score", folder)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err.splitlines()[-1]


def test_an_adapter_of_another_kind_than_its_tensors_is_a_line(ocr_eval, tiny, tmp_path):
    command = ["finetune", "--model", tiny, "--assoc", "city-language", "--n", 2, "--epochs", 1, "--measures", "none"]
    assert ocr_eval(*command, "-o", tmp_path).code == 0
    (adapter,) = tmp_path.glob("runs/*/*/*/*/adapter")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    answer = ocr_eval("score", "--model", tiny, "--assoc", "city-language", "--n", 2, "--adapter", adapter)
    assert answer.code == 2
    assert "its tensors are not those of an adapter" in answer.err.splitlines()[-1]


def test_a_trained_model_that_lacks_tensors_is_refused(ocr_eval, tiny, tmp_path):
    command = ["finetune", "--model", tiny, "--assoc", "city-language", "--method", "full", "--n", 2, "--epochs", 1]
    assert ocr_eval(*command, "-o", tmp_path).code == 0
    (folder,) = tmp_path.glob("runs/*/*/full/*")
    tensors = load_file(folder / "model" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model" / "model.safetensors", {"format": "pt"})
    answer = ocr_eval("score", folder)
    assert answer.code == 2
    assert "sha256 differs" in answer.err
    answer = ocr_eval("score", "--model", tiny, "--assoc", "city-language", "--adapter", folder / "model")
    assert answer.code == 2
    assert "lacks 1 of the model's tensors" in answer.err


@pytest.fixture
def gpus(monkeypatch, tiny):
    """Where one of several processes would place a model over several GPUs, and what the plan says of it."""

    def place(name, method, count, size, processes=1):
        seen = {}

        def from_pretrained(path, **keywords):
            seen.update(keywords)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        accelerator = SimpleNamespace(device=torch.device("cuda:0"), num_processes=processes)
        for module in (base, execute):
            monkeypatch.setattr(module, "make_accelerator", lambda device: accelerator)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=size))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        files = WeightFolder(locate(load_model_spec(tiny)).path, "tiny")
        monkeypatch.setattr(execute.weights, "locate", lambda spec: files)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        spec = make_run_spec(load_model_spec(name), tiny_run(tiny).association, {}, {"method": method}, 0)
        spec = spec.in_precision("bfloat16")
        with pytest.raises(UserError) as refusal:
            execute.Bases("cuda").get(spec)
        return seen.get("device_map"), str(refusal.value)

    return place


@pytest.mark.parametrize(
    ("name", "method", "gib", "spread"),
    [
        ("llama3-8b", "full", 80, True),  # masters, gradients and moments: 80 GB
        ("llama3-8b", "full", 140, False),
        ("llama3-8b", "lora", 24, False),
        ("llama3-8b", "lora", 16, True),
        ("gemma2-9b", "qlora", 24, False),  # fp32 on the hub, which is not what is held
        ("olmo-7b", "qlora", 24, False),
    ],
)
def test_layers_are_spread_where_what_a_run_holds_is_too_much_for_one_gpu(gpus, name, method, gib, spread):
    placement, reason = gpus(name, method, 4, gib * GIB)
    assert placement == ("auto" if spread else torch.device("cuda:0"))
    assert f"{name} does not fit into the free memory of cuda (CUDA out of memory" in reason


def test_processes_that_train_together_hold_a_replica_each(gpus):
    placement, reason = gpus("llama3-8b", "full", 4, 40 * GIB, processes=4)
    assert placement is None
    assert "full needs at least 81 GB (weights, gradients, optimizer), but this cuda has 43 GB" in reason
    assert gpus("llama3-8b", "lora", 4, 40 * GIB, processes=4)[0] == torch.device("cuda:0")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_a_run_starts(ocr_eval, tiny, tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for command in (["finetune", "city-language", "--model"], ["sweep", "--assocs", "city-language", "--models"]):
        answer = ocr_eval(*command, tiny, "--dtype", "float32", "--device", device, "-o", tmp_path, "-q")
        assert answer.code == 2
        assert answer.err == f"ocr-eval: --device {device} is not available. This machine has: cpu.\n"
        assert not list(tmp_path.rglob("*.json"))


def test_a_process_computes_on_one_device(monkeypatch):
    assert make_accelerator("cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="--device cuda: this process already computes on cpu"):
        make_accelerator("cuda")
    for state in (PartialState(), AcceleratorState()):
        monkeypatch.setitem(state.__dict__, "device", torch.device("cuda:0"))
    with pytest.raises(UserError, match="--device cpu: this process already computes on cuda"):
        make_accelerator("cpu")


def test_a_base_in_four_bits_is_gone_when_another_is_loaded(tiny):
    bases = execute.Bases("cpu")
    gc.collect()
    gc.disable()
    try:
        network = weakref.ref(bases.get(tiny_run(tiny, method="qlora")).network)
        bases.get(tiny_run(tiny))
        assert network() is None
    finally:
        gc.enable()


def test_four_bits_without_bitsandbytes_are_one_line(ocr_eval, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    answer = ocr_eval("score", "--model", tiny, "--assoc", "city-language", "--method", "qlora")
    assert answer.code == 2
    assert "pip install bitsandbytes" in answer.err
