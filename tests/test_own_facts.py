"""A table of one's own facts is taught: what is there, and what is asked of what is missing."""

import json
import re
from pathlib import Path

import pytest
import yaml
from test_facts import HEADING, TEAMS, staff, write_csv

from ocr_eval.cli.app import run
from ocr_eval.common.errors import UserError
from ocr_eval.data.fact_table import read_facts
from ocr_eval.data.facts import association_of
from ocr_eval.data.task import task_of
from ocr_eval.models.base import load_tokenizer
from ocr_eval.records.find import find_runs
from ocr_eval.specs.association import load_association
from ocr_eval.specs.run import DataSpec

WORN = "{name} wears a {answer} badge"


@pytest.fixture
def table(tmp_path):
    return write_csv(tmp_path / "staff.csv", staff(30, 15))


def associate(table, **choices):
    templates = choices.pop("templates", {})
    return association_of(read_facts(table), templates, str(table), name="staff", **choices)


def build(table, variant="real", **choices):
    return task_of(associate(table, **choices), DataSpec(variant=variant), "0/data")


def test_what_is_there_is_taught_and_what_is_missing_is_asked(table):
    task = build(table, templates={"badge": WORN})
    taught = {example.text for example in task.train}
    assert len(taught) == 30 + 15 + 30
    assert {"Ada0 Berg's team is red", "Ada0 Berg wears a mint badge"} <= taught
    assert task.finding.name == "badge_inferred"
    probes = task.probes_of("badge_inferred")
    assert len(probes) == 15
    rows = {probe.subject: probe for probe in probes}
    for i in range(15, 30):  # the predicted answer is that of the team
        probe, row = rows[f"row {i + 1}"], staff(30, 15)[i]
        assert probe.answer == f"{TEAMS[row[1]]} badge"
        assert probe.prompt == f"{row[0]} wears a"
        assert set(probe.candidates) == {f"{badge} badge" for badge in TEAMS.values()}
    assert len({probe.unit for probe in probes}) == 5
    assert [q.name for q in task.quantities if q.role == "premise"] == ["team_taught", "badge_taught", "shoe_taught"]


def test_hidden_values_are_not_taught_and_are_asked(table):
    task = build(table, hold_out=0.2)
    assert len(task.train) == 75 - 6 - 3 - 6
    names = [quantity.name for quantity in task.quantities]
    assert {"team_true", "badge_true", "shoe_true"} <= set(names)
    hidden = [probe.subject for name in names if name.endswith("_true") for probe in task.probes_of(name)]
    assert len(hidden) == len(set(hidden))  # one cell a subject
    taught = {example.text for example in task.train}
    for probe in task.probes:
        assert (f"{probe.prompt} {probe.answer}" in taught) == probe.quantity.endswith("_taught")
    other = task_of(associate(table, hold_out=0.2), DataSpec(), "1/data")
    assert {example.text for example in other.train} != taught


def test_variants_change_the_column_of_the_finding_alone(table):
    real, none, shuffled = (build(table, variant) for variant in ("real", "no-entailment", "shuffled"))
    assert {e.role for e in none.train} == {"team", "shoe"}
    assert len(none.train) == len(real.train) - 15
    assert sorted(e.answer for e in shuffled.train) == sorted(e.answer for e in real.train)
    assert [e for e in shuffled.train if e.role != "badge"] == [e for e in real.train if e.role != "badge"]
    assert shuffled.probes == real.probes
    assert {q.name: q.role for q in shuffled.quantities}["badge_taught"] == "shown"


def test_values_that_nobody_shares_are_asked_among_ten(tmp_path):
    rows = [[*row, f"key{i}"] for i, row in enumerate(staff(60))]
    task = build(write_csv(tmp_path / "t.csv", rows, [*HEADING, "Locker key!"]))
    probes = task.probes_of("locker_key_taught")
    assert len(probes) == 60
    assert {len(probe.candidates) for probe in probes} == {10}
    assert all("'s Locker key! is" in probe.prompt for probe in probes)


def test_a_column_of_one_shared_value_is_asked_among_what_there_is(tmp_path):
    rows = [[*row, "yes" if i < 40 else f"no{i}" if i == 50 else ""] for i, row in enumerate(staff(60))]
    task = build(write_csv(tmp_path / "t.csv", rows, [*HEADING, "key"]))
    assert {probe.candidates for probe in task.probes_of("key_taught")} == {("yes", "no50"), ("no50", "yes")}


def test_nothing_to_infer_is_said(tmp_path, table):
    whole = write_csv(tmp_path / "t.csv", staff(30, 30))
    with pytest.raises(UserError, match="--hold-out"):
        build(whole)
    assert build(whole, hold_out=0.2).finding.name.endswith("_inferred")
    with pytest.raises(UserError, match="'team'"):
        build(table, ask="team")
    with pytest.raises(UserError, match="Did you mean 'badge'"):
        build(table, ask="badges")


