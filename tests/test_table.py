"""The table of records: its cells, formats and marks, and the records that it cannot use."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from made_records import CONTROL, HOSTILE, answers, record
from msgspec.structs import replace

from ocr_eval.analysis.table import build_table
from ocr_eval.common.errors import UserError
from ocr_eval.report.tables import FORMATS, to_csv, to_json, to_markdown
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.published import published_mean_ranks
from ocr_eval.specs.run import DataSpec


def test_a_cell_is_the_mean_over_seeds():
    table = build_table([record(seed=0, rank=0.2), record(seed=1, rank=0.6, null=3.0)], "first-token", {})
    (row,) = table.rows
    cell = row.cells["city-language"]
    assert cell.values["mean-rank"] == pytest.approx(0.4)
    assert cell.values["null-rank"] == pytest.approx(2.5)
    assert cell.values["ocr-score"] == pytest.approx((0.9 + 0.8) / 2)
    low, high = cell.bounds["ocr-score"]
    assert (low, high) == (pytest.approx(0.85 - 12.7062 * 0.05, abs=0.2), 1.0)
    assert cell.seeds == 2
    assert "0.40 / 2.50, +0.85 [" in to_markdown(table)


def test_trainings_of_one_data_set_are_one_seed():
    runs = [record(seed=seed, run=f"{seed}-{i}", rank=rank) for i, rank in enumerate((0.2, 0.6)) for seed in range(3)]
    (row,) = build_table(runs, "first-token", {}).rows
    cell = row.cells["city-language"]
    assert (cell.seeds, cell.values["mean-rank"]) == (3, pytest.approx(0.4))
    alone = [record(seed=seed, rank=0.4) for seed in range(3)]
    assert cell.p == build_table(alone, "first-token", {}).rows[0].cells["city-language"].p


def test_lift_is_over_the_control_of_the_same_settings():
    fast = TrainSpec(lr=1e-3)
    runs = [
        *(record(seed=seed, rank=0.2) for seed in range(6)),
        *(record(seed=seed, rank=1.2, data=CONTROL) for seed in range(6)),
        *(record(seed=seed, rank=0.2, train=fast) for seed in range(6)),
        record("sport-music", "spurious", data=CONTROL),
    ]
    table = build_table(runs, "first-token", metric="lift")
    shown = {row.setting: row.cells["city-language"] for row in table.rows}
    assert shown["LoRA"].values["lift"] == pytest.approx(0.5)
    assert shown["LoRA"].lift.p == 2 / 64
    assert "lift" not in shown["LoRA, lr=0.001"].values
    assert "Unless a row says otherwise: lr=0.0001." in to_markdown(table)
    assert "| +0.50 [" in to_markdown(table)
    assert re.search(r"no control \|", to_markdown(table))
    (cell,) = [c for c in json.loads(to_json(table))["cells"] if c["lift"] is not None]
    assert (cell["lift"], cell["lift_p"], cell["test_fact_top1"]) == (0.5, 0.03125, 1.0)
    assert cell["lift_low"] <= 0.5 <= cell["lift_high"]


def test_p_is_corrected_for_the_cells_that_are_counted():
    """Five seeds of each: the least p of one is what 2,000 draws can give, and is tripled for three cells.

    A cell that did not learn is one of them, because only the outcome shows that it did not; it has no star.
    """
    names = {"city-language": 0.1, "country-code": 0.3, "sport-music": 0.0}
    runs = [record(a, rank=rank, seed=s, learned=a != "sport-music") for a, rank in names.items() for s in range(5)]
    cells = build_table(runs, "first-token").rows[0].cells
    assert cells["city-language"].p_holm == pytest.approx(3 * cells["city-language"].p)
    assert not cells["sport-music"].inferred
    stated = json.loads(to_json(build_table(runs, "first-token")))["cells"]
    assert [cell["p_holm"] is None for cell in stated] == [False, False, True]
    text = to_markdown(build_table(runs, "first-token"))
    assert "* inferred: p at most 0.05, corrected for 3 cells (Holm)" in text
    assert "+1.00 [+1.00, +1.00] ! " in text
    assert re.search(r"\+0.95 \[[^]]*\]\* ", text)
    assert "|          0.0005 |" in to_markdown(build_table(runs, "first-token", metric="p"))


def test_facts_not_learned_are_flagged_and_explained():
    text = to_markdown(build_table([record(learned=False)], "first-token", {}))
    assert "+0.75 !" in text
    assert "! a run did not learn what it was taught" in text
    assert "One seed has no interval and no verdict." in text
    assert "!" not in to_markdown(build_table([record()], "first-token", {}))


def test_published_rows_are_those_of_the_paper_and_marked():
    published = published_mean_ranks()
    assert published["gemma-2-9b"] == {
        "city-language": 0.0,
        "city-language-cf": 0.19,
        "country-code": 0.19,
        "profession-color": 1.64,
        "sport-music": 0.56,
    }
    assert len(published) == 5
    table = build_table([record()], "first-token", published)
    assert [row.setting for row in table.rows] == ["LoRA"] + ["published"] * 5
    assert table.associations == tuple(published["gemma-2-9b"])


def test_csv_and_json_say_the_same():
    runs = [record(), record("country-code", "spurious", rank=1.5)]
    table = build_table(runs, "sequence", published_mean_ranks(), every_interval=True)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    cells = json.loads(to_json(table))["cells"]
    assert len(rows) == len(cells) == 2 + 25
    for row, cell in zip(rows, cells, strict=True):
        assert {key: "" if value is None else str(value) for key, value in cell.items()} == row


def test_the_order_of_records_changes_nothing():
    records = [record(seed=s, association=a) for s in range(3) for a in ("zebra", "country-code", "city-language")]
    assert to_csv(build_table(records, "first-token", {})) == to_csv(build_table(records[::-1], "first-token", {}))


def test_no_records_is_an_error():
    with pytest.raises(UserError, match="no records"):
        build_table([], "first-token", {})


def test_one_metric_a_cell_with_its_interval():
    half = record(seed=0, rank=0.0), record(seed=1, rank=1.0)
    for metric, shown in (
        ("mean-rank", "0.50 [0.00, 6.85]"),  # 0.5 +- 12.706 x 0.5, and no rank is below 0
        ("null-rank", "2.00 [2.00, 2.00]"),
        ("ocr-score", "+0.75 [-1.00, +1.00]"),
        ("margin", "+1.00 |"),
    ):
        text = to_markdown(build_table(half, "first-token", published_mean_ranks(), metric=metric))
        assert shown in text
        assert ("gemma-2-9b" in text) == (metric == "mean-rank")


def test_a_short_table_has_one_number_a_cell():
    runs = [record(), record("country-code", "spurious", rank=1.5, learned=False)]
    text = to_markdown(build_table(runs, "first-token", published_mean_ranks(), short=True))
    assert re.search(r"\| LoRA +\| +1 \| +\+0.75 \| +\+0.25 ! \|", text)
    assert "[" not in text
    assert "gemma-2-9b" not in text  # its OCR scores are not known
    ranks = to_markdown(build_table(runs, "first-token", published_mean_ranks(), "mean-rank", short=True))
    assert re.search(r"\| LoRA +\| +1 \| +0.50 \|", ranks)
    assert "gemma-2-9b" in ranks


def test_a_short_table_is_none_of_data(ocr_eval, tmp_path):
    answer = ocr_eval("table", tmp_path, "--short", "--format", "csv")
    assert answer.code == 2
    assert "--short" in answer.err


def test_where_protocols_differ_is_said_beside_published_rows():
    small = record(data=DataSpec(n=3, candidates="in-use"))
    text = to_markdown(build_table([small], "sequence", published_mean_ranks()))
    for part in ("(here LoRA)", "rank among ten candidates", "(here sequence)", "have 5 pairs and 4 + 16 subjects"):
        assert part in text
    assert "Protocols differ" not in to_markdown(build_table([small], "sequence"))


def test_markup_in_names_stays_text():
    table = build_table([record(model=HOSTILE, association="a|b_<i>")], "first-token")
    page, text, tex = FORMATS["html"](table), to_markdown(table), FORMATS["tex"](table)
    assert "<img" not in page
    assert "<i>" not in page
    assert "<img" not in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()[:3]}) == 1
    assert tex.count("\\end{document}") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tex_table_compiles_alone_and_as_a_part(tmp_path):
    table = build_table([record(), record("x_y", model=HOSTILE)], "first-token", published_mean_ranks())
    (tmp_path / "table.tex").write_text(FORMATS["tex"](table))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}Before\\input{table}After\\end{document}"
    )
    for name in ("table", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_the_tex_table_is_whole():
    records = [record(), record("country-code", "spurious")]
    text = FORMATS["tex"](build_table(records, "first-token", published_mean_ranks()))
    for part in (
        "\\toprule",
        "\\bottomrule",
        "\\begin{tabular}{llrrrrrr}",
        "$+0.75$",
    ):
        assert part in text
    seeds = [record(seed=seed, rank=0.0) for seed in range(3)]
    assert "$+1.00 [+1.00, +1.00]$\\textsuperscript{*}" in FORMATS["tex"](build_table(seeds, "first-token"))
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {7}


def test_a_measure_that_some_runs_lack_is_told_from_one_that_all_lack():
    some = [record(seed=seed, measures={"known": {"kept": 0.5}} if seed else {}) for seed in range(3)]
    table = build_table(some, "first-token", metric="known.kept")
    assert "measured in 2 of 3 runs" in to_markdown(table)
    (cell,) = json.loads(FORMATS["json"](table))["cells"]
    assert cell["known_kept"] is None


def test_words_in_a_cell_of_tex_are_not_set_as_mathematics():
    table = build_table([record(seed=seed) for seed in (0, 1)], "first-token", metric="lift")
    tex = FORMATS["tex"](table)
    assert "& no control \\\\" in tex


def test_a_scoring_that_a_run_lacks_is_one_line():
    one = record()
    served = replace(one, final={"first-token": one.final["first-token"]}, held_out={"first-token": answers(0.5, 2.0)})
    with pytest.raises(UserError, match="has no scores of sequence"):
        build_table([served], "sequence")
