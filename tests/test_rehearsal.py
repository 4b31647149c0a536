"""Rehearsals: true-size architectures with random weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ARCHITECTURES

from ocr_eval.data.stand_in_tokenizer import StandInTokenizer
from ocr_eval.models.architecture import read_config
from ocr_eval.models.random_weights import random_network
from ocr_eval.specs.model import load_model_spec


def test_the_measured_peak_is_within_15_percent_of_the_plan():
    command = [sys.executable, "-m", "ocr_eval", "models", "rehearse", "smollm2-135m", "--json"]
    command += ["--steps", "2", "--probes", "20"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["parameters"] == 134_515_008
    assert record["moved"] == record["adapters"] == 30 * 7 * 2
    assert record["losses"][1] < record["losses"][0]
    assert abs(record["deviation"]) < 0.15
    assert record["real_tokenizer"] is False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_qlora_is_rehearsed_on_every_architecture(ocr_eval, model_files, architecture):
    answer = ocr_eval("models", "rehearse", model_files[architecture], "--method", "qlora", "--steps", 2, "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["real_tokenizer"] is True
    assert record["moved"] == record["adapters"] == 2 * 7 * 2


def test_a_part_of_a_model_is_said_to_be_one(ocr_eval, model_files):
    answer = ocr_eval("models", "rehearse", model_files["llama"], "--layers", 1, "--steps", 2)
    assert answer.code == 0, answer.err
    assert "1 of 2 layers" in answer.out
    assert "its own tokenizer" in answer.out
    assert "has 2 layers" in ocr_eval("models", "rehearse", model_files["llama"], "--layers", 3).err


def test_what_does_not_fit_is_refused_before_it_is_built(ocr_eval, tiny, monkeypatch):
    from ocr_eval.planning import memory

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    answer = ocr_eval("models", "rehearse", tiny)
    assert answer.code == 2
    assert "Rehearse it with --method qlora, or rehearse part of it with --layers" in answer.err


def test_a_method_without_steps_is_refused_before_it_is_built_and_dpo_is_rehearsed(ocr_eval, tiny):
    answer = ocr_eval("models", "rehearse", tiny, "--method", "in-context")
    assert answer.code == 2
    assert answer.err == "ocr-eval: in-context has no training steps to rehearse.\n"
    answer = ocr_eval("models", "rehearse", tiny, "--method", "dpo", "--steps", 2, "--json")
    assert answer.code == 0, answer.err
    before, after = json.loads(answer.out)["losses"]
    assert after < before


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_networks_are_those_of_a_fresh_model(model_files, architecture, quantized):
    """Norms, biases, rotary tables and scales as transformers makes them; nothing left without a value."""
    from transformers import AutoModelForCausalLM

    spec = load_model_spec(str(model_files[architecture]))
    config = read_config(spec)
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network = random_network(spec, config, torch.device("cpu"), quantized)
    assert not any(t.is_meta for t in [*network.parameters(), *network.buffers()])
    made = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
        if tensor.dim() < 2:
            assert torch.equal(made[name], tensor)
    assert network(torch.arange(3, 12)[None]).logits.std() > 0.01


def test_the_stand_in_cuts_long_words_and_numbers_pieces_as_they_come():
    texts = ["Anna Hill speaks French", "Grace Miller programs mostly in JavaScript"]
    stand_in = StandInTokenizer(vocabulary=32_000, bos=True)
    lengths = [len(ids) for ids in stand_in(texts).input_ids]
    assert lengths == [1 + 4, 1 + 6 + 2]  # " programs" and " JavaScript" are too long for one piece
    first, again = stand_in(texts).input_ids, stand_in(texts).input_ids
    assert first == again