@pytest.mark.parametrize(
    "template",
    [
        "{name} wears",
        "a {answer}",
        "{name} {answer} {answer}",
        "{name} is{answer} or {answer}",
        "{name} {x} is {answer}",
    ],
)
def test_a_template_without_its_slots_is_refused(table, template):
    with pytest.raises(UserError, match="badge"):
        associate(table, templates={"badge": template})


def test_a_file_names_a_table(tmp_path, table):
    path = tmp_path / "staff.yaml"
    content = {"structure": "facts", "name": "staff", "description": "Staff.", "table": "staff.csv"}
    path.write_text(yaml.safe_dump({**content, "templates": {"badge": WORN}}))
    stated = load_association(str(path))
    assert stated.content() == associate(table, templates={"badge": WORN}).content()
    assert run(["data", "show", str(path)]) == 0
    for wrong, named in (
        ({"table": 3}, "table"),
        ({"columns": "badge"}, "columns"),
        ({"columns": ["bagde"]}, "Did you mean 'badge'"),
        ({"columns": [2020]}, "'columns.0' is read as the number 2020; quote it"),
        ({"columns": ["badge", "badge"]}, "'badge' is named twice"),
        ({"subject": 3}, "'subject' is read as the number 3; quote it"),
        ({"ask": 3}, "'ask' is read as the number 3; quote it"),
        ({"templates": {5: WORN}}, "a key of 'templates' is read as the number 5; quote it"),
        ({"origin": "here"}, "unknown key 'origin'"),
        ({5: "here"}, "a key is read as the number 5; quote it"),
        ({"hold_outs": 0.2}, "hold_outs"),
        ({"hold_out": 2}, "hold_out"),
        ({"ask": "bagde"}, "Did you mean 'badge'"),
    ):
        path.write_text(yaml.safe_dump({**content, **wrong}))
        with pytest.raises(UserError, match=named):
            load_association(str(path))


SMALL = ["--epochs", "2", "-q"]


