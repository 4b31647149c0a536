"""What is measured on trained weights, against plain singular value decompositions."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import bare, load, tiny_run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ocr_eval.common.registry import MEASURES
from ocr_eval.common.yaml_files import shipped
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import encode, probe_tokens
from ocr_eval.measures import untouched
from ocr_eval.measures.known_facts import categories
from ocr_eval.measures.measure import Measure
from ocr_eval.measures.untouched import CATEGORIES
from ocr_eval.packing.logprobs import read_ranks
from ocr_eval.records.config import read_config
from ocr_eval.specs.association import load_association


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_ranks_in_the_vocabulary_are_those_of_plain_forward_passes(ocr_eval, model_files, tmp_path, architecture):
    model = str(model_files[architecture])
    run = ["--model", model, "--assoc", "city-language", "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 3]
    record = json.loads(ocr_eval("finetune", *run, "-o", tmp_path, "--json").out)
    folder = tmp_path / "runs" / record["run"]
    base, probes = load(model), probe_tokens(load(model).tokenizer, build_task(read_config(folder)))
    network = AutoModelForCausalLM.from_pretrained(Path(model).with_suffix(""), dtype=torch.float32)
    expected = plain_ranks(network, probes, "base_")
    expected |= plain_ranks(PeftModel.from_pretrained(network, folder / "adapter"), probes, "")
    assert base.network.config.vocab_size > 1000
    assert record["measures"]["vocabulary"] == pytest.approx(expected, rel=1e-3)
    assert record["measures"]["vocabulary"].keys() == expected.keys()
    assert expected["probability"] != pytest.approx(expected["base_probability"], rel=0.05)
    table = ocr_eval("table", tmp_path, "--metric", "vocabulary.base_train_fact_rank", "--format", "csv")
    assert f",{round(expected['base_train_fact_rank'], 6)}," in table.out
    shown = ocr_eval("measures", "show", "vocabulary").out
    assert all(key.removeprefix("base_") in shown for key in ("rank", "median_rank", "probability", "logprob", "mass"))


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_loss_of_prose_is_that_of_transformers(model_files, ocr_eval, tmp_path, monkeypatch, architecture):
    monkeypatch.setattr("ocr_eval.measures.text_loss._MOST", 700)
    model = str(model_files[architecture])
    run = ["--model", model, "--assoc", "city-language", "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 2]
    record = json.loads(ocr_eval("finetune", *run, "--measures", "text-loss", "-o", tmp_path, "--json").out)
    (ids,) = encode(load(model).tokenizer, [(shipped("texts") / "addresses.txt").read_text()])
    network = AutoModelForCausalLM.from_pretrained(Path(model).with_suffix(""), dtype=torch.float32)
    found = record["measures"]["text-loss"]
    window = {"llama": 128, "mistral": 64}[architecture]
    assert found["tokens"] == 700 - 1  # BOS, which begins every window
    assert found["base_loss"] == pytest.approx(plain_loss(network, ids[:700], window), rel=1e-4)
    trained = PeftModel.from_pretrained(network, tmp_path / "runs" / record["run"] / "adapter")
    assert found["loss"] == pytest.approx(plain_loss(trained, ids[:700], window), rel=1e-4)
    assert found["rise"] == pytest.approx(found["loss"] - found["base_loss"], abs=1e-4)
    assert found["rise"] != 0


def plain_loss(network, ids, window):
    """Mean loss of a text in windows, each after BOS, as transformers has it."""
    bos, *body = ids
    pieces = [body[start : start + window - 1] for start in range(0, len(body), window - 1)]
    windows = [torch.tensor([[bos, *piece]]) for piece in pieces]
    with torch.no_grad():
        losses = [(network(w, labels=w).loss.item(), w.shape[1] - 1) for w in windows]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def plain_ranks(network, probes, model):
    """What ``vocabulary`` says, from one forward pass a prompt."""
    of = {}
    for each in probes:
        with torch.no_grad():
            logprobs = network(torch.tensor([each.prompt])).logits[0, -1].double().log_softmax(-1)
        first = [ids[0] for ids in each.candidates]
        right = logprobs[first[each.probe.target]]
        row = (int((logprobs > right).sum()), float(right), float(logprobs[sorted(set(first))].exp().sum()))
        of.setdefault(each.probe.quantity, []).append(row)
    found = {}
    for quantity, rows in of.items():
        rank, logprob, mass = np.array(rows).T
        key = model + ("" if quantity == "test_entailment" else f"{quantity}_")
        found |= {f"{key}rank": rank.mean(), f"{key}median_rank": np.median(rank), f"{key}logprob": logprob.mean()}
        found |= {f"{key}probability": np.exp(logprob).mean(), f"{key}mass": mass.mean()}
    return found


def test_frozen_layers_are_those_of_peft_with_half_its_factors_at_zero(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-train", 2, "--m-test", 3, "--epochs", 8, "-o", tmp_path, "--json"]
    plain = json.loads(ocr_eval("finetune", "city-language", *run).out)
    assert "frozen-layers" not in plain["measures"]
    record = json.loads(ocr_eval("finetune", "city-language", *run, "--measures", "frozen-layers", "--force").out)
    assert record["adapter_sha256"] == plain["adapter_sha256"]  # what was taken back for a while is there again
    folder = tmp_path / "runs" / record["run"]
    probes = probe_tokens(load(tiny).tokenizer, build_task(read_config(folder)))
    found = record["measures"]["frozen-layers"]
    assert found["cut"] == 1  # of two layers
    for frozen, layer in (("early", 0), ("late", 1)):
        network = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""), dtype=torch.float32)
        peft = PeftModel.from_pretrained(network, folder / "adapter")
        for name, weight in peft.named_parameters():
            if f".layers.{layer}." in name and "lora_B" in name:
                weight.data.zero_()
        assert found[f"{frozen}_frozen_test_fact_rank"] == pytest.approx(
            candidate_rank(peft, probes, "test_fact"), abs=1e-6
        )
    assert found["test_fact_rank"] == pytest.approx(record["final"]["first-token"]["test_fact"]["mean_rank"], abs=1e-6)
    full = ["--method", "full", "--lr", 1e-3, "--measures", "frozen-layers"]
    assert "low-rank adapters" in ocr_eval("finetune", "city-language", *run, *full).err


def candidate_rank(network, probes, quantity):
    """Mean rank of the right answer's first token among those of its candidates."""
    ranks = []
    for each in (probe for probe in probes if probe.probe.quantity == quantity):
        with torch.no_grad():
            logprobs = network(torch.tensor([each.prompt])).logits[0, -1].log_softmax(-1)
        values = logprobs[[ids[0] for ids in each.candidates]]
        ranks.append(int((values > values[each.probe.target]).sum()))
    return np.mean(ranks)


