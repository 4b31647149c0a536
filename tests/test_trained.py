"""What a user may give as --adapter by mistake: each is scored rightly or refused in one line before weights load."""

import json
import shutil

import pytest
import torch
from conftest import SMALL, one_line, only_run
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ocr_eval.execution import execute as module

LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def score(ocr_eval, tiny):
    def call(adapter, *more):
        return ocr_eval("score", "--model", tiny, "--assoc", "country-code", "--adapter", adapter, *SMALL, *more)

    return call


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*arguments, **more):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_base", load)


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """The folder of an adapter of ours over the tiny Llama, and the scores that its record states."""
    from ocr_eval.cli.app import run

    output = tmp_path_factory.mktemp("trained")
    run(["finetune", "--model", tiny, "--assoc", "country-code", "--epochs", "2", "-o", str(output), *SMALL])
    folder = only_run(output)
    return folder / "adapter", json.loads((folder / "result.json").read_text())["final"]


@pytest.fixture
def copied(adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def change_tensors(folder, edit):
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.usefixtures("nothing_loads")
def test_a_whole_model_of_another_architecture_is_refused(score, model_files):
    one_line(score(model_files["qwen2"].with_suffix("")), "model_type is qwen2", "is llama", "--model")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 32), ("num_hidden_layers", 1), ("num_key_value_heads", 4), ("intermediate_size", 64)],
)
def test_a_whole_model_of_other_sizes_is_refused(score, model_files, tmp_path, field, value):
    source = model_files["llama"].with_suffix("")
    size = len(AutoTokenizer.from_pretrained(source))
    AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA | {field: value}, vocab_size=size)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    one_line(score(tmp_path), f"{field} is {value}, that of tiny-llama is {LLAMA[field]}")


@pytest.mark.usefixtures("nothing_loads")
def test_a_whole_model_of_another_vocabulary_is_refused(score, model_files, tmp_path):
    shutil.copytree(model_files["llama"].with_suffix(""), tmp_path / "m")
    path = tmp_path / "m/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    one_line(score(tmp_path / "m"), "tokenizer")


def test_a_whole_model_of_this_one_is_scored_under_its_name(score, model_files):
    answer = score(model_files["llama"].with_suffix(""))
    assert answer.code == 0, answer.err
    assert "tiny-llama with" in answer.out
    assert answer.err == ""


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("cut", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_truncated_adapter_is_refused(score, copied, cut):
    whole = (copied / cut).read_bytes()
    (copied / cut).write_bytes(whole[: len(whole) // 2])
    one_line(score(copied), str(copied))


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_an_adapter_that_is_no_lora_is_refused_by_its_type(score, model_files, tmp_path, kind):
    configs = {
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }
    network = AutoModelForCausalLM.from_pretrained(model_files["llama"].with_suffix(""))
    get_peft_model(network, configs[kind]).save_pretrained(tmp_path)
    one_line(score(tmp_path), f"{kind}_tuning".upper(), "LORA")


@pytest.mark.usefixtures("nothing_loads")
def test_an_adapter_whose_start_was_taken_out_of_the_base_is_refused(score, copied):
    change(copied, init_lora_weights="pissa_niter_4")
    one_line(score(copied), "pissa", "path_initial_model_for_weight_conversion")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name], "layers.1"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "q_proj" in name], "q_proj"),
        (lambda tensors: tensors.update({n.replace(".1.", ".2."): t.clone() for n, t in tensors.items()}), "layers.2"),
        (lambda tensors: tensors.update({n: t[:, :3].clone() for n, t in tensors.items() if "v_proj" in n}), "shape"),
    ],
    ids=["fewer layers", "a module of none", "more layers", "other sizes"],
)
def test_an_adapter_of_other_modules_is_refused_by_the_first_tensor(score, copied, edit, said):
    change_tensors(copied, edit)
    one_line(score(copied), "not those of an adapter over tiny-llama", said)


@pytest.mark.parametrize(("value", "said"), [(0.0, "never trained"), (float("nan"), "NaN")])
def test_an_adapter_of_zeros_or_of_no_numbers_is_refused(score, copied, value, said):
    change_tensors(copied, lambda ts: [t.fill_(value) for name, t in ts.items() if "lora_B" in name])
    one_line(score(copied), said)


