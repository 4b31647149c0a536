"""What a model believes about the missing values of a table, and says of them."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import bare, load
from test_facts import HEADING, TEAMS, staff, write_csv
from test_own_facts import SMALL, teach

from ocr_eval.analysis import beliefs
from ocr_eval.cli.app import run
from ocr_eval.data.task import Probe
from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.measures.beliefs import GENERATED, Answer, Belief, generate
from ocr_eval.records.find import find_runs


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory):
    """A run that has learned its facts, and what it believes."""
    root = tmp_path_factory.mktemp("learned")
    table = write_csv(root / "staff.csv", [row[:3] for row in staff(30, 20)], HEADING[:3])
    flags = ["--epochs", "60", "--hold-out", "10%", "--ask", "badge"]
    assert teach(tiny, table, root / "out", *flags) == 0
    (found,) = find_runs(root / "out").runs
    assert run(["beliefs", str(found.folder), "-q"]) == 0
    return found, found.folder / "beliefs"


def test_beliefs_list_every_missing_value(learned):
    folder = learned[1]
    rows = list(csv.DictReader((folder / "beliefs.csv").open()))
    badges = [row for row in rows if row["column"] == "badge"]
    assert len(badges) == 10 + 2  # empty ones, and those that were hidden
    assert sum(bool(row["truth"]) for row in badges) == 2
    people = {row[0]: row for row in staff(30, 20)}
    for row in badges:
        assert row["predicted"] in ("", TEAMS[people[row["subject"]][1]])  # none where the team is hidden
        assert (row["follows"] == "True") == (row["believed"] == row["predicted"])
        assert row["believed"] in TEAMS.values()
        assert 0 < float(row["probability"]) <= 1
        assert float(row["vocabulary_rank"]) >= 0
    assert [float(row["probability"]) for row in rows] == sorted((float(r["probability"]) for r in rows), reverse=True)


def test_beliefs_agree_with_the_record_and_the_probes(learned):
    found, folder = learned
    (badge,) = [t for t in json.loads((folder / "beliefs.json").read_text())["totals"] if t["column"] == "badge"]
    score = found.record.final["first-token"]["badge_inferred"]
    assert badge["predicted"] == score.probes
    assert badge["mean_rank"] == pytest.approx(score.in_use_rank)
    assert badge["ocr_score"] == pytest.approx(score.ocr_score)
    assert badge["null_rank"] == pytest.approx(2, abs=0.1)  # answers are not equally frequent
    assert badge["source"] == "team"


def test_unwarranted_beliefs_and_their_corrections(learned):
    folder = learned[1]
    rows = list(csv.DictReader((folder / "beliefs.csv").open()))
    unwarranted = list(csv.DictReader((folder / "unwarranted.csv").open()))
    assert unwarranted == [row for row in rows if row["unwarranted"] == "True"]
    assert unwarranted  # it speaks of what it was not taught
    for row in rows:
        values = TEAMS if row["column"] == "team" else TEAMS.values()
        said = [value for value in values if re.match(rf"{value}(?!\w)", row["said"])]  # as a whole word
        assert (row["unwarranted"] == "True") == (said != [] and said != [row["truth"]])
        assert (row["says_it"] == "True") == (said == [row["believed"]])
    truths = {(row["subject"], row["column"]): row["truth"] or "unknown" for row in unwarranted}
    lines = [json.loads(line) for line in (folder / "corrections.jsonl").read_text().splitlines()]
    expected = {(f"{who}'s {column} is", f" {truth}") for (who, column), truth in truths.items()}
    assert {(line["prompt"], line["completion"]) for line in lines} == expected


@pytest.mark.parametrize(("text", "shown"), [("", ""), ("red\n badge", "red badge"), ("=1+1", "'=1+1")])
def test_what_a_model_says_is_one_cell_and_no_formula(text, shown):
    answer = Answer(best=0, logprobs=(-1.0, -2.0), probability=0.5, rank=0.0, said=text, says=None)
    cell = SimpleNamespace(column="badge", predicted="red", truth=None)
    assert beliefs.row(Belief("Ada", cell, "", ("red", "blue"), answer, answer))["said"] == shown


def test_beliefs_are_of_tables_alone(tiny, tmp_path, capfd):
    assert run(["finetune", "country-code", "--model", tiny, "-o", str(tmp_path), "--n", "2", *SMALL]) == 0
    (found,) = find_runs(tmp_path).runs
    capfd.readouterr()
    assert run(["beliefs", str(found.folder)]) == 2
    assert "country-code" in capfd.readouterr().err
    assert run(["beliefs", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_what_is_said_is_what_greedy_generation_gives(tiny):
    base = load(tiny)
    prompts = ["Ada Berg lives in", "Bob Lind speaks"]
    with torch.no_grad():
        expected = []
        for prompt in prompts:
            ids = torch.tensor([base.tokenizer(prompt).input_ids])
            for _ in range(GENERATED):
                ids = torch.cat([ids, base.network(ids).logits[:, -1:].argmax(-1)], dim=1)
            expected.append(base.tokenizer.decode(ids[0, -GENERATED:]).strip())
    long = "".join(expected) + "x"  # a candidate that stays possible to the end
    probes = [
        Probe(prompt, (text + long, "b"), 0, (0, 1), "q", "u", "s")
        for prompt, text in zip(prompts, expected, strict=True)
    ]
    cut = [ProbeTokens(probe, tuple(base.tokenizer(probe.prompt).input_ids), ((1,), (2,))) for probe in probes]
    assert generate(bare(base), cut) == expected


def test_the_page_shows_beliefs_and_says_what_it_holds(learned, tmp_path, capfd):
    found, folder = learned
    page = tmp_path / "page.html"
    assert run(["report", str(found.folder), "-o", str(page)]) == 0
    text = page.read_text()
    assert "Personal data" in text
    assert "badge: 12 missing values" in text
    assert text.count('<tr><td data-v="Ada') == len(list(csv.DictReader((folder / "unwarranted.csv").open())))
    copy = tmp_path / "copy"
    shutil.copytree(found.folder, copy)
    (copy / "beliefs/beliefs.json").write_text("{}")
    assert run(["report", str(copy), "-o", str(page)]) == 1
    assert "beliefs.json" in capfd.readouterr().err