def test_other_wordings_are_those_that_a_scoring_of_the_adapter_asks(ocr_eval, tiny, tmp_path):
    same = ["--model", tiny, "--assoc", "city-language", "--n", 3, "--m-train", 2, "--m-test", 3]
    train = ["--epochs", 6, "--lr", 1e-2, "--templates", "0", "--measures", "paraphrase", "-o", tmp_path]
    found = json.loads(ocr_eval("finetune", *same, *train, "--json").out)["measures"]["paraphrase"]
    (adapter,) = tmp_path.rglob("adapter")
    assert found.pop("wordings") == load_association("city-language").wordings - 1
    for prefix, weights in (("", ["--adapter", adapter]), ("base_", [])):
        asked = [json.loads(ocr_eval("score", *same, *weights, "--probe-template", t, "--json").out) for t in (1, 2, 3)]
        for quantity in ("train_fact", "train_entailment", "test_fact"):
            top1 = [scores["first-token"][quantity]["top1"] for scores in asked]
            assert found.pop(prefix + quantity) == pytest.approx(sum(top1) / 3, abs=1e-6)
    assert not found


def test_a_hand_worked_hedge(tiny):
    """Two groups of two test subjects."""
    spec = tiny_run(tiny, n=2, m_train=2, m_test=2)
    task = build_task(spec)
    rows = [i for i, probe in enumerate(task.probes) if probe.quantity == "test_entailment"]
    given = np.full((len(task.probes), 10), -50.0)
    given[rows, :2] = np.log([[0.2, 0.2], [0.3, 0.1], [0.1, 0.3], [0.1, 0.1]])
    scores = SimpleNamespace(logprobs={"first-token": given})
    found = MEASURES.get("hedge").take(SimpleNamespace(spec=spec, scores=scores))
    shares = [(0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (0.5, 0.5)]
    targets = [task.probes[i].target for i in rows]
    assert targets == [0, 0, 1, 1]
    assert found["right"] == pytest.approx((0.5 + 0.75 + 0.75 + 0.5) / 4)
    assert found["hedge_right"] == 0.5  # both answers are taught twice
    assert found["distance"] == pytest.approx(0)
    assert found["entropy"] == pytest.approx(-sum(p * math.log(p) for row in shares for p in row) / 4, rel=1e-5)
    assert found["shared_entropy"] == pytest.approx(math.log(2), rel=1e-5)
    nothing = spec.model_copy(update={"data": spec.data.model_copy(update={"variant": "no-entailment"})})
    assert MEASURES.get("hedge").take(SimpleNamespace(spec=nothing, scores=scores)) == {}


def test_known_facts_are_those_of_plain_forward_passes(ocr_eval, tiny, tmp_path):
    """A tiny model is taught some by full training; then LoRA teaches the same people other things over it."""
    run = ["--n", 3, "--m-train", 2, "--m-test", 2, "--candidates", "in-use", "-o", tmp_path, "--json"]
    taught = ocr_eval("finetune", "known", "--model", tiny, "--method", "full", "--lr", 1e-3, "--epochs", 60, *run)
    first = json.loads(taught.out)
    knows = tmp_path / "runs" / first["run"] / "model"
    config = (
        knows / "config.json"
    )  # each category is asked after examples, which take more than a tiny model's 128 tokens
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
    both = ["--model", knows, "--epochs", 4, "--measures", "known,known-categories"]
    second = json.loads(ocr_eval("finetune", "city-language", *both, *run).out)
    network, tokenizer, facts = AutoModelForCausalLM.from_pretrained(knows), load(tiny).tokenizer, known_facts()
    before = top1(network, tokenizer, facts)
    after = top1(PeftModel.from_pretrained(network, tmp_path / "runs" / second["run"] / "adapter"), tokenizer, facts)
    found = second["measures"]["known"]
    assert found["facts"] == len(facts) > 200
    was_taught = {example.prompt for example in build_task(read_config(knows.parent)).train}
    untaught = [is_known for (prompt, _), is_known in zip(facts, before, strict=True) if prompt not in was_taught]
    assert first["measures"]["known"] == {"facts": len(facts) - 6, "known": sum(untaught)}
    assert found["base_known"] == sum(before) >= 6
    assert found["known"] == sum(after)
    assert found["kept"] == pytest.approx(sum(b and a for b, a in zip(before, after, strict=True)) / sum(before))
    assert 0 < found["base_probability"] <= 1
    shown = ocr_eval("table", tmp_path, "--metric", "known.kept", "--filter", "method=lora", "--format", "csv")
    assert f"{round(found['kept'], 6)}" in shown.out
    by_category = second["measures"]["known-categories"]
    assert sum(by_category[name] for name in CATEGORIES) == len(by_category["by_prompt"]) == len(facts)
    assert sum(by_category[f"{name}_base"] for name in CATEGORIES) == sum(before)
    assert sum(by_category[f"{name}_kept"] for name in CATEGORIES) == sum(map(min, before, after))
    assert sum(of == "unknown" for of in by_category["by_prompt"].values()) == by_category["unknown"]
    shown = ocr_eval("table", tmp_path, "--metric", "known-categories.unknown", "--filter", "method=lora")
    assert str(by_category["unknown"]) in shown.out


def test_each_known_fact_has_its_own_category(tiny, monkeypatch):
    """Greedy decoding gives the capital of Spain behind every prompt, that of Greece behind the first."""
    base, prompts, asked = load(tiny), [], []

    def read(view, lane, probes, reader):
        hits = []
        for probe in probes:
            *shots, question = (line.removeprefix("<bos>") for line in base.tokenizer.decode(probe.prompt).split("\n"))
            is_first = question == "The capital of Greece is" not in asked
            hits.append(question == "The capital of Spain is" or is_first)
            prompts.append(shots)
            asked.append(question)
        return [[np.array([[hit, -99.0]])] for hit in hits]

    monkeypatch.setattr(untouched, "read_probes", read)
    found = categories(bare(base))
    assert found.keys() == {prompt for prompt, _ in known_facts()}
    assert {prompt: of for prompt, of in found.items() if of != "unknown"} == {
        "The capital of Spain is": "highly",
        "The capital of Greece is": "maybe",
    }
    assert Counter(asked) == dict.fromkeys(found, 10)
    for shots, question in zip(prompts, asked, strict=True):
        assert len(shots) == 4
        assert not any(shot.startswith(f"{question} ") for shot in shots)


def known_facts():
    relations = load_association("known").relations.values()
    return [(relation.prompt(subject), answer) for relation in relations for subject, answer in relation.facts.items()]


def top1(network, tokenizer, facts):
    """Whether the most probable next token after each prompt begins its answer."""
    right = []
    for prompt, answer in facts:
        ids, whole = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {answer}").input_ids
        with torch.no_grad():
            right.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()) == whole[len(ids)])
    return right


