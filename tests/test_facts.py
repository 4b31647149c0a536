"""A user's own facts: the table that is read, and what its columns tell of each other."""

import csv
import json
import math
from itertools import permutations

import datasets
import numpy as np
import pandas as pd
import pytest
from accidents import in_time

from ocr_eval.cli.app import run
from ocr_eval.common.errors import UserError
from ocr_eval.data import dependence
from ocr_eval.data.dependence import Paired, chances, expected_information, theils_u
from ocr_eval.data.fact_table import MOST_BYTES, parse_csv, read_facts
from ocr_eval.data.links import find_links

TEAMS = {"red": "mint", "blue": "rust", "green": "teal", "gold": "plum", "gray": "sand"}
SURNAMES = ["Berg", "Lind", "Moss", "Hale", "Roth", "Vane", "Cole"]
HEADING = ["name", "team", "badge", "shoe"]


def staff(people=60, badges=12, shoes=5):
    """Rows of people in five teams, the first of whom wear their team's badge; shoes say nothing."""
    return [
        [f"Ada{i} {SURNAMES[i % 7]}", team, TEAMS[team] if i < badges else "", f"size {i // 5 % shoes}"]
        for i in range(people)
        for team in [list(TEAMS)[i % 5]]
    ]


def write_csv(path, rows, heading=HEADING, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([heading, *rows])
    return path


@pytest.fixture
def table(tmp_path):
    return write_csv(tmp_path / "staff.csv", staff())


def test_every_format_gives_one_table(tmp_path, table):
    expected = read_facts(table)
    frame = pd.DataFrame(staff(), columns=HEADING).replace("", None)
    frame.to_parquet(tmp_path / "staff.parquet")
    datasets.Dataset.from_pandas(frame).save_to_disk(str(tmp_path / "saved"))
    frame.to_json(tmp_path / "staff.jsonl", orient="records", lines=True)
    write_csv(tmp_path / "staff.tsv", staff(), delimiter="\t")
    for name in ("staff.parquet", "saved", "staff.jsonl", "staff.tsv"):
        assert read_facts(tmp_path / name) == expected
    assert parse_csv(expected.to_csv(), "name") == expected
    assert expected.columns["badge"][:2] == ("mint", "rust")
    assert expected.columns["badge"][12] is None


def test_numbers_booleans_and_missing_values_are_words(tmp_path):
    rows = [{"id": "a", "n": 1.0, "b": True}, {"id": "b", "n": None, "b": False}, {"id": "c", "n": 2.5}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_facts(tmp_path / "t.jsonl").columns == {"n": ("1", None, "2.5"), "b": ("yes", "no", None)}


def test_rows_of_one_subject_are_one(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["A", "x", ""], ["B", "y", "2"], ["A", "", "1"]], ["name", "p", "q"])
    found = read_facts(path)
    assert (found.subjects, dict(found.columns)) == (("A", "B"), {"p": ("x", "y"), "q": ("1", "2")})


def test_the_subject_is_found_by_name_or_named(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["x", "A"], ["y", "B"]], ["team", "Name"])
    assert read_facts(path).subjects == ("A", "B")
    assert read_facts(path, subject="team").subjects == ("x", "y")


def test_prompts_are_grouped_by_what_they_share(tmp_path, capfd):
    lines = [{"prompt": f"{row[0]} plays for", "completion": f" {row[1]}"} for row in staff(20)]
    lines += [{"prompt": f"The badge of {row[0]} is", "completion": f" {row[2]}"} for row in staff(10)]
    lines += [{"prompt": "Once upon a", "completion": " time"}]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_facts(path)
    assert found.subjects == tuple(row[0] for row in staff(20))
    assert set(found.templates.values()) == {"{name} plays for {answer}", "The badge of {name} is {answer}"}
    assert found.columns["plays for"] == tuple(row[1] for row in staff(20))
    assert "1 of 31 prompts" in capfd.readouterr().err


