"""Statements in the prompt, against whole texts read one by one by stock transformers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import load, tiny_run
from transformers import AutoModelForCausalLM

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import Continuation, probe_tokens, training_tokens, windows
from ocr_eval.methods.context import _end
from ocr_eval.methods.pack import attach
from ocr_eval.records.metrics import read_metrics
from ocr_eval.scoring.candidates import score_candidates

SMALL = {"n": 2, "m_train": 1, "m_test": 1}


def context_of(pack, lane, folder):
    (folder / str(lane)).mkdir()
    pack.save(lane, folder / str(lane))
    return (folder / str(lane) / "context.txt").read_text()


@pytest.mark.parametrize("architecture", ["llama", "olmo"])  # with and without BOS
def test_probes_read_what_stands_before_them(model_files, tmp_path, architecture):
    path = model_files[architecture]
    spec, base = tiny_run(path, method="in-context", **SMALL), load(path)
    task = build_task(spec)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, task)])
    probes = probe_tokens(base.tokenizer, task)
    network = AutoModelForCausalLM.from_pretrained(Path(path).with_suffix(""))
    bare = score_candidates(pack.view(), probes).logprobs["sequence"]
    loss = pack.step([0])[0]
    found = score_candidates(pack.view(), probes).logprobs["sequence"]
    context = context_of(pack, 0, tmp_path)
    assert sorted(context.splitlines()) == sorted(f"{example.text}." for example in task.train)
    prefix = base.tokenizer(context).input_ids
    bos = prefix[0] == base.tokenizer.bos_token_id

    def logprob(prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        logprobs = network(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logprobs.gather(1, torch.tensor(answer)[:, None]).sum().item()

    for row, probe in zip(found, probes, strict=True):
        expected = [logprob([*prefix, *probe.prompt[bos:]], candidate) for candidate in probe.candidates]
        assert row.tolist() == pytest.approx(expected, abs=1e-3)
    untouched = score_candidates(pack.view(trained=False), probes).logprobs["sequence"]
    assert (untouched == bare).all()
    assert (bare != found).any()
    assert 0 < loss < 50


def test_the_lens_reads_what_a_run_in_context_reads(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "--n", 2, "--m-train", 1, "--m-test", 1, "--method", "in-context"]
    record = json.loads(ocr_eval("finetune", *run, "--measures", "logit-lens", "-o", tmp_path, "--json").out)
    lens = record["measures"]["logit-lens"]["layers"]
    base = record["base"]["first-token"]
    for quantity, score in record["final"]["first-token"].items():
        assert lens[f"{quantity}_rank"][-1] == pytest.approx(score["mean_rank"], rel=1e-3)
        assert lens[f"{quantity}_null"][-1] == pytest.approx(score["null_rank"], rel=1e-3)
    assert any(base[name]["mean_rank"] != score["mean_rank"] for name, score in record["final"]["first-token"].items())


def test_prose_is_read_within_what_is_left_after_the_context(ocr_eval, tiny, tmp_path, monkeypatch):
    widths = []

    def seen(ids, bos, width):
        widths.append(width)
        return windows(ids, bos, width)

    monkeypatch.setattr("ocr_eval.measures.text_loss.windows", seen)
    monkeypatch.setattr("ocr_eval.measures.text_loss._MOST", 300)
    monkeypatch.setattr("ocr_eval.methods.view.longest", lambda config: 150)
    run = ["--model", tiny, "--n", 2, "--m-train", 1, "--m-test", 1, "-o", tmp_path, "--json"]
    more = ["--method", "in-context", "--measures", "text-loss"]
    record = json.loads(ocr_eval("finetune", "city-language", *run, *more).out)
    assert {"loss", "base_loss"} <= record["measures"]["text-loss"].keys()
    lines = read_metrics(tmp_path / "runs" / record["run"] / "metrics.jsonl")
    (end,) = [line.notes["context_tokens"] for line in lines if line.notes]
    assert 0 < end < 100
    assert set(widths) == {150 - end}


def test_a_full_stop_follows_the_answer_where_texts_begin_with_a_space_piece():
    """Such tokenizers encode a full stop alone as a space and a full stop."""

    class Prefixing:
        def __call__(self, text, add_special_tokens):
            return SimpleNamespace(input_ids=[1, *map(ord, text)])

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids[1:]))

    statement = Continuation((1, *map(ord, "She lives in")), tuple(map(ord, " Paris")))
    assert _end(Prefixing(), statement) == list(map(ord, ".\n"))


def test_each_order_is_another_of_the_same_statements(tiny, tmp_path):
    first, base = tiny_run(tiny, method="in-context", **SMALL), load(tiny)
    specs = [first, *(first.model_copy(update={"train_seed": k}) for k in (1, 2))]
    texts = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]
    packs = [attach(base, [spec], [each]) for spec, each in zip(specs, texts, strict=True)]
    contexts = [
        context_of(pack, 0, tmp_path / str(k)) for k, pack in enumerate(packs) if not (tmp_path / str(k)).mkdir()
    ]
    assert len(set(contexts)) == 3
    assert len({tuple(sorted(context.splitlines())) for context in contexts}) == 1


def test_it_goes_to_the_table_and_says_what_it_cannot(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-train", 1, "-o", tmp_path, "--method", "in-context"]
    assert ocr_eval("finetune", "city-language", *run, "--m-test", 1).code == 0
    assert ocr_eval("finetune", "city-language", *run, "--m-test", 1).code == 0
    assert "in context" in ocr_eval("table", tmp_path, "--no-published").out
    (path,) = tmp_path.rglob("result.json")
    record = json.loads(path.read_text())
    assert record["train"]["epochs"] == 1
    line = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["context_tokens"] > 20
    refused = {
        "context.txt": ocr_eval("score", path.parent),
        "--m-test": ocr_eval("finetune", "city-language", *run, "--m-test", 16),
        "--epochs": ocr_eval("finetune", "city-language", *run, "--m-test", 1, "--epochs", 3),
        "replay": ocr_eval("finetune", "city-language", *run, "--m-test", 1, "--prevent", "replay"),
    }
    for said, answer in refused.items():
        assert answer.code == 2
        assert said in answer.err
        assert answer.err.count("\n") == 1