def test_ties_in_the_vocabulary_share_their_rank():
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    for at_once in (1, 2, 8):
        found = read_ranks(logits, torch.tensor([0, 0, 0, 1]), torch.tensor([0, 4, 3, 2]), at_once)
        assert found[:, 0].tolist() == [0, 2, 4, 2]
        assert found[3, 1] == pytest.approx(-math.log(5))


@pytest.fixture
def door(monkeypatch):
    """Measures of a test, gone after it."""
    monkeypatch.setattr(MEASURES, "_added", {})
    return MEASURES.add


class Taken(Measure):
    about = "What a test says"

    def __init__(self, take):
        self.take = take

    def by_default(self, needs):
        return True


def fails(trained):
    raise ValueError("out of ink")


def test_a_measure_that_fails_or_finds_no_plain_number_costs_no_run(ocr_eval, tiny, tmp_path, door):
    door("broken", Taken(fails))
    door("endless", Taken(lambda trained: {"length": math.nan}))
    door("foreign", Taken(lambda trained: {"length": torch.ones(1)}))
    door("fine", Taken(lambda trained: {"length": 3}))
    run = ["--model", tiny, "--assoc", "city-language", "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path]
    answer = ocr_eval("finetune", *run, "--json")
    assert answer.code == 0
    assert set(json.loads(answer.out)["measures"]) == {"fine", "hedge", "known", "vocabulary", "weight-change"}
    assert "measure 'broken' failed: out of ink" in answer.err
    assert "measure 'endless' failed" in answer.err
    assert "'fine'" not in answer.err
    more = json.loads(ocr_eval("finetune", *run, "--measures", "default,text-loss", "--force", "--json").out)
    assert set(more["measures"]) == {"fine", "hedge", "known", "vocabulary", "weight-change", "text-loss"}
    again = ocr_eval("finetune", *run, "--measures", "weight-change,nothing")
    assert again.code == 2
    assert "Unknown measure 'nothing'" in again.err


def test_finished_runs_without_a_measure_say_so(ocr_eval, tiny, tmp_path, door):
    run = ["--model", tiny, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--seeds", "0", "--n", 2]
    assert ocr_eval("sweep", "--models", *run[1:], "--assocs", "city-language", "--measures", "none").code == 0
    again = ocr_eval("sweep", "-o", tmp_path, "--measures", "default,weight-change")
    assert again.code == 0
    assert "1 finished run lacks the measure 'weight-change'" in again.err
