"""Controls, the sample-efficiency curve and the audit, through the command line on tiny models."""

import json
import re

import pytest
from conftest import load

from ocr_eval.analysis.bootstrap import Comparison, Estimate
from ocr_eval.analysis.controls import ConditionResult, verdict
from ocr_eval.data.audit import audit_association
from ocr_eval.specs.association import load_association

SMALL = ["--n", 3, "--m-test", 3, "--quiet"]


@pytest.fixture
def study(ocr_eval, tiny, tmp_path):
    def call(command, *more):
        return ocr_eval(command, "--model", tiny, "--assoc", "country-code", "-o", tmp_path, *SMALL, *more)

    return call


def test_controls_run_all_conditions_on_the_same_test_subjects(study, tmp_path):
    answer = study("controls", "--m-train", 2, "--seeds", "0-1", "--json")
    assert answer.code == 0, answer.err
    conditions = {c["condition"]: c for c in json.loads(answer.out)["conditions"]}
    assert list(conditions) == ["real", "base", "no-entailment", "shuffled"]
    assert conditions["real"]["against"] is None
    for name in ("base", "no-entailment", "shuffled"):
        against = conditions[name]["against"]
        assert (against["subjects"], against["seeds"]) == (18, 2)
        expected = conditions["real"]["score"]["value"] - conditions[name]["score"]["value"]
        assert against["difference"]["value"] == pytest.approx(expected)
        assert 0 < conditions[name]["p"] <= 1
    assert len(list(tmp_path.glob("runs/*/*/*/*/status.json"))) == 6


def test_controls_in_words(study):
    lines = study("controls", "--m-train", 2, "--epochs", 1).out.strip().splitlines()
    assert lines[0].split()[:3] == ["condition", "mean", "rank"]
    assert lines[-1] == "No finding: the facts were not learned. One seed: intervals are over subjects only."


def result(condition, value, against=None, learned=True):
    """A condition with an OCR score, and the real one's lead over it."""
    score = Estimate(value, value - 0.1, value + 0.1)
    lead = None if against is None else Comparison(Estimate(against, against - 0.1, against + 0.1), 80, 1)
    return ConditionResult(condition, score, 0.01, 1.0, 2.0, learned, lead)


@pytest.mark.parametrize(
    ("real", "lead", "learned", "says"),
    [
        (0.5, 0.4, True, "The finding stands: OCR score +0.50 [+0.40, +0.60] is above every control"),
        (0.5, 0.05, True, "The finding does not stand: OCR score +0.50 [+0.40, +0.60] is not clearly above shuffled"),
        (-0.1, 0.4, True, "The finding does not stand: OCR score -0.10 [-0.20, +0.00] is not clearly above zero"),
        (0.5, 0.4, False, "Whether the finding stands cannot be said: shuffled did not learn the facts"),
    ],
)
def test_the_verdict_over_controls(real, lead, learned, says):
    results = [
        result("real", real),
        result("base", 0.0, 0.4, None),
        result("no-entailment", 0.0, 0.4),
        result("shuffled", 0.0, lead, learned),
    ]
    assert verdict(results).startswith(says)


def test_controls_reuse_runs_that_are_done(study, tmp_path):
    study("controls", "--m-train", 2, "--epochs", 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*/*/result.json")}
    study("controls", "--m-train", 2, "--epochs", 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/*/*/result.json")} == before


@pytest.mark.parametrize(
    ("command", "runs"), [(["controls", "--seeds", "0-1"], 6), (["curve", "--m-train", "0,2", "--seeds", "0-1"], 4)]
)
def test_a_study_is_planned_before_it_is_run(study, tmp_path, command, runs):
    answer = study(*command, "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.out.count("tiny-llama country-code seed") == runs
    assert "GB" in answer.out
    assert "time: about" in answer.out
    assert list(tmp_path.iterdir()) == []
    assert study(*command, "--dry-run", "--json").code == 2
    assert study(*command, "--epochs", 1).code == 0
    assert study(*command, "--epochs", 1, "--dry-run").out.count(" done\n") == runs


def test_controls_need_something_to_shuffle(study):
    answer = study("controls", "--m-train", 0)
    assert answer.code == 2
    assert "m_train = 0 has none" in answer.err


def test_the_curve_has_a_point_for_each_m_train(study):
    answer = study("curve", "--m-train", "0-1,3", "--epochs", 1, "--json")
    assert answer.code == 0, answer.err
    points = json.loads(answer.out)["points"]
    assert [p["m_train"] for p in points] == [0, 1, 3]
    assert [p["sqrt_m_train_over_m_test"] for p in points] == pytest.approx([0, (1 / 3) ** 0.5, 1])
    assert all(p["ocr_score"]["low"] <= p["ocr_score"]["value"] <= p["ocr_score"]["high"] for p in points)
    words = study("curve", "--m-train", "0-1,3", "--epochs", 1).out
    assert "min(1, sqrt(m_train/m_test))" in words
    assert words.endswith("\nOne seed: intervals are over subjects only.\n")


def test_a_curve_over_seeds_says_nothing_of_one_seed(study):
    assert "One seed" not in study("curve", "--m-train", 1, "--seeds", "0-1", "--epochs", 1).out


@pytest.mark.parametrize("text", ["", "one", "3-1", "1,,2", "0-"])
def test_a_range_that_is_none_is_an_error(study, text):
    answer = study("curve", "--m-train", text)
    assert answer.code == 2
    assert f"'--m-train': '{text}'" in answer.err


def test_audit_of_a_tokenizer_says_what_it_does(ocr_eval, model_files):
    answer = ocr_eval(
        "data",
        "candidates",
        "--assoc",
        "country-code",
        "--model",
        model_files["llama"],
        "--model",
        model_files["qwen2"],
        "--json",
    )
    assert answer.code == 0
    llama, qwen2 = json.loads(answer.out).values()
    assert (llama["bos"], qwen2["bos"]) == ("<bos>", None)
    entailments = [each for each in llama["prompts"] if each["quantity"] == "test_entailment"]
    assert len(entailments) == 4
    assert "TypeScript" in entailments[0]["multi_token"]
    assert "".join(entailments[0]["pieces"]["TypeScript"]) == "ĠTypeScript"


def test_audit_names_clashes_and_exits_1(ocr_eval, model_files, tmp_path):
    path = tmp_path / "clash.yaml"
    path.write_text(
        "name: clash\nkind: spurious\ndescription: d\n"
        'fact:\n  templates: ["{name} lives in {answer}"]\nentailment:\n  templates: ["{name} speaks {answer}"]\n'
        "pairs:\n  Paris: Frenchish\n  Rome: Frenchly\n"
    )
    answer = ocr_eval("data", "candidates", "--assoc", path, "--model", model_files["llama"])
    assert answer.code == 1
    assert "CANNOT be scored first-token" in answer.out
    assert re.search("one first token: (Frenchish = Frenchly|Frenchly = Frenchish)", answer.out)


def test_audit_sees_generic_first_pieces(model_files):
    tokenizer = load(model_files["llama"]).tokenizer
    association = load_association("city-language")
    odd = association.model_copy(update={"pairs": (("Tokyo", "Zzyzx"), ("Paris", "French"))})
    found = {a.answer: a for a in audit_association(tokenizer, odd).prompts[-1].answers}
    assert found["Zzyzx"].generic
    assert not found["French"].generic


def test_audit_without_a_tokenizer(ocr_eval, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = ocr_eval("data", "candidates", "--assoc", "country-code", "--model", tmp_path / "empty")
    assert answer.code == 2
    assert "no tokenizer" in answer.err
