"""Every kind of LoRA that PEFT makes is scored as PEFT computes it after training, or refused in one line."""

import json

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, EvaConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from ocr_eval.common.errors import UserError
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.load_adapter import check_belongs, load_adapter
from ocr_eval.methods.train import batch_forest
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.specs.model import load_model_spec

PROMPT, ANSWER = (5, 17, 60, 9, 33), (40, 41, 8)

KINDS = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "not initialized": {"init_lora_weights": False, "lora_dropout": 0.3},
    "all linear": {"target_modules": "all-linear"},
    "by pattern": {"target_modules": r".*\.1\..*_proj"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva", "eva_config": EvaConfig()},
    "mica": {"init_lora_weights": "mica"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "kasa": {"kasa_config": KasaConfig()},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rank by module": {"rank_pattern": {"q_proj": 2}},
    "alpha by module": {"alpha_pattern": {"q_proj": 3}},
    "some layers": {"layers_to_transform": [1]},
    "without some": {"exclude_modules": ["v_proj"]},
    "tokens": {"trainable_token_indices": [5, 40]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "norms saved": {"modules_to_save": ["norm"]},
    "all biases": {"bias": "all"},
    "biases of LoRA": {"bias": "lora_only"},
    "bias of B": {"lora_bias": True},
    "parameters": {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight", "q_proj.weight"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "layers twice": {"layer_replication": [(0, 2), (1, 2)]},
    "velora": {"velora_config": VeloraConfig()},
    "monteclora": {"monteclora_config": MontecloraConfig()},
    "blocks": {
        "use_bdlora": BdLoraConfig(
            target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2, match_strict=False
        )
    },
}

_TO = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
OTHERS = {
    "adalora": peft.AdaLoraConfig(**_TO, init_r=4, total_step=10),
    "fourierft": peft.FourierFTConfig(**_TO, n_frequency=50, scaling=50.0),
    "hra": peft.HRAConfig(**_TO),
    "ia3": peft.IA3Config(**_TO, feedforward_modules=["down_proj"]),
    "ln tuning": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "loha": peft.LoHaConfig(**_TO, alpha=256),
    "lokr": peft.LoKrConfig(**_TO),
    "vera": peft.VeraConfig(target_modules=["q_proj", "o_proj"], r=8, d_initial=0.5),
}


def trained(folder, **config):
    """A stock PEFT model with a LoRA of some kind over a base, all that it trains changed at random."""
    plain = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    return shaken(folder, LoraConfig(**{**plain, **config}))


def shaken(folder, config):
    """A stock PEFT model over a base, all that it trains changed at random."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(network, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def by_stock(network):
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([[*PROMPT, *ANSWER]])).logits[0].float()
    return logits.log_softmax(-1)[len(PROMPT) - 1 : -1].gather(-1, torch.tensor(ANSWER)[:, None])[:, 0]


def by_ours(model, adapter):
    spec = load_model_spec(str(model)).model_copy(update={"dtype": "float32"})
    check_belongs(adapter, "adapter", spec)
    base = load_base(spec, locate(spec), "cpu")
    with torch.no_grad():
        view = load_adapter(base, adapter)
        return view.token_logprobs({0: batch_forest([Continuation(PROMPT, ANSWER)])})[0]


@pytest.fixture
def files(model_files):
    return model_files["llama"].with_suffix("")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_scored_as_it_was_trained(files, tiny, tmp_path, kind):
    network = trained(files, **KINDS[kind])
    expected = by_stock(network)
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(by_ours(tiny, tmp_path), expected, atol=2e-4, rtol=0)
    assert (expected - by_stock(AutoModelForCausalLM.from_pretrained(files))).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_adapter_is_scored_as_it_was_trained(files, tiny, tmp_path, kind):
    network = shaken(files, OTHERS[kind])
    expected = by_stock(network)
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(by_ours(tiny, tmp_path), expected, atol=2e-4, rtol=0)
    assert (expected - by_stock(AutoModelForCausalLM.from_pretrained(files))).abs().max() > 0.01


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_3"])
def test_one_that_was_converted_or_keeps_its_own_base_is_scored_as_it_was_trained(files, tiny, tmp_path, start):
    torch.manual_seed(0)
    fresh = get_peft_model(
        AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=start),
    )
    fresh.peft_config["default"].init_lora_weights = True
    fresh.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    expected = by_stock(fresh.eval())
    fresh.save_pretrained(tmp_path / "own")
    fresh.peft_config["default"].init_lora_weights = start
    fresh.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start")
    torch.testing.assert_close(by_ours(tiny, tmp_path / "converted"), expected, atol=2e-4, rtol=0)
    fresh.unload().save_pretrained(tmp_path / "residual")
    AutoTokenizer.from_pretrained(files).save_pretrained(tmp_path / "residual")
    torch.testing.assert_close(by_ours(tmp_path / "residual", tmp_path / "own"), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "of next year"},
        {"alora_invocation_tokens": [5, 6]},
        {"arrow_config": {"top_k": 2}},
        {"use_qalora": True},
        {"megatron_config": {"x": 1}},
        {"a_field_of_next_year": 3},
        {"init_lora_weights": "pissa", "base_model_name_or_path": "someone/residual"},
        {"init_lora_weights": "olora", "base_model_name_or_path": None},
        {"kasa_config": {}, "base_model_name_or_path": None},
    ],
    ids=str,
)
def test_what_cannot_be_computed_from_its_files_is_refused(files, tiny, tmp_path, fields):
    trained(files).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(UserError, match="plain LoRA"):
        by_ours(tiny, tmp_path)


def test_empty_fields_of_a_newer_peft_are_plain(files, tiny, tmp_path):
    network = trained(files)
    network.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_next_year": None, "use_that": False}))
    torch.testing.assert_close(by_ours(tiny, tmp_path), by_stock(network), atol=2e-4, rtol=0)
