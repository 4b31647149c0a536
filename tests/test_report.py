"""The report page: its content, what it does with bad input, and the server of a running sweep."""

import base64
import gzip
import html
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from made_records import HOSTILE, record
from test_cli_flags import planned

from ocr_eval import make_run
from ocr_eval.records.find import find_runs
from ocr_eval.records.metrics import MetricsLine, metrics_text
from ocr_eval.report.page import build_page
from ocr_eval.report.payload import run_payload
from ocr_eval.report.reproduce import command, missing_files
from ocr_eval.report.serve import Report, make_server
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import DataSpec

SCORING = "first-token"
REAL = Path(__file__).parent.parent / "results"


def write_run(folder: Path, made) -> Path:
    """A finished run as it lies on disk: a test fact and forty held-out entailments, before and after training."""
    folder.mkdir(parents=True)
    text = made.to_json().replace(json.dumps(made.run), json.dumps(str(folder)))
    (folder / "result.json").write_text(text)
    (folder / "status.json").write_text("{}")
    (folder / "config.yaml").write_text(f"model: {json.dumps(made.model)}\n")
    (folder / "env.json").write_text('{"python": "3"}')
    last = made.train.epochs
    scored = {"scores": made.final, "held_out": made.held_out}
    lines = [MetricsLine(epoch=e, **(scored if e in (0, last) else {})) for e in range(last + 1)]
    (folder / "metrics.jsonl").write_text(metrics_text(lines))
    prompts = [("test_fact", HOSTILE), *(("test_entailment", f"{HOSTILE} {i} speaks") for i in range(40))]
    probes = [
        {
            "epoch": epoch,
            "group": 0,
            "quantity": quantity,
            "prompt": prompt,
            "answer": "x",
            "candidates": ["x", HOSTILE, "z"],
            "in_use": 2,
            "logprobs": {"first-token": [-2.0, -1.0, -3.0]},
            "rank": {"first-token": rank},
            "null_rank": {"first-token": 0.5},
        }
        for epoch, rank in ((0, 2.0), (last, 1.0))
        for quantity, prompt in prompts
    ]
    write_lines(folder / "probes.jsonl", probes)
    return folder


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cut(path: Path) -> None:
    """Leave the first half of a file's lines."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))


@pytest.fixture
def runs(tmp_path):
    for i, (association, kind) in enumerate((("city-language", "causal"), ("country-code", "spurious"))):
        for seed in (0, 1):
            made = record(association, kind, seed=seed, rank=0.2 + i, model="m" if seed else "other")
            write_run(tmp_path / f"{association}-{seed}", made)
    return tmp_path


def opened(page: str) -> list[dict]:
    """What the page holds of each run."""
    packed = re.findall(r'class="data">([^<]+)</script>', page)
    return [json.loads(gzip.decompress(base64.b64decode(each))) for each in packed]


def test_the_page_holds_every_run_and_loads_nothing(ocr_eval, runs, tmp_path):
    answer = ocr_eval("report", runs, "-o", tmp_path / "out/report.html")
    assert answer.code == 0, answer.err
    page = (tmp_path / "out/report.html").read_text()
    assert len(opened(page)) == 4
    assert "4 runs of 2 models on 2 associations" in page
    one = build_page(find_runs(runs / "city-language-0"), "first-token")[0]
    assert "1 run of 1 model on 1 association;" in one
    assert "Finding:" in page
    assert "gemma-2-9b" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in html.unescape(page)
    first = opened(page)[0]
    assert first["command"].startswith("ocr-eval finetune --model ./m.yaml --assoc city-language --seed 1")
    assert first["curves"]["lines"][0]["points"] == [[0, 0.2], [16, 0.2]]
    assert first["probes"]["rows"][0]["logp"] == [-2000, -1000, -3000]
    assert (first["probes"]["rows"][0]["before"], first["probes"]["rows"][0]["rank"]) == (2.0, 1.0)
    assert len(first["probes"]["rows"]) == 41
    assert first["heat"]["p"][0][1] == pytest.approx(0.6652, abs=1e-4)


def test_runs_are_listed_by_model_and_association(ocr_eval, runs, tmp_path):
    write_run(tmp_path / "more", record(seed=5, model="m", run="more"))
    assert ocr_eval("report", runs, "-o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    groups = re.findall(r"<summary><h3>(.+?)</h3>\s*<span class=\"headline\">(.+?)</span>", page)
    assert groups[0] == ("m, city-language", "2 runs")
    assert len(groups) == 4
    assert "by ocr-eval report" in page.partition("<footer>")[2]


def test_the_page_opens_with_the_finding_its_models_and_a_figure(ocr_eval, runs, tmp_path):
    write_run(tmp_path / "control", record(model="m", run="control", data=DataSpec(variant="shuffled")))
    assert ocr_eval("report", runs, "-o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    opening = page.partition("</header>")[0]
    assert "Models: m, other." in opening
    assert "<strong>Finding:</strong> m (LoRA) and other (LoRA): " in opening
    order = [page.index(f'<section id="{name}"') for name in ("figures", "table", "rows", "runs")]
    assert order == sorted(order)
    assert page.index("<figure>") < page.index("<table")


def test_a_finding_of_many_settings_names_the_models_alone(tmp_path):
    for i in range(7):
        write_run(
            tmp_path / f"run-{i}", record(model="m" if i else "n", train=TrainSpec(lr=(i + 1) / 1000), run=f"run-{i}")
        )
    assert "<strong>Finding:</strong> m (6 settings) and n (LoRA): " in build_page(find_runs(tmp_path), SCORING)[0]
    for i in range(6):
        write_run(tmp_path / f"more-{i}", record(model=f"model-{i}", run=f"more-{i}"))
    page = build_page(find_runs(tmp_path), SCORING)[0]
    assert "model-2 (LoRA), model-3 (LoRA), model-4 (LoRA) and 2 more: " in page


def test_what_has_no_verdict_is_said_once(tmp_path):
    for association, kind in (("city-language", "causal"), ("country-code", "spurious")):
        for name, train in (("plain", TrainSpec()), ("other", TrainSpec(prevent=["product-decay"]))):
            write_run(tmp_path / f"{name}-{kind}", record(association, kind, train=train, run=f"{name}-{kind}"))
    page = build_page(find_runs(tmp_path), SCORING)[0]
    assert page.count("No verdict over") == 1
    assert "No verdict over true and arbitrary links: 1 seed is too few for a verdict; 6 are needed" in page


def test_what_was_measured_inside_has_a_section(ocr_eval, runs, tmp_path):
    """A figure for each measure that has its columns; what a user's file holds there instead is skipped."""
    assert 'id="inside"' not in build_page(find_runs(runs), "first-token")[0]
    lens = {"layer": [0, 1, 2], "test_fact_in_use_rank": [2, 1, 0], "test_entailment_in_use_rank": [2.0, 2.0, 0.1]}
    measures = {
        "logit-lens": {"test_fact_rank": 0.0, "layers": lens},
        "patching": {"layers": {"name_excess": [[1]], "prompt_excess": HOSTILE}},
        "sharing": {"layers": [HOSTILE]},
        "constant-direction": {"layers": {"cosine": [0.5, 0.1], "chance": [0.5]}},
    }
    write_run(tmp_path / "more", record(seed=5, model="m", run="more", measures=measures))
    assert ocr_eval("report", runs, "-o", tmp_path / "report.html").code == 0
    section = re.search(r'<section id="inside".*?</section>', (tmp_path / "report.html").read_text(), re.S)[0]
    assert section.count("<figure>") == 1
    assert "<strong>Where answers appear: m" in section
    drawing = base64.b64decode(re.search(r"base64,([^\"]+)", section)[1]).decode()
    assert "city-language (1 seed)" in drawing
    assert "<!-- layer -->" in drawing


