"""LoRA over a base in 4 bits on every architecture, from the command line to stock libraries and back."""

import json

import pytest
import torch
from conftest import ARCHITECTURES
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ocr_eval.execution import run_pack
from ocr_eval.methods.pack import GradientPack


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_over_four_bits_is_saved_reloaded_and_scored_again(ocr_eval, model_files, tmp_path, architecture):
    run = ["finetune", "--model", model_files[architecture], "--assoc", "city-language", "--method", "qlora"]
    answer = ocr_eval(*run, "--n", 2, "--m-test", 3, "--epochs", 2, "-o", tmp_path, "--json")
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    (folder,) = tmp_path.glob("runs/*/*/qlora/seed0-*")
    again = json.loads(ocr_eval("score", folder, "--json").out)
    assert again["sequence"]["test_fact"] == pytest.approx(record["final"]["sequence"]["test_fact"])

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    stock = AutoModelForCausalLM.from_pretrained(
        model_files[architecture].with_suffix(""), quantization_config=nf4, device_map="cpu", dtype=torch.float32
    )
    stock.train()  # bitsandbytes packs its weights anew in eval mode, for speed
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        untouched = stock(ids).logits
        adapted = PeftModel.from_pretrained(stock, folder / "adapter")(ids).logits
    assert (adapted - untouched).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_an_interrupted_run_goes_on_with_the_result_it_would_have_had(ocr_eval, tiny, tmp_path, monkeypatch, method):
    run = ["finetune", "--model", tiny, "--assoc", "city-language", "--method", method, "--n", 2, "--m-test", 2]
    whole = json.loads(ocr_eval(*run, "--epochs", 3, "-o", tmp_path / "whole", "--json").out)
    monkeypatch.setattr(run_pack, "CHECKPOINT_EVERY", 0.0)
    trained = GradientPack.step

    def stopped(pack, lanes):
        if pack.learners[0].epochs_done == 2:
            raise KeyboardInterrupt
        return trained(pack, lanes)

    monkeypatch.setattr(GradientPack, "step", stopped)
    assert ocr_eval(*run, "--epochs", 3, "-o", tmp_path / "cut").code == 130
    monkeypatch.setattr(GradientPack, "step", trained)
    answer = ocr_eval(*run, "--epochs", 3, "-o", tmp_path / "cut", "--json")
    assert "after epoch" in answer.err
    resumed = json.loads(answer.out)
    assert resumed["train_loss"] == whole["train_loss"]
    assert resumed["final"] == whole["final"]
