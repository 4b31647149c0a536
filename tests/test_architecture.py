"""Sizes of the shipped models from their shipped configurations, without weights or network."""

import pytest

from ocr_eval.common.errors import UserError
from ocr_eval.models.architecture import examine, read_config
from ocr_eval.planning.memory import trainable
from ocr_eval.specs.model import TrainSpec, load_model_spec

#: Totals as published with the weights (tied embeddings once).
PARAMETERS = {
    "gemma2-9b": 9_241_705_984,
    "gemma3-270m": 268_098_176,
    "llama3-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "olmo-7b": 6_888_095_744,
    "qwen2-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shipped_configurations_are_those_of_the_real_models(name):
    assert examine(load_model_spec(name)).parameters == PARAMETERS[name]


def test_adapters_on_every_linear_of_llama3():
    architecture = examine(load_model_spec("llama3-8b"))
    sizes = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096)}
    sizes |= {"gate_proj": (4096, 14336), "up_proj": (4096, 14336), "down_proj": (14336, 4096)}
    assert architecture.linears == {(name, *size): 32 for name, size in sizes.items()}
    by_hand = 32 * 16 * sum(inputs + outputs for inputs, outputs in sizes.values())
    spec = load_model_spec("llama3-8b").model_copy(update={"dtype": "bfloat16"})
    assert trainable(spec, TrainSpec(rank=16)) == by_hand == 41_943_040
    assert trainable(spec, TrainSpec(rank=16, targets=("q_proj",))) == 32 * 16 * 8192
    assert trainable(spec, TrainSpec(rank=16, targets=("3.self_attn.q_proj", "7.self_attn.q_proj"))) == 2 * 16 * 8192
    assert trainable(spec, TrainSpec(method="merged-ov:layers=10-12")) == 3 * 32 * 4096**2


def test_what_a_download_costs_is_the_published_precision():
    assert examine(load_model_spec("llama3-8b")).stored == 2 * PARAMETERS["llama3-8b"]
    assert examine(load_model_spec("gemma2-9b")).stored == 4 * PARAMETERS["gemma2-9b"]


def test_quirks_that_change_results_are_in_the_configurations():
    gemma = read_config(load_model_spec("gemma2-9b"))
    assert (gemma.attn_logit_softcapping, gemma.final_logit_softcapping, gemma.query_pre_attn_scalar) == (50, 30, 256)
    assert read_config(load_model_spec("olmo-7b")).clip_qkv == 8.0
    assert read_config(load_model_spec("mistral-7b")).sliding_window is None
    assert read_config(load_model_spec("llama3-8b")).pad_token_id is None


def test_a_shorter_model_and_one_that_is_too_long():
    spec = load_model_spec("gemma2-9b")
    shorter = examine(spec, layers=2)
    assert shorter.layers == 2
    assert sum(shorter.linears.values()) == 2 * 7
    with pytest.raises(UserError, match="has 42 layers"):
        examine(spec, layers=43)