def test_settings_of_a_model_stand_on_a_scorecard(ocr_eval, tmp_path):
    plain = record("country-code", "spurious", seed=0, measures={"known": {"kept": 0.25, "by": [1]}})
    write_run(tmp_path / "plain", plain)
    assert "Scorecard" not in build_page(find_runs(tmp_path), "first-token")[0]
    prevented = record("country-code", "spurious", rank=1.5, train=TrainSpec(prevent=["abstain"]))
    write_run(tmp_path / "prevented", prevented)
    assert ocr_eval("report", tmp_path, "-o", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    card = page.partition('<section id="scorecard"')[2].partition("</section>")[0]
    assert "No verdict over arbitrary links" in card
    assert ">smollm2-135m, LoRA + abstain k<" in card
    assert ">-0.50<" in card
    assert ">0.25<" in card
    assert card.count("<figure>") == 1


def test_the_page_is_the_same_every_time(ocr_eval, runs, tmp_path):
    pages = []
    for name in ("one.html", "two.html"):
        assert ocr_eval("report", runs, "-o", tmp_path / name).code == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_markup_in_names_stays_text(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "run", record(model=evil, association=evil))
    page, complaints = build_page(find_runs(tmp_path), "first-token")
    assert not complaints
    assert "<img src=x" not in page
    assert page.count("</script>") == 2


@pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("probes.jsonl", lambda path: path.write_text('{"epoch": 1'), "probes"),
        ("probes.jsonl", cut, "probes"),
        ("metrics.jsonl", lambda path: path.write_text('{"epochs": 1}\n'), "curves"),
        ("metrics.jsonl", cut, "curves"),
        ("metrics.jsonl", Path.unlink, "curves"),
        ("metrics.jsonl", lambda path: os.truncate(pack(path), 60), "curves"),
        ("probes.jsonl", lambda path: pack(path).write_bytes(b"no gzip"), "probes"),
        ("config.yaml", Path.unlink, "config"),
        ("env.json", lambda path: path.write_bytes(b"\xff"), "environment"),
    ],
)
def test_a_damaged_file_leaves_out_its_part_alone(tmp_path, name, damage, part):
    write_run(tmp_path / "run", record())
    (run,) = find_runs(tmp_path).runs
    assert run_payload(run, "first-token")[1] == []
    damage(tmp_path / "run" / name)
    content, complaints = run_payload(run, "first-token")
    assert [each for each in ("probes", "curves", "config", "environment") if content[each] is None] == [part]
    assert [f"run/{name}" in str(complaint) for complaint in complaints] == [True]


