"""The callback in TRL's SFTTrainer; 'make test-interop' runs this in an environment of its own."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ocr_eval.integrations import OCRCallback

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


def test_an_sft_trainer_logs_what_is_inferred(table, tmp_path):
    model, tokenizer = tiny()
    callback = OCRCallback(table, every=20)
    arguments = SFTConfig(
        str(tmp_path / "out"),
        num_train_epochs=5,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    rows = Dataset.from_list(callback.rows())
    trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    trainer.train()
    steps = [each["step"] for each in callback.history]
    assert steps == [0, 20, 30]
    assert [line["step"] for line in trainer.state.log_history if "ocr/ocr_score" in line] == steps
    assert callback.history[-1]["ocr/team_taught"] > callback.history[0]["ocr/team_taught"]


def test_the_callback_needs_no_trl():
    code = "import sys, ocr_eval.integrations; assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
