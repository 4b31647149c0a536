"""A served model: the ranks that the same weights have here, faults of servers, resuming, and what is never written."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import tiny_run
from msgspec.structs import asdict
from served_stand_in import Served, cut, failing, serving

import ocr_eval as api
from ocr_eval.cli.app import run
from ocr_eval.data.task import build_task
from ocr_eval.execution.execute import answers, open_view
from ocr_eval.records.record import read_record
from ocr_eval.report.reproduce import command
from ocr_eval.scoring import served as module
from ocr_eval.scoring.ranks import midranks

SIZE = ("--n", "3", "--m-train", "2", "--m-test", "3")
KEY = "sk-a-secret-of-tests"
#: Requests by which the way of asking is chosen.
CHOOSING = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert run(["data", "export", "country-code", "-o", str(folder), *SIZE]) == 0
    return folder


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for name in module.KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(model_files):
    with serving(Served(model_files["llama"].with_suffix(""))) as served:
        yield served


@pytest.fixture
def score(ocr_eval, exported, server):
    def call(*more, model="my-model", **environment):
        words = ("--data", exported, "--endpoint", server.url, "--model", model)
        return ocr_eval("score", *words, *more, **environment)

    return call


def here(tiny):
    return api.score_run(tiny_run(tiny, "country-code"), device="cpu")


def one_line(answer, *said, code=2):
    assert (answer.code, answer.out) == (code, ""), answer.err
    lines = [line for line in answer.err.strip().splitlines() if "trying again" not in line and "requests" not in line]
    assert len(lines) == 1, answer.err
    for part in said:
        assert part in lines[0]
    assert KEY not in answer.err


def only_record(folder):
    (path,) = folder.glob("runs/*/*/external/*/result.json")
    return path.parent, read_record(path)


@pytest.mark.parametrize("kind", ["vllm", "offsets"])
@pytest.mark.parametrize("per_request", [1, 7])
def test_its_scores_are_those_of_the_same_weights_here(score, server, tiny, kind, per_request):
    server.kind = kind
    answer = score("--json", "--quiet", "--per-request", per_request)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    for scoring, by_quantity in here(tiny).items():
        for quantity, expected in by_quantity.items():
            assert found[scoring][quantity] == pytest.approx(asdict(expected), abs=1e-4), (scoring, quantity)
    assert max(len(body["prompt"]) for body in server.bodies) == per_request


def test_its_record_is_read_by_every_command(score, ocr_eval, server, tiny, tmp_path):
    answer = score("--name", "served", "-o", tmp_path / "out", "--quiet")
    assert answer.code == 0, answer.err
    folder, record = only_record(tmp_path / "out")
    assert (record.model, record.train.method, record.dtype) == ("my-model", "external:served", "unknown")
    assert (record.base, record.base_identity, record.adapter_sha256, record.inexact) == ({}, "", "", 0)
    expected = here(tiny)["sequence"]["test_entailment"]
    assert record.final["sequence"]["test_entailment"].mean_rank == expected.mean_rank
    assert not (folder / "answers.jsonl").exists()
    for words in (("table",), ("figures", "--text"), ("scorecard",), ("report", "-o", tmp_path / "report.html")):
        assert ocr_eval(words[0], tmp_path / "out", *words[1:]).code == 0, words
    assert ocr_eval("compare", tmp_path / "out", tmp_path / "out").code == 0
    assert "--endpoint SERVER --model SERVED --name served" in command(record)
    asked = len(server.bodies)
    assert score("--name", "served", "-o", tmp_path / "out").code == 0
    assert len(server.bodies) == asked, "what is there is read"


@pytest.mark.parametrize(("kind", "most"), [("top", 20), ("openai", 5)])
def test_the_most_probable_tokens_alone_give_bounds(score, ocr_eval, server, tiny, tmp_path, kind, most):
    server.kind = kind
    answer = score("--name", "top", "-o", tmp_path / "out", "--quiet")
    assert answer.code == 0
    assert f"only the {most} most probable" in answer.err
    folder, record = only_record(tmp_path / "out")
    assert list(record.final) == ["first-token"]
    assert 0 < record.inexact <= 9
    lines = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    truth = ranks_here(tiny)
    seen = 0
    for line in lines:
        logprobs, rank = np.array(line["logprobs"]["first-token"]), truth[line["prompt"]]
        exact, beyond = np.array(line["exact"]), logprobs == logprobs.min()
        assert (midranks(logprobs[None])[0] == rank)[exact].all()
        if exact.any() and not exact.all():
            assert (beyond == ~exact).all()
            assert (rank[beyond] >= (~beyond).sum()).all(), (
                "the rank of those beyond is at least the number of the others"
            )
        seen += exact.sum()
    assert seen or most == 5, "the best five of a random model are no answers"
    asked = [line for line in lines if line["quantity"] == "test_entailment"]
    assert sum(not all(line["exact"][: line["in_use"]]) for line in asked) == record.inexact
    for words in (("figures", "--text"), ("scorecard",), ("report", "-o", tmp_path / "report.html")):
        assert ocr_eval(words[0], tmp_path / "out", *words[1:]).code == 0, words
    table = ocr_eval("table", tmp_path / "out")
    assert " ?" in table.out
    assert "? ranks are not exact" in table.out
    cells = json.loads(ocr_eval("table", tmp_path / "out", "--format", "json", "--no-published").out)["cells"]
    assert [cell["exact"] for cell in cells] == [False]
    answer = ocr_eval("table", tmp_path / "out", "--scoring", "sequence")
    assert (answer.code, answer.out) == (2, "")
    assert "no scores of sequence" in answer.err


def test_an_echo_that_is_one_token_late_is_not_believed(score, server, tiny):
    server.kind = "late"
    answer = score("--json", "--quiet")
    assert answer.code == 0, answer.err
    assert "echoes log-probabilities that differ from its own" in answer.err
    assert "only the 20 most probable" in answer.err
    assert list(json.loads(answer.out)) == ["first-token"]


def ranks_here(tiny):
    """Ranks of the candidates of each prompt by the local scorer, first-token."""
    spec = tiny_run(tiny, "country-code")
    task = build_task(spec)
    logprobs = answers(open_view(spec, None, "cpu"), spec, task).logprobs["first-token"]
    return {probe.prompt: midranks(row[None])[0] for probe, row in zip(task.probes, logprobs, strict=True)}


def test_cost_is_shown_before_and_nothing_is_asked_for_it(score, server):
    answer = score("--dry-run")
    assert answer.code == 0
    assert "330 texts in 21 requests" in answer.out
    assert json.loads(score("--dry-run", "--json", "--per-request", 330).out)["requests"] == 1
    assert server.bodies == []
    answer = score("--json")
    assert f"330 texts in {len(server.bodies) - CHOOSING} requests, about " in answer.err


@pytest.mark.parametrize(
    "fault",
    [
        failing(429, Retry_After="0"),
        failing(500),
        failing(503, b"<html>busy</html>"),
        cut,
        failing(200, b"not JSON"),
        failing(200, {"model": "my-model", "choices": []}),
    ],
    ids=["429", "500", "503", "cut", "no JSON", "too few"],
)
def test_a_passing_fault_changes_nothing(score, server, fault):
    expected = score("--json", "--quiet").out
    server.bodies.clear()

    def later(handler):
        handler.send(200, server.answer(server.bodies[-1]))
        server.faults += [fault, fault]

    server.faults = [later]
    answer = score("--json")
    assert (answer.code, answer.out) == (0, expected)
    assert answer.err.count("trying again") == 2


def test_a_server_that_keeps_failing_is_resumed_where_it_failed(score, server, tmp_path):
    whole = score("--json", "--quiet")
    words = ("--name", "served", "-o", tmp_path / "out", "--quiet", "--per-request", 50)

    def later(handler):
        handler.send(200, server.answer(server.bodies[-1]))

    server.faults = [*[later] * (CHOOSING + 2), *[failing(500)] * 99]
    one_line(score(*words), "500", "100 of 330 answers are kept", code=1)
    (kept,) = (tmp_path / "out").rglob("answers.jsonl")
    assert not list((tmp_path / "out").rglob("status.json"))
    with kept.open("a") as file:  # a process that was killed while it wrote
        file.write('{"way": {"echo": tr')
    server.faults, before = [], len(server.bodies)
    assert score(*words).code == 0
    sent = [text for body in server.bodies[before + CHOOSING :] for text in body["prompt"]]
    assert len(sent) == len(set(sent)) == 230
    assert json.loads(whole.out) == {
        scoring: {name: asdict(each) for name, each in of.items()}
        for scoring, of in only_record(tmp_path / "out")[1].final.items()
    }


def test_a_killed_scoring_asks_for_nothing_twice(score, server, exported, tmp_path):
    def slow(handler):
        time.sleep(0.2)
        handler.send(200, server.answer(server.bodies[-1]))

    server.faults = [slow] * 99
    words = ["score", "--data", exported, "--endpoint", server.url, "--model", "my-model", "--name", "killed"]
    words += ["-o", tmp_path / "out", "--per-request", 10]
    process = subprocess.Popen([sys.executable, "-m", "ocr_eval", *map(str, words)], stderr=subprocess.DEVNULL)
    while len(server.bodies) < CHOOSING + 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    server.faults, before = [], len(server.bodies)
    assert score("--name", "killed", "-o", tmp_path / "out", "--per-request", 10).code == 0
    answered = [text for body in server.bodies[CHOOSING : before - 1] for text in body["prompt"]]
    again = [text for body in server.bodies[before + CHOOSING :] for text in body["prompt"]]
    assert len(answered) >= 40
    assert not set(answered) & set(again)
    assert only_record(tmp_path / "out")[1].inexact == 0


def without_logprobs(answer):
    return answer | {"choices": [{**choice, "logprobs": None} for choice in answer["choices"]]}


def not_numbers(answer):
    for choice in answer["choices"]:
        choice["logprobs"]["token_logprobs"] = [math.nan] * 99
        choice["logprobs"]["top_logprobs"] = None
    return answer


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_logprobs, "no log-probabilities"),
        (not_numbers, "no log-probabilities"),
        (lambda answer: answer | {"model": "another"}, "answers as 'another', not as --model my-model"),
        (lambda answer: b"<html>welcome</html>", "Check --endpoint"),
        (lambda answer: [answer], "Check --endpoint"),
        (lambda answer: {"object": "list"}, "Check --endpoint"),
    ],
    ids=["missing", "NaN", "another", "HTML", "list", "shape"],
)
def test_a_server_that_cannot_be_used_is_one_line_and_leaves_nothing(score, server, tmp_path, spoil, said):
    server.spoil = spoil
    one_line(score("--name", "served", "-o", tmp_path / "out"), said)
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "OCR_EVAL_API_KEY"), (403, "OCR_EVAL_API_KEY"), (404, "/v1"), (307, "/v1"), (400, "no log-probabilities")],
)
def test_a_refusal_is_one_line_without_the_key(score, server, tmp_path, status, said):
    server.faults = [failing(status, {"error": {"message": f"refused to {KEY}"}}, Location="http://127.0.0.1:9/")] * 9
    answer = score("--name", "served", "-o", tmp_path / "out", OPENAI_API_KEY=KEY)
    one_line(answer, said)


def test_a_model_that_it_does_not_have_is_one_line(score):
    one_line(score(model="other"), "other", "404")


def test_the_key_goes_to_the_server_and_nowhere_else(score, server, tmp_path):
    server.faults = [failing(500, {"error": {"message": f"broken for {KEY}"}})]
    answer = score("--name", "served", "-o", tmp_path / "out", OPENAI_API_KEY="other", OCR_EVAL_API_KEY=KEY)
    assert answer.code == 0
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in answer.out + answer.err
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_not_shown(score, server, key):
    answer = score(OPENAI_API_KEY=key)
    one_line(answer, "OPENAI_API_KEY")
    assert key.split()[0] not in answer.err
    assert server.bodies == []


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a/v1", f"http://user:{KEY}@a/v1", f"http://a/v1?key={KEY}", "host", ""),
        *("http://a:99999/v1", "http://[:::::]:80/v1"),
    ],
)
def test_an_address_is_an_address_alone(ocr_eval, exported, url):
    one_line(ocr_eval("score", "--data", exported, "--endpoint", url, "--model", "m"), "--endpoint")


def test_flags_that_a_server_makes_meaningless_are_refused(score, ocr_eval, exported, server, tmp_path):
    one_line(score("--adapter", tmp_path), "--adapter")
    one_line(score("--method", "qlora"), "--method")
    one_line(ocr_eval("score", "--data", exported, "--endpoint", server.url), "--model")
    nobody = ("--endpoint", "http://127.0.0.1:9/v1", "--model", "m")
    one_line(ocr_eval("score", "--data", exported, *nobody), "127.0.0.1:9")
    assert server.bodies == []


def test_an_untouched_served_model_is_asked_about_an_association(ocr_eval, server, tiny):
    words = ("score", "--assoc", "country-code", *SIZE, "--quiet", "--json")
    found = json.loads(ocr_eval(*words, "--endpoint", server.url, "--model", "my-model").out)
    expected = here(tiny)["first-token"]["test_entailment"].mean_rank
    assert found["first-token"]["test_entailment"]["mean_rank"] == expected


def test_candidates_that_begin_alike_are_refused_as_they_are_here(ocr_eval, server, tmp_path):
    (tmp_path / "teas.yaml").write_text(
        "name: river-tea\nkind: spurious\ndescription: x\n"
        "fact: {templates: ['{name} lives by the {answer}']}\nentailment: {templates: ['{name} drinks {answer}']}\n"
        "pairs: {Nile: Zzqa, Oder: Zzqb, Elbe: mint}\n"
    )
    words = ("--n", 3, "--m-train", 1, "--m-test", 1, "--candidates", "in-use", "--quiet")
    answer = ocr_eval(
        "score", "--assoc", tmp_path / "teas.yaml", *words, "--endpoint", server.url, "--model", "my-model"
    )
    one_line(answer, "begin with the same token", "Zzqb")