def test_a_run_that_is_kept_without_probes_is_shown_without_them(ocr_eval, runs, tmp_path):
    for path in runs.glob("*/probes.jsonl"):
        path.unlink()
    answer = ocr_eval("report", runs, "-o", tmp_path / "report.html")
    assert (answer.code, answer.err) == (0, "")
    assert [title for title in titles((tmp_path / "report.html").read_text()) if title.startswith("Heatmap")] == []
    (run, *_) = find_runs(runs).runs
    content, complaints = run_payload(run, "first-token")
    assert (content["probes"], content["heat"], complaints) == (None, None, [])


def test_packed_files_are_read_as_before(tmp_path):
    write_run(tmp_path / "run", record())
    (run,) = find_runs(tmp_path).runs
    before = run_payload(run, "first-token")
    for name in ("config.yaml", "result.json", "metrics.jsonl", "probes.jsonl"):
        pack(tmp_path / "run" / name)
    (again,) = find_runs(tmp_path).runs
    assert again.record.to_json() == run.record.to_json()
    assert run_payload(again, "first-token") == before
    assert before[0]["config"]
    os.truncate(tmp_path / "run/result.json.gz", 60)
    (complaint,) = find_runs(tmp_path).complaints
    assert "run/result.json" in str(complaint)


def test_a_damaged_file_is_named_and_the_rest_is_shown(ocr_eval, runs, tmp_path):
    cut(runs / "city-language-1/metrics.jsonl")
    cut(runs / "city-language-1/probes.jsonl")
    (runs / "country-code-0/result.json").write_text("{")
    answer = ocr_eval("report", runs, "-o", tmp_path / "report.html")
    assert answer.code == 1
    page = (tmp_path / "report.html").read_text()
    for name in ("city-language-1/metrics.jsonl", "city-language-1/probes.jsonl", "country-code-0/result.json"):
        assert name in answer.err
        assert name in page
    assert answer.err.count("Skipped.") == 3
    assert len(opened(page)) == 3
    of_rows = [title for title in titles(page) if title.startswith(("Curves", "Heatmap"))]
    assert of_rows == ["Curves: m, LoRA", "Heatmap: m, LoRA", "Curves: other, LoRA", "Heatmap: other, LoRA"]


def test_the_folder_of_runs_is_where_the_variable_says_runs_are_written(ocr_eval, runs):
    answer = ocr_eval("table", "--short", OCR_EVAL_OUTPUT_DIR=str(runs))
    assert answer.code == 0
    assert answer.out == ocr_eval("table", "--short", runs, OCR_EVAL_OUTPUT_DIR="elsewhere").out


def test_figures_are_written_where_o_says(ocr_eval, runs, tmp_path):
    answer = ocr_eval("figures", runs / "city-language-1", "-o", tmp_path / "drawn")
    assert answer.code == 0, answer.err
    assert {Path(line).parent for line in answer.out.split()} == {tmp_path / "drawn"}


def pack(path: Path) -> Path:
    subprocess.run(["gzip", path], check=True)
    return path.with_name(f"{path.name}.gz")


def titles(page: str) -> list[str]:
    """The titles of the page's pictures."""
    return re.findall(r"<figcaption><strong>(.+?)\.</strong>", page)


