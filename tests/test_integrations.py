"""The callback in a real transformers Trainer."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from ocr_eval.common.errors import UserError
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.integrations import OCRCallback
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.scoring.quantities import held_out
from tests.conftest import bare, load
from tests.test_facts import HEADING, TEAMS, staff, write_csv


class Statements(torch.utils.data.Dataset):
    """A callback's rows in tokens, with a loss on answers alone."""

    def __init__(self, tokenizer, task):
        self.rows = training_tokens(tokenizer, task)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        ids = [*row.prompt, *row.answer]
        return {"input_ids": ids, "labels": [-100] * len(row.prompt) + list(row.answer)}


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    return {key: torch.tensor([r[key] + [fill[key]] * (longest - len(r[key])) for r in rows]) for key in fill}


def train(tiny, tmp_path, callback, model=None, epochs=6, **other):
    folder = tiny.removesuffix(".yaml")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model or AutoModelForCausalLM.from_pretrained(folder)
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    data = Statements(tokenizer, callback.task)
    trainer = Trainer(model, arguments, padded, data, callbacks=[callback], **{"processing_class": tokenizer, **other})
    return trainer


@pytest.fixture
def table(tmp_path):
    return write_csv(tmp_path / "staff.csv", [row[:3] for row in staff(30, 20)], HEADING[:3])


def test_a_trainer_logs_what_is_inferred(tiny, table, tmp_path):
    callback = OCRCallback(table, every=7, table={"templates": {"badge": "{name} wears {answer}"}})
    trainer = train(tiny, tmp_path, callback)
    trainer.train()
    assert [each["step"] for each in callback.history] == [0, 7, 14, 21, 28, 35, 42]
    logged = [line for line in trainer.state.log_history if "ocr/ocr_score" in line]
    assert [line["step"] for line in logged] == [each["step"] for each in callback.history]
    first, last = callback.history[0], callback.history[-1]
    assert last["ocr/team_taught"] > first["ocr/team_taught"]
    assert last["ocr/premises_hold"] in (0, 1)
    assert trainer.model.training
    names = [word for row in staff(30, 20) for word in row if word]
    assert not any(f'"{word}' in json.dumps(trainer.state.log_history) for word in [*names, *TEAMS.values()])


def test_its_scores_are_those_of_a_run(tiny, table, tmp_path):
    callback = OCRCallback(table)
    train(tiny, tmp_path, callback, epochs=1).train()
    base = load(tiny)
    expected = held_out(callback.task, score_candidates(bare(base), probe_tokens(base.tokenizer, callback.task)))
    assert callback.history[0]["ocr/ocr_score"] == pytest.approx(expected["first-token"].ocr_score)
    assert len(callback.history) == 2  # before and at the end


def test_an_association_and_an_adapter(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    callback = OCRCallback("country-code", every=100, data={"n": 3, "m_train": 2, "m_test": 2})
    assert callback.rows()[0].keys() == {"prompt", "completion"}
    assert len(callback.rows()) == 3 * (2 * 2 + 2)
    base = AutoModelForCausalLM.from_pretrained(tiny.removesuffix(".yaml"))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    trainer = train(tiny, tmp_path, callback, model, epochs=1)
    seen = []
    callback.log = seen.append
    trainer.train()
    assert len(seen) == 2
    assert {"ocr/train_fact", "ocr/test_fact", "ocr/null_rank"} <= seen[0].keys()


def test_what_does_not_fit_is_said(tiny, table, tmp_path):
    for arguments, named in (
        ({"facts": table, "every": 0}, "every"),
        ({"facts": "country-code", "table": {"ask": "x"}}, "table"),
        ({"facts": table, "table": {"ask": "x"}}, "x"),
        ({"facts": "country-cod"}, "country-code"),
        ({"facts": "country-code", "data": {"n": 99}}, "n = 99 is more than the 20 pairs"),
        ({"facts": "country-code", "data": {"m": 1}}, "unknown key 'm'"),
        ({"facts": table, "data": {"n": 4}}, "--n has no effect on a table"),
        ({"facts": tmp_path / "none.csv"}, "none.csv"),
    ):
        with pytest.raises(UserError, match=named):
            OCRCallback(**arguments)
    with pytest.raises(UserError, match="processing_class"):
        train(tiny, tmp_path, OCRCallback(table), processing_class=None).train()
    folder = tiny.removesuffix(".yaml")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="flash"):
        train(tiny, tmp_path, OCRCallback(table), model).train()