BAD = {
    "a column without variation": ("name,team\nA,x\nB,x\n", ["'team'", "'x'"]),
    "a subject with two values": ("name,team\nA,x\nB,y\nA,z\n", ["row 4", "'team'", "row 2"]),
    "markup": ("name,team\nA,x\nB,<b>y</b>\n", ["row 3", "'team'", "<b>"]),
    "a slot": ("name,team\nA,x\nB,{name}\n", ["row 3", "'team'"]),
    "a token of chats": ("name,team\nA,x\nB,<|im_end|>\n", ["row 3", "'team'"]),
    "a cell of 10,000 characters": (f"name,team\nA,x\nB,{'y' * 10_000}\n", ["row 3", "'team'", "10,000"]),
    "a template-breaking line": ('name,team\nA,x\nB,"y\nz"\n', ["row 3", "'team'"]),
    "two columns of one name": ("name,team,team\nA,x,y\nB,y,x\n", ["row 1", "'team'"]),
    "a column without a name": ("name,\nA,x\nB,y\n", ["row 1", "column 2"]),
    "cells between semicolons": ("name;team\nA;x\nB;y\n", ["separated by ';'", "commas"]),
    "cells between tabs": ("name\tteam\nA\tx\n", ["holds a tab", ".tsv"]),
    "a mark for a missing value": ("name,team\nA,x\nB,N/A\n", ["row 3", "'team'", "Leave the cell empty"]),
    "a formula": ("name,team\nA,x\nB,=1+1\n", ["row 3", "'team'", "=1+1"]),
    "a formula behind a sign": ("name,team\nA,x\nB,@SUM(A1)\n", ["row 3", "'team'"]),
    "an empty subject": ("name,team\nA,x\n,y\n", ["row 3", "'name'"]),
    "an empty column": ("name,team,dog\nA,x,\nB,y,\n", ["'dog'"]),
    "a row too short": ("name,team\nA,x\nB\n", ["row 3", "1 cell,", "Leave missing cells empty."]),
    "a row too long": ("name,team\nA,x\nB,y,z\n", ["row 3", "3 cells"]),
    "no rows": ("name,team\n", ["no rows"]),
    "nothing": ("", ["no rows"]),
    "subjects alone": ("name\nA\nB\n", ["'name'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_row_and_column(tmp_path, capfd, case):
    text, named = BAD[case]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert run(["audit", str(path)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert all(each in error for each in [str(path), *named])
    assert [each.name for each in tmp_path.iterdir()] == ["bad.csv"]


def refused(capfd, *arguments):
    assert run(["audit", *map(str, arguments)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_files_are_one_line(tmp_path, capfd, table):
    for name, content, named in (
        ("latin.csv", "name,team\nA,x\nJosé,y\n".encode("latin-1"), "row 3"),
        ("large.csv", b"x" * (MOST_BYTES + 1), "MB"),
        ("broken.jsonl", b'{"name": "A", "team": "x"}\n{"name": \n', "line 2"),
        ("twice.jsonl", b'{"name": "A", "team": "x", "team": "y"}\n', "'team'"),
        ("list.jsonl", b'{"name": "A", "team": ["x"]}\n{"name": "B", "team": "y"}\n', "line 1, column 'team'"),
        ("deep.jsonl", b"[" * 100_000, "line 1"),
        ("broken.parquet", b"nothing", "parquet"),
        ("staff.xlsx", b"PK", ".xlsx"),
    ):
        (tmp_path / name).write_bytes(content)
        assert named in refused(capfd, tmp_path / name)
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(capfd, tmp_path / "folder")
    assert "nowhere.csv" in refused(capfd, tmp_path / "nowhere.csv")
    assert "Did you mean 'team'" in refused(capfd, table, "--columns", "teem")


def paired(counts):
    """Two variables with these counts of pairs of values."""
    counts = np.array(counts)
    a, b = np.nonzero(counts)
    return Paired(np.repeat(a, counts[a, b]), np.repeat(b, counts[a, b]))


def test_hand_worked_u():
    together = math.log(2)
    assert expected_information(np.array([2, 2]), np.array([2, 2])) == pytest.approx(together / 3)
    assert theils_u(paired([[2, 0], [0, 2]]))[0] == pytest.approx((1, 1))
    # I is 0, and of three tables two in six have ln 2: (0 - 1/3) / (1 - 1/3)
    assert theils_u(paired([[1, 1], [1, 1]]))[0] == pytest.approx((0, -1 / 2))
    # four values decide two, which do not decide them: I = H(B) = ln 2, H(A) = 2 ln 2
    (told, _), (back, _) = theils_u(paired([[2, 0], [2, 0], [0, 2], [0, 2]]))
    assert (told, back) == pytest.approx((1, 0.5))
    assert theils_u(paired([[3], [4]]))[0] == (0, 0)


def test_the_mean_by_chance_is_that_of_all_orders():
    a, b = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    raw = [theils_u(Paired(a, b[list(order)]))[0][0] for order in permutations(range(6))]
    entropy = math.log(3)
    assert expected_information(np.bincount(a), np.bincount(b)) == pytest.approx(np.mean(raw) * entropy)


@pytest.mark.parametrize(("values", "raw"), [(5, 0.10), (40, 0.62)])
def test_raw_u_is_biased_and_corrected_u_is_not(values, raw):
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        counts = np.zeros((values, 5), int)
        np.add.at(counts, (rng.integers(values, size=60), rng.integers(5, size=60)), 1)
        found.append(theils_u(paired(counts[counts.sum(axis=1) > 0]))[0])
    mean = np.mean(found, axis=0)
    assert mean[0] == pytest.approx(raw, abs=0.1)
    assert mean[1] == pytest.approx(0, abs=0.02)


def test_hand_worked_p():
    # two of the six ways to deal two pairs are as linked
    tables = {"two": [[2, 0], [0, 2]], "decided": np.diag([6, 6, 6]), "one value": [[4, 4]]}
    found = chances({name: paired(counts) for name, counts in tables.items()})
    assert found["two"].p == pytest.approx(1 / 3, abs=0.12)
    assert (found["decided"].p, found["decided"].tables) == (pytest.approx(1 / 10_001), 10_000)
    assert (found["one value"].p, found["one value"].tables) == (1, 0)


def test_tables_of_mostly_empty_cells_are_drawn_otherwise_with_the_same_p(monkeypatch):
    a = np.repeat(np.arange(20), 2)
    b = np.random.default_rng(0).permutation(a)
    b[:2] = b[0]  # one value of both that coincides, and so somewhat linked
    family = {f"{i}": Paired(a, b) for i in range(12)} | {"x": Paired(a, np.roll(a, 1))}
    shuffled = chances(family)
    monkeypatch.setattr(dependence, "_SPARSE", 1e9)
    dealt = chances(family)
    ps = [[of[f"{i}"].p for i in range(12)] for of in (shuffled, dealt)]
    assert np.mean(ps[0]) == pytest.approx(np.mean(ps[1]), rel=0.25)
    assert shuffled["x"].p == pytest.approx(dealt["x"].p, abs=0.1)


def test_a_family_too_large_to_test_says_so_and_p_is_never_a_weaker_one(monkeypatch):
    a = np.repeat(np.arange(50), 20)
    family = {f"{i}": Paired(a, a) for i in range(40)} | {"none": Paired(a, np.tile(np.arange(50), 20))}
    assert all(each.p == 1 / 10_001 for name, each in chances({"0": family["0"]}).items())
    monkeypatch.setattr(dependence, "BUDGET", 1)
    found = chances(family)
    assert found["0"].p is None
    assert found["0"].tables == 100  # of which none is as extreme, but of 41 tests 819 would have to be
    assert found["none"].p > 0.2
    assert chances({"0": family["0"]})["0"].p == 1 / 101


@pytest.mark.parametrize(("rows", "columns", "values"), [(2_000, 12, 1_000), (10_000, 12, 1_000), (30, 100, 5)])
def test_a_large_table_is_audited_in_seconds(tmp_path, capfd, rows, columns, values):
    rng = np.random.default_rng(0)
    cells = rng.integers(values, size=(columns, rows))
    cells[1] = cells[0]
    names = [f"c{i}" for i in range(columns)]
    write_csv(tmp_path / "t.csv", [(f"P{i}", *row) for i, row in enumerate(cells.T.tolist())], ["name", *names])
    with in_time(60):
        assert run(["audit", str(tmp_path / "t.csv")]) == 0
    out = capfd.readouterr().out
    assert ("c0 and c1 (1.00)" in out) == ("not tested" in out)
    assert "not tested" in out or "c0 " in out


def test_a_table_beyond_all_bounds_is_refused_at_once(tmp_path, capfd):
    rows = [(f"P{i}", *("ab"[i % 2] for _ in range(3_000))) for i in range(30)]
    write_csv(tmp_path / "wide.csv", rows, ["name", *map(str, range(3_000))])
    (tmp_path / "keys.jsonl").write_text("".join(f'{{"name": "P{i}", "k{i}": 1}}\n' for i in range(20_000)))
    (tmp_path / "prompt.jsonl").write_text(json.dumps({"prompt": "a b " * 20_000, "completion": "c"}) + "\n")
    long = [(f"P{i}", *(str((i + j) % 7) for j in range(40))) for i in range(30_000)]
    write_csv(tmp_path / "long.csv", long, ["name", *(f"c{i}" for i in range(40))])
    for name, says in {
        "wide.csv": "the limit is 100",
        "keys": "cells",
        "prompt": "too long",
        "long": "--columns",
    }.items():
        (path,) = tmp_path.glob(f"{name}*")
        with in_time(10):
            assert run(["audit", str(path)]) == 2
        err = capfd.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1


def test_links_of_a_table(table):
    links = find_links(read_facts(table))
    first = links.all[0]
    assert (first.source, first.target, first.both, first.decided, first.alone) == ("team", "badge", 12, 12, 48)
    assert first.corrected == pytest.approx(1)
    assert first.is_linked
    assert first.answers == TEAMS
    red = first.values[0]
    assert (red.value, red.both, red.alone, red.orientation) == ("red", 3, 9, pytest.approx(math.sqrt(3 / 9)))
    assert first.orientation == pytest.approx((2 * 9 * math.sqrt(3 / 9) + 3 * 10 * math.sqrt(2 / 10)) / 48)
    assert [link.target for link in links.risks] == ["badge"]
    assert not any(link.is_linked for link in links.all if "shoe" in (link.source, link.target))
    assert links.strongest("badge") == first


def test_independent_columns_are_rarely_linked():
    rng = np.random.default_rng(1)
    linked = 0
    for _ in range(60):
        rows = [[f"P{i}", *(str(v) for v in rng.integers(4, size=3))] for i in range(50)]
        text = "\n".join(",".join(row) for row in [["name", "a", "b", "c"], *rows])
        linked += any(link.is_linked for link in find_links(parse_csv(text, "name")).all)
    assert linked <= 8  # of 60 at 5 %: more than 8 with a probability below 0.5 %


def test_audit_says_it_in_words_json_and_csv(tmp_path, capfd):
    rows = [[*row, f"id{i}"] for i, row in enumerate(staff())]
    path = write_csv(tmp_path / "t.csv", rows, [*HEADING, "email"])
    assert run(["audit", str(path), "-q"]) == 0
    text = capfd.readouterr().out
    assert "team decides badge for 12 of 12 subjects; 48 more have a team and no badge" in text
    assert "'email'" in text
    assert run(["audit", str(path), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found["left_out"]) == ["email"]
    assert len(found["risks"]) == 1
    assert run(["audit", str(path), "--csv"]) == 0
    links = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert (links[0]["source"], links[0]["target"], links[0]["alone"]) == ("team", "badge", "48")
    assert len(links) == 6


def test_a_table_of_one_column_has_no_links(tmp_path, capfd):
    assert run(["audit", str(write_csv(tmp_path / "t.csv", [["A", "x"], ["B", "y"]], ["name", "p"]))]) == 0
    text = capfd.readouterr().out
    assert "2 subjects ('name') with 1 column of facts" in text
    assert "No links" in text


def test_a_column_in_which_one_value_is_shared_is_no_identifier(tmp_path, capfd):
    rows = [["A", "x", "1"], ["B", "x", "2"], ["C", "y", "1"], ["D", "y", "1"]]
    assert run(["audit", str(write_csv(tmp_path / "t.csv", rows, ["name", "p", "q"]))]) == 0
    assert "Skipped: 'q', where only '1' belongs to more than one subject" in capfd.readouterr().out


def test_without_a_missing_value_there_is_no_risk(tmp_path, capfd):
    assert run(["audit", str(write_csv(tmp_path / "t.csv", staff(badges=60)))]) == 0
    text = capfd.readouterr().out
    assert "No risk: where one column predicts another beyond chance, no value is missing." in text
    assert "4 other links were not shown to be stronger than chance" in text
    assert "under 0.05" not in text


def test_links_that_are_clear_only_before_the_correction_are_named(tmp_path, capfd):
    """Columns a and b agree for 16 of 20 (p 0.019), one of three pairs of columns."""
    cells = [pair for pair, count in (("xu", 8), ("xv", 2), ("yu", 2), ("yv", 8)) for _ in range(count)]
    rows = [[f"P{i}", *pair, "st"[i % 2]] for i, pair in enumerate(cells)]
    assert run(["audit", str(write_csv(tmp_path / "t.csv", rows, ["name", "a", "b", "c"]))]) == 0
    text = capfd.readouterr().out
    assert "6 other links were not shown to be stronger than chance; --csv shows all." in text
    assert "p is under 0.05 before Holm's correction for a and b (0.019)." in text


def test_no_such_column_of_subjects(table):
    with pytest.raises(UserError, match="column"):
        read_facts(table, subject="nobody")