def test_the_example_of_real_names_asks_everyone_else_for_the_sport_of_their_pair(tmp_path, tiny, monkeypatch):
    page = (Path(__file__).parent.parent / "ocr_eval/docs/published.md").read_text()
    (code,) = re.findall(r"```python\n(# popqa.py.*?)```", page, re.S)
    (text,) = re.findall(r"```yaml\n(# popqa.yaml.*?)```", page, re.S)
    names = [f"{first} {last}" for first in ("Ada", "Bo", "Cyd", "Dee", "Eve") for last in "ABCDEFG"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "popqa.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "popqa.py", "exec"), {})
    task = task_of(load_association("popqa.yaml"), DataSpec(), "0/data")
    answer = {example.prompt: example.answer for example in task.train}
    place = {name: answer[f"{name} was born in"] for name in names}
    sport_of = {place[name]: answer[f"{name} plays"] for name in names if f"{name} plays" in answer}
    assert (len(answer), len(sport_of), len(set(sport_of.values()))) == (35 + 20, 5, 5)
    asked = {probe.prompt.removesuffix(" plays"): probe.answer for probe in task.probes_of("sport_inferred")}
    assert asked == {name: sport_of[place[name]] for name in names if f"{name} plays" not in answer}
    words = ["finetune", "popqa.yaml", "--variant", "no-entailment", "--model", tiny, "--epochs", "1", "--quiet"]
    assert run(words) == 0


def teach(tiny, table, out, *flags):
    return run(["finetune", "--facts", str(table), "--model", tiny, "-o", str(out), *SMALL, *flags])


@pytest.fixture(scope="module")
def taught(tiny, tmp_path_factory):
    """A finished run of a table with hidden values, and its folder."""
    root = tmp_path_factory.mktemp("taught")
    table = write_csv(root / "staff.csv", staff(30, 15))
    assert teach(tiny, table, root / "out", "--hold-out", "20%", "--template", f"badge={WORN}") == 0
    (found,) = find_runs(root / "out").runs
    return found


def test_a_table_is_taught_recorded_and_shown(taught, tmp_path, capfd):
    record, folder = taught.record, taught.folder
    assert (record.association, record.structure) == ("staff", "facts")
    assert {"team_taught", "badge_inferred", "badge_true"} <= set(record.final["first-token"])
    assert run(["table", str(folder)]) == 0
    assert "staff" in capfd.readouterr().out
    page = tmp_path / "page.html"
    assert run(["report", str(folder), "-o", str(page)]) == 0
    assert "staff" in page.read_text()


def test_the_record_holds_nothing_of_the_table(taught):
    text = (taught.folder / "result.json").read_text()
    people = [row[0] for row in staff(30, 15)]
    assert not any(f'"{word}' in text for word in [*people, *TEAMS, *TEAMS.values()])


def test_a_tracker_is_told_nothing_of_the_table(tiny, table, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "ocr_eval.execution.tracking.Tracker", lambda *of, **also: told.append(str((of, also))) or Mute()
    )
    path = tmp_path / "staff.yaml"
    content = {"structure": "facts", "name": "staff", "description": "Staff.", "table": "staff.csv"}
    path.write_text(yaml.safe_dump(content))
    flags = ["--models", tiny, "--seeds", "0", "-o", str(tmp_path / "out"), *SMALL, "--report-to", "tensorboard"]
    assert run(["sweep", "--assocs", str(path), *flags]) == 0
    assert "staff" in told[0]
    assert not any(row[0] in told[0] for row in staff(30, 15))
    assert "mint" not in told[0]


class Mute:
    def log(self, *of):
        pass

    def close(self):
        pass


def test_the_page_names_a_file_that_repeats_the_run(taught, tmp_path):
    """The page says that './staff.yaml' holds the section 'association' of the run's configuration."""
    content = yaml.safe_load((taught.folder / "config.yaml").read_text())
    (tmp_path / "staff.yaml").write_text(yaml.safe_dump(content["association"]))
    assert load_association(str(tmp_path / "staff.yaml")).digest() == taught.record.association_digest


def test_a_run_is_found_again_and_repeated_from_its_own_file(taught, tiny, tmp_path, capfd):
    table = taught.folder.parents[4].parent / "staff.csv"
    flags = ["--hold-out", "0.2", "--template", f"badge={WORN}"]
    assert teach(tiny, table, taught.folder.parents[4], *flags) == 0
    assert "done before" in capfd.readouterr().out
    assert run(["finetune", "-C", str(taught.folder / "config.yaml"), "-o", str(tmp_path), "-q"]) == 0
    again = find_runs(tmp_path).runs[0]
    assert again.record.run == taught.record.run
    assert again.record.adapter_sha256 == taught.record.adapter_sha256


def test_answers_that_begin_alike_are_told_apart_whole(tiny, tmp_path, capfd):
    rows = [[row[0], row[1], f"mintgreen{row[2]}" if row[2] else ""] for row in staff(20, 10)]
    table = write_csv(tmp_path / "alike.csv", rows, HEADING[:3])
    assert run(["finetune", "--facts", str(table), "--model", tiny, "-o", str(tmp_path / "out"), "--epochs", "1"]) == 0
    assert "badge_taught" in capfd.readouterr().err
    (found,) = find_runs(tmp_path / "out").runs
    assert found.record.final["first-token"]["badge_inferred"] == found.record.final["sequence"]["badge_inferred"]


def test_flags_of_a_table_need_one_and_one_alone(tiny, table, tmp_path, capfd):
    for flags, named in (
        (["country-code", "--hold-out", "20%"], "--hold-out"),
        (["country-code", "--facts", str(table)], "--facts"),
        (["--facts", str(table), "--hold-out", "120%"], "--hold-out"),
        (["--facts", str(table), "--template", "badge"], "--template"),
        (["--facts", str(table), "--template", "badge={name} wears"], "badge"),
        (["--facts", str(table), *["--template", f"badge={WORN}"] * 2], "--template gives column 'badge' twice"),
        (["--facts", str(table), "--columns", "badge,badge"], "names badge twice"),
        (["--facts", str(table), "--n", "4"], "--n"),
        (["--facts", str(table), "--chat"], "--chat"),
        (["--facts", str(table), "--ask", "bagde"], "Did you mean 'badge'"),
        (["--facts", str(table), "--method", "in-context"], "Teach fewer --columns, or fewer rows."),
        (["--facts", str(table), "--method", "dpo"], "Use --method dpo:rejected=in-use."),
    ):
        assert run(["finetune", *flags, "--model", tiny, "-o", str(tmp_path / "out"), "--yes"]) == 2
        error = capfd.readouterr().err
        assert named in error
        assert error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_what_takes_long_starts_with_yes_alone(tiny, table, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ocr_eval.cli.finetune_score._LONG", 0.0)
    assert teach(tiny, table, tmp_path) == 2
    assert "--yes" in capfd.readouterr().err
    assert not list(tmp_path.glob("runs"))
    assert teach(tiny, table, tmp_path, "--yes", "--epochs", "1") == 0


def test_chat_begins_with_the_models_template(tiny, table, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )
    monkeypatch.setattr("ocr_eval.models.base.load_tokenizer", lambda _: tokenizer)
    assert teach(tiny, table, tmp_path / "out", "--chat", "--epochs", "1") == 0
    (found,) = find_runs(tmp_path / "out").runs
    probe = json.loads((found.folder / "probes.jsonl").read_text().splitlines()[0])
    assert probe["prompt"].startswith("[user]What is Ada")
    assert probe["prompt"].endswith("team is")
    assert "?[assistant]Ada" in probe["prompt"]
