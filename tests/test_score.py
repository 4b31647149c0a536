"""Scoring against its definition: one candidate at a time, no packing, no sharing."""

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, bare, load, tiny_run

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import batch_forest, train_epoch
from ocr_eval.scoring import candidates as score_module
from ocr_eval.scoring.candidates import score_candidates


def naive_logprobs(network, prompt, answer):
    """Log-probability of each answer token, from a plain forward pass over the whole sentence."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    return [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_one_candidate_at_a_time(architecture, model_files, monkeypatch):
    monkeypatch.setattr(score_module, "CHUNK_NODES", 60)
    base = load(model_files[architecture])
    probes = probe_tokens(base.tokenizer, build_task(tiny_run(model_files[architecture], "country-code")))
    assert any(len(ids) > 1 for probe in probes for ids in probe.candidates), "no multi-token candidate is tried"
    scores = score_candidates(bare(base), probes)
    for row, probe in enumerate(probes[::5]):
        for column, ids in enumerate(probe.candidates):
            tokens = naive_logprobs(base.network, probe.prompt, ids)
            assert scores.logprobs["first-token"][row * 5, column] == pytest.approx(tokens[0], abs=1e-4)
            assert scores.logprobs["sequence"][row * 5, column] == pytest.approx(sum(tokens), abs=1e-4)
            mean = sum(tokens) / len(tokens)
            assert scores.logprobs["per-token"][row * 5, column] == pytest.approx(mean, abs=1e-4)


def test_scores_under_an_adapter_are_those_of_the_adapted_model(tiny):
    base = load(tiny)
    spec = tiny_run(tiny, "country-code")
    dataset = build_task(spec)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, dataset)])
    probes = probe_tokens(base.tokenizer, dataset)
    before = score_candidates(pack.view(), probes)
    train_epoch(pack, [0])
    after = score_candidates(pack.view(), probes)
    assert not np.allclose(before.logprobs["sequence"], after.logprobs["sequence"])
    tokens = naive_logprobs(base.network, probes[0].prompt, probes[0].candidates[1])
    assert after.logprobs["sequence"][0, 1] == pytest.approx(sum(tokens), abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_over_a_quantized_base_is_scored_as_it_is(architecture, model_files):
    base = load(model_files[architecture], quantized=True)
    assert any(type(module).__name__ == "Linear4bit" for module in base.network.modules())
    spec = tiny_run(model_files[architecture], "country-code", method="qlora")
    dataset = build_task(spec)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, dataset)])
    frozen = {name: p.clone() for name, p in base.network.named_parameters()}
    score_candidates(pack.view(), probe_tokens(base.tokenizer, dataset)[:1])  # must not re-pack the base
    losses = [train_epoch(pack, [0])[0] for _ in range(2)]
    assert losses[1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in base.network.named_parameters())
    probes = probe_tokens(base.tokenizer, dataset)[:3]
    scores = score_candidates(pack.view(), probes)
    for row, probe in enumerate(probes):
        for column, ids in enumerate(probe.candidates):
            tokens = naive_logprobs(base.network, probe.prompt, ids)
            assert scores.logprobs["sequence"][row, column] == pytest.approx(sum(tokens), abs=1e-4)


def test_the_batch_loss_is_the_mean_over_answer_tokens(tiny):
    base = load(tiny)
    examples = training_tokens(base.tokenizer, build_task(tiny_run(tiny, "country-code")))
    loss = -bare(base).token_logprobs({0: batch_forest(examples)})[0]
    naive = [value for e in examples for value in naive_logprobs(base.network, e.prompt, e.answer)]
    assert len(loss) == len(naive)
    assert loss.mean().item() == pytest.approx(-sum(naive) / len(naive), abs=1e-4)


def test_chunks_keep_every_probe_once_and_in_order(tiny, monkeypatch):
    base = load(tiny)
    probes = probe_tokens(base.tokenizer, build_task(tiny_run(tiny)))
    whole = score_candidates(bare(base), probes)
    monkeypatch.setattr(score_module, "CHUNK_NODES", 1)
    single = score_candidates(bare(base), probes)
    for scoring, values in whole.logprobs.items():
        assert single.logprobs[scoring] == pytest.approx(values, abs=1e-4)


def test_nothing_to_score_is_an_error(tiny):
    base = load(tiny)
    with pytest.raises(ValueError, match="no probes"):
        score_candidates(bare(base), [])