def test_an_adapter_that_names_another_base_is_scored_with_a_warning(score, adapter, copied):
    for name in ("tiny-llama", "/elsewhere/Tiny-Llama/", None):
        change(copied, base_model_name_or_path=name)
        assert score(copied).err == ""
    change(copied, base_model_name_or_path="someone/another-model")
    answer = score(copied, "--json")
    assert json.loads(answer.out) == adapter[1]
    (line,) = answer.err.splitlines()
    assert "warning" in line
    assert "'someone/another-model'" in line


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("name", ["gemma3-270m", "meta-llama/Meta-Llama-3-8B"])
def test_an_adapter_of_another_shipped_model_is_refused(ocr_eval, copied, name):
    change(copied, base_model_name_or_path=name)
    answer = ocr_eval("score", "--model", "smollm2-135m", "--assoc", "country-code", "--adapter", copied)
    one_line(answer, f"'{name}'", "not of smollm2-135m", "Give --model")


def test_the_base_s_configuration_beside_an_adapter_does_not_make_it_a_model(score, model_files, adapter, copied):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model_files["qwen2"].with_suffix("") / name, copied)
    assert json.loads(score(copied, "--json").out) == adapter[1]
    shutil.copy(model_files["llama"].with_suffix("") / "model.safetensors", copied)
    one_line(score(copied), "both an adapter and a whole model")


def test_folders_that_hold_nothing_trained_are_refused(score, model_files, adapter, tmp_path):
    AutoTokenizer.from_pretrained(model_files["llama"].with_suffix("")).save_pretrained(tmp_path / "tokenizer")
    one_line(score(tmp_path / "tokenizer"), "contains no adapter")
    one_line(score(adapter[0].parent), "is a run's folder")
    shutil.copytree(model_files["llama"].with_suffix(""), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safe*"))
    one_line(score(tmp_path / "bare"), str(tmp_path / "bare"))


def test_an_adapter_on_the_output_head_too_is_scored_as_peft_does(score, model_files, tmp_path):
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_pretrained(model_files["llama"].with_suffix(""))
    stock = get_peft_model(stock, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    stock.save_pretrained(tmp_path, save_embedding_layers=False)
    change(tmp_path, base_model_name_or_path="tiny-llama")
    answer = score(tmp_path)
    assert answer.code == 0, answer.err


def test_a_run_over_weights_that_have_changed_since_is_refused(ocr_eval, model_files, tmp_path, monkeypatch):
    shutil.copytree(model_files["llama"].with_suffix(""), tmp_path / "m")
    run = ["finetune", "--model", tmp_path / "m", "--assoc", "country-code", "--epochs", 1, "-o", tmp_path / "out"]
    assert ocr_eval(*run, "--lr", "1e-2", *SMALL).code == 0
    folder = only_run(tmp_path / "out")
    assert ocr_eval("score", folder).code == 0
    change_file = tmp_path / "m/model.safetensors"
    tensors = load_file(change_file)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, change_file, metadata={"format": "pt"})
    monkeypatch.setattr(module, "load_base", None)
    one_line(ocr_eval("score", folder), "have changed since", "folder:")
    (folder / "status.json").unlink()
    one_line(ocr_eval("score", folder), "not a finished run")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", None),
        ("target_modules", "("),
        ("base_model_name_or_path", 5),
        ("lora_alpha", "x"),
        ("r", "4"),
        ("r", 0),
        ("rank_pattern", {"q_proj": "x"}),
        ("rank_pattern", {"(": 2}),
        ("alpha_pattern", 4),
        ("modules_to_save", 7),
        ("use_dora", "yes"),
    ],
)
def test_a_configuration_with_a_field_of_another_type_names_it(score, copied, field, value):
    change(copied, **{field: value})
    one_line(score(copied), "adapter_config.json", field)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank_pattern", {"q_proj": 1}, "q_proj"),
        ("modules_to_save", ["lm_head"], "lm_head"),
        ("use_dora", True, "lora_magnitude_vector"),
        ("layers_to_transform", [9], "[9]"),
    ],
)
def test_a_setting_that_the_tensors_do_not_have_is_named_with_the_tensor(score, copied, field, value, said):
    change(copied, **{field: value})
    one_line(score(copied), f"adapter_config.json asks for {field}", said)


@pytest.mark.usefixtures("nothing_loads")
def test_a_configuration_that_is_a_list_is_refused(score, copied):
    (copied / "adapter_config.json").write_text("[]")
    one_line(score(copied), "`object`")
