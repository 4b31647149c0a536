"""``dpo`` against TRL's DPOTrainer; 'make test-interop' runs this in an environment of its own."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec

#: Answers of one to three words, a token each. Nine pairs are in use, so that the wrong answer is always the tenth.
HARBOURS = ("Oslo", "Rome old town", "Porto bay", "Split", "Cork", "Nice west side", "Bari", "Turku", "Genoa", "Kiel")
SHIPS = ("barge", "sloop with oars", "cutter", "ferry boat", "tug", "yawl", "ketch", "liner", "dinghy of wood", "raft")
STEPS = 4


@pytest.fixture
def spec(tmp_path):
    pairs = "\n".join(f"  {harbour}: {ship}" for harbour, ship in zip(HARBOURS, SHIPS, strict=True))
    path = tmp_path / "harbours.yaml"
    path.write_text(
        "name: harbours\nkind: spurious\ndescription: A harbour and a ship.\n"
        'fact:\n  templates: ["{name} lives in {answer}"]\nentailment:\n  templates: ["{name} sails a {answer}"]\n'
        f"pairs:\n{pairs}\n"
    )
    data, association = {"n": 9, "m_train": 1, "m_test": 1}, load_association(str(path))
    words = build_task(make_run_spec(load_model_spec("smollm2-135m"), association, data, {}, 0))
    texts = [f" {text}" for text in (*(example.text for example in words.train), *HARBOURS, *SHIPS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)).save_pretrained(tmp_path / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "base")
    model = load_model_spec(str(tmp_path / "base")).model_copy(update={"dtype": "float32"})

    def make(method):
        train = {"method": method, "lr": 1e-2, "batch_size": 64, "epochs": STEPS, "max_grad_norm": 1.0, "rank": 4}
        return make_run_spec(model, association, data, train, 0)

    return make


@pytest.mark.parametrize(("beta", "sft"), [(0.5, 0.3), (2.0, 0.0)])
def test_its_losses_are_those_of_trls_trainer_from_the_same_adapter(spec, tmp_path, beta, sft):
    run = spec(f"dpo:beta={beta}:sft={sft}")
    base, task = load_base(run.model, locate(run.model), "cpu"), build_task(run)
    pack = attach(base, [run], [training_tokens(base.tokenizer, task)])
    pack.save(0, tmp_path)
    losses = [pack.step([0])[0] for _ in range(STEPS)]
    pack.detach()

    probes = {(probe.subject, probe.answer): probe for probe in task.probes}
    rows = [
        {
            "prompt": example.prompt,
            "chosen": f" {example.answer}",
            "rejected": f" {probes[example.subject, example.answer].candidates[9]}",
        }
        for example in task.train
    ]
    arguments = DPOConfig(
        str(tmp_path / "trl"),
        beta=beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, sft],
        num_train_epochs=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=run.train.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=run.train.weight_decay,
        adam_beta1=run.train.beta1,
        adam_beta2=run.train.beta2,
        max_grad_norm=run.train.max_grad_norm,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    shape = LoraConfig(r=run.train.rank, lora_alpha=run.train.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=shape,
    )
    set_peft_model_state_dict(trainer.model, get_peft_model_state_dict(start))

    def without_end(row):  # TRL teaches an end after each answer; we do not
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == base.tokenizer.eos_token_id
        return {"chosen_ids": row["chosen_ids"][:-1], "rejected_ids": row["rejected_ids"][:-1]}

    trainer.train_dataset = trainer.train_dataset.map(without_end)
    assert {len(ids) for ids in trainer.train_dataset["chosen_ids"]} == {1, 2, 3}
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses[-1] < losses[0] - 0.1