def test_the_page_says_when_it_does_not_show_all_figures(tmp_path):
    says = "Only the first 12 curves", "Only the first 12 figures are shown; for the other 2, "
    layers = {"frobenius": [1.0, 2.0], "cosine": [0.5, 0.1], "chance": [0.1, 0.1]}
    measures = {name: {"layers": layers} for name in ("weight-change", "constant-direction")}
    for i in range(6):
        write_run(tmp_path / f"run-{i}", record(model=f"model-{i}", measures=measures))
    page = build_page(find_runs(tmp_path), "first-token")[0]
    assert "Only the first" not in page
    write_run(tmp_path / "run-6", record(model="model-6", measures=measures))
    page = build_page(find_runs(tmp_path), "first-token")[0]
    assert [each in page for each in says] == [True, True]
    assert sum(title.startswith("Where the weights change") for title in titles(page)) == 6
    assert "Curves: model-5, LoRA" in titles(page)
    assert "Curves: model-6, LoRA" not in titles(page)


def test_no_runs_and_no_folder(ocr_eval, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, says in (("empty", "No finished run"), ("nowhere", "There is no folder")):
        answer = ocr_eval("report", tmp_path / folder, "-o", tmp_path / "report.html")
        assert answer.code == 2
        assert says in answer.err
    assert not (tmp_path / "report.html").exists()
    assert "is a folder" in ocr_eval("report", tmp_path / "empty", "-o", tmp_path).err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_command_of_a_run_makes_the_run(ocr_eval, method):
    """Its name is the same, whatever its settings."""
    data = {"n": 4, "m_train": 2, "m_test": 3, "candidates": "all", "templates": (0, 2), "probe_template": 1}
    train = {"method": method, "lr": 1.2345678e-4, "epochs": 3, "batch_size": 7, "max_grad_norm": 0.3, "beta1": 0.8}
    train |= {"beta2": 0.95, "weight_decay": 0.01, "schedule": "cosine", "warmup": 0.1}
    if method == "lora":
        train |= {"rank": 5, "alpha": 9.0, "targets": ["q_proj", "v_proj"]}
    spec = make_run(
        "smollm2-135m", "city-language", seed=3, variant="shuffled", dtype="float32", attention="eager", **data, **train
    )
    made = record(data=spec.data, train=spec.train, seed=3, dtype="float32", attention="eager")
    words = shlex.split(command(made))
    assert words[:2] == ["ocr-eval", "finetune"]
    assert planned(ocr_eval(*words[1:], "--dry-run")).fingerprint("w") == spec.fingerprint("w")
    assert missing_files(made) == ""
    own = record("river-tea", "spurious", model="mine")
    assert "./mine.yaml" in command(own)
    assert "./river-tea.yaml (the section 'association'" in missing_files(own)
    assert "'--model'" not in command(own)


def ask(port: int, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.fixture
def served(runs):
    server = make_server(Report([runs], "first-token"), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield runs, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_server_shows_what_has_finished_and_what_goes_on(served, ocr_eval, tiny):
    runs, port = served
    assert ask(port, "/nowhere")[0] == 404
    before, page = ask(port, "/state")[1], ask(port)[1]
    assert f'data-token="{before}"' in page
    assert page.count('<details class="run"') == 4
    run = ["--model", tiny, "--assoc", "sport-music", "--n", 3, "--m-test", 2, "-o", runs, "--epochs", 2, "--quiet"]
    assert ocr_eval("finetune", *run).code == 0
    (folder,) = (runs / "runs").glob("*/*/*/*")
    assert ask(port, "/state")[1] != before
    assert ask(port)[1].count('<details class="run"') == 5
    (folder / "status.json").unlink()
    page = ask(port)[1]
    assert page.count('<details class="run"') == 4
    assert "tiny-llama, sport-music, LoRA, seed 0" in page
    assert "epoch 2 of 2" in page
    shutil.rmtree(folder)
    assert ask(port, "/state")[1] == before


def test_the_server_answers_only_to_its_own_name(served):
    _, port = served
    assert ask(port, host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1"):
        status, text = ask(port, host=host)
        assert status == 403
        assert "finding" not in text.lower()


def test_a_taken_port_is_an_error(served, ocr_eval):
    runs, port = served
    answer = ocr_eval("report", runs, "--serve", "--port", port)
    assert answer.code == 2
    assert "--port" in answer.err


def test_many_slow_clients_hold_neither_the_server_nor_its_threads(served):
    _, port = served
    before = threading.active_count()
    clients = []
    for _ in range(300):
        clients.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: ")  # and nothing more
    assert ask(port, "/state")[0] == 200
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 65 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 65
    for client in clients:
        client.close()


def test_a_client_that_leaves_is_nobodys_error(served, capfd):
    _, port = served
    for request in (b"", b"GET / HT", f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()):
        client = socket.create_connection(("127.0.0.1", port), timeout=10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
        client.sendall(request)
        client.close()
    assert ask(port, "/state")[0] == 200
    assert "Traceback" not in capfd.readouterr().err
