"""DPO with cross-entropy mixed in, against a plain loop over PEFT that computes its equation sentence by sentence."""

import json
from pathlib import Path

import pytest
import torch
from conftest import load, packed, tiny_run
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from ocr_eval.common.errors import UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import continuations, training_tokens
from ocr_eval.methods.pack import attach

#: Nine answers in use and one distractor, so that every draw of a wrong answer is known.
KNOWN = {"n": 9, "m_train": 1, "m_test": 1}


def answer_logprob(network, prompt, answer):
    ids = torch.tensor([[*prompt, *answer]])
    logprobs = network(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(answer)[:, None]).sum()


def plain_losses(network, base, sentences, beta, sft, epochs, rate):
    """Losses of each epoch, one batch each."""
    parameters = [p for n, p in network.named_parameters() if "lora_" in n]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(epochs):
        tokens = sum(len(right) for _, right, _ in sentences)
        loss = torch.zeros(())
        for prompt, right, wrong in sentences:
            own = [answer_logprob(network, prompt, each) for each in (right, wrong)]
            with torch.no_grad():
                held = [answer_logprob(base, prompt, each) for each in (right, wrong)]
            loss = loss - sft * own[0] / tokens
            loss = loss - logsigmoid(beta * ((own[0] - held[0]) - (own[1] - held[1]))) / len(sentences)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize(("beta", "sft"), [(0.5, 1.0), (2.0, 0.0)])
def test_it_learns_what_a_plain_loop_learns(tiny, tmp_path, beta, sft):
    method = f"dpo:beta={beta}:sft={sft}"
    spec = tiny_run(tiny, method=method, lr=1e-2, batch_size=64, epochs=4, max_grad_norm=1.0, **KNOWN)
    base, task = load(tiny), build_task(spec)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, task)])
    pack.save(0, tmp_path)
    losses = [pack.step([0])[0] for _ in range(4)]
    pack.detach()
    probes = {(p.subject, p.answer): p for p in task.probes}
    wrong = [probes[example.subject, example.answer].candidates[9] for example in task.train]
    pairs = [(e.prompt, answer) for e, w in zip(task.train, wrong, strict=True) for answer in (e.answer, w)]
    cut = continuations(base.tokenizer, pairs)
    sentences = [(a.prompt, a.answer, b.answer) for a, b in zip(cut[::2], cut[1::2], strict=True)]
    untouched, network = (AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix("")) for _ in range(2))
    peft = PeftModel.from_pretrained(network, tmp_path / "adapter", is_trainable=True)
    expected = plain_losses(peft, untouched, sentences, beta, sft, epochs=4, rate=1e-2)
    assert losses == pytest.approx(expected, rel=2e-3)
    assert losses[-1] < losses[0]


def test_it_goes_from_training_to_the_table(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "-o", tmp_path]
    for method in ("lora", "dpo", "dpo:rejected=in-use"):
        assert ocr_eval("finetune", "city-language", *run, "--method", method).code == 0
    table = ocr_eval("table", tmp_path, "--no-published").out
    assert "DPO + SFT" in table
    assert "rejected=in-use" in table
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len({record["adapter_sha256"] for record in found}) == 3


def test_without_wrong_answers_it_is_refused(tiny):
    spec, base = tiny_run(tiny, method="dpo", candidates="in-use"), load(tiny)
    with pytest.raises(UserError, match="rejected=in-use"):
        packed(base, spec)
