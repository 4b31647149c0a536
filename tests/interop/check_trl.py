"""The callback in TRL's SFTTrainer; 'make test-interop' runs this in an environment of its own."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ocr_eval.cli.app import run
from ocr_eval.integrations import OCRCallback
from ocr_eval.records.record import read_record

TEAMS = {"red": "mint", "blue": "rust", "green": "teal"}


@pytest.fixture
def table(tmp_path):
    teams = [list(TEAMS)[i % 3] for i in range(30)]  # a name begins as its team does, which is soon learned
    rows = [f"{team[0] * 3}{i} Berg,{team},{TEAMS[team] if i < 18 else ''}" for i, team in enumerate(teams)]
    path = tmp_path / "staff.csv"
    path.write_text("\n".join(["name,team,badge", *rows]))
    return path


def tiny():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **sizes))
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def settings(tmp_path, epochs):
    return SFTConfig(
        str(tmp_path / "out"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )


def test_an_sft_trainer_logs_what_is_inferred(table, tmp_path):
    model, tokenizer = tiny()
    callback = OCRCallback(table, every=20)
    arguments = settings(tmp_path, epochs=5)
    rows = Dataset.from_list(callback.rows())
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    trainer.train()
    steps = [each["step"] for each in callback.history]
    assert steps == [0, 20, 30]
    assert [line["step"] for line in trainer.state.log_history if "ocr/ocr_score" in line] == steps
    assert callback.history[-1]["ocr/team_taught"] > callback.history[0]["ocr/team_taught"]


def test_what_it_learns_of_exported_data_is_scored(table, tmp_path):
    model, tokenizer = tiny()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert run(["data", "export", "--facts", str(table), "-f", "prompt-completion", "-o", str(tmp_path / "data")]) == 0
    file = str(tmp_path / "data/prompt-completion.jsonl")
    arguments = settings(tmp_path, epochs=10)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        arguments,
        train_dataset=load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache")),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "mine"))
    words = ["--data", tmp_path / "data", "--adapter", tmp_path / "mine", "--model", tmp_path / "base"]
    assert run(["score", *map(str, words), "--name", "trl", "-o", str(tmp_path / "results"), "--quiet"]) == 0
    (path,) = (tmp_path / "results").rglob("result.json")
    record = read_record(path)
    assert record.train.method == "external:trl"
    before, after = (scores["sequence"]["team_taught"].margin for scores in (record.base, record.final))
    assert after > before


def test_the_callback_needs_no_trl():
    code = "import sys, ocr_eval.integrations; assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
