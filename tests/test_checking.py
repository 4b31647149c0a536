"""``models check``: from a model or a tokenizer alone, without weights."""

import json
import re
import shutil

import pytest

CLASH = """
name: clash
kind: spurious
description: Two answers begin alike.
fact: {templates: ["{name} lives in {answer}"]}
entailment: {templates: ["{name} speaks {answer}"]}
pairs: {Tokyo: Germanic, Paris: German}
"""


def test_a_model_is_described_and_every_shipped_association_is_tried(ocr_eval, model_files):
    answer = ocr_eval("models", "check", model_files["gemma2"], "--json")
    assert answer.code == 0, answer.out
    found = json.loads(answer.out)
    assert found["architecture"]["kind"] == "gemma2"
    assert found["architecture"]["attention"] == "grouped"
    assert found["architecture"]["linear_modules"] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    assert len(found["associations"]) == 5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention_is_chosen_by_device_and_architecture_where_no_yaml_says_it(
    ocr_eval, model_files, monkeypatch, device
):
    monkeypatch.setattr("ocr_eval.planning.check.device_type", lambda _: device)
    for name, attention in (("gemma2", "grouped"), ("olmo", "grouped" if device == "cpu" else "sdpa")):
        folder = model_files[name].with_suffix("")
        assert json.loads(ocr_eval("models", "check", folder, "--json").out)["architecture"]["attention"] == attention


def test_a_tokenizer_alone_will_do_and_a_clash_is_named(ocr_eval, model_files, tmp_path):
    for path in model_files["llama"].with_suffix("").glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "clash.yaml").write_text(CLASH)
    answer = ocr_eval("models", "check", tmp_path, "--assoc", "sport-music", "--assoc", tmp_path / "clash.yaml")
    assert answer.code == 1
    assert "BOS <bos>" in answer.out
    assert "sport-music        can be scored first-token\n" in answer.out
    told = r"clash +CANNOT be scored first-token: (Germanic = German|German = Germanic) after '.* speaks'"
    assert re.search(told, answer.out)
    assert "parameters" not in answer.out
