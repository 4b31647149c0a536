"""The Python interface, and the example of the documentation as it stands."""

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from made_records import record, write

import ocr_eval as interface
from ocr_eval.specs.model import TrainSpec


def test_importing_is_instant():
    code = "import sys, ocr_eval; dir(ocr_eval); print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_reads_records_does_without_torch():
    code = "import sys, ocr_eval.report.page, ocr_eval.report.tables; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_name_is_there_and_documented():
    for name in interface.__all__:
        assert name in dir(interface)
        assert getattr(interface, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'finetine'"):
        _ = interface.finetine


def test_a_run_is_resolved_from_names_and_settings(tiny):
    run = interface.make_run(tiny, "city-language", seed=2, m_train=1, lr=1e-3, dtype="float32")
    assert (run.seed, run.data.m_train, run.train.lr, run.model.dtype) == (2, 1, 1e-3, "float32")
    with pytest.raises(interface.UserError, match="Did you mean 'm_train'"):
        interface.make_run(tiny, "city-language", m_trian=1)
    with pytest.raises(interface.UserError, match="rank: method 'full' does not use it"):
        interface.make_run(tiny, "city-language", method="full", rank=4)
    with pytest.raises(interface.UserError, match="targets: method 'full' does not use it"):
        interface.make_run(tiny, "city-language", method="full", targets=["q_proj"])
    with pytest.raises(interface.UserError, match="ten candidates cannot hold 12 answers in use"):
        interface.make_run(tiny, "city-language", n=12)


def test_settings_of_several_entries_are_lists_or_text(tiny):
    def made(**settings):
        return interface.make_run(Path(tiny), "city-language", **settings)

    same = made(targets=["q_proj", "v_proj"], templates=[0, 2], prevent=["product-decay", "early-stop"])
    assert made(targets="q_proj+v_proj", templates="0+2", prevent="product-decay+early-stop") == same
    for settings, says in (
        ({"targets": []}, "names no module"),
        ({"targets": "q_proj++v_proj"}, "An entry is empty"),
        ({"prevent": 3}, "'prevent' must be a string, got 3"),
        ({"method": None}, "'method' has no value"),
        ({"method": 3}, "'method' must be a string"),
    ):
        with pytest.raises(interface.UserError, match=re.escape(says)):
            made(**settings)
    with pytest.raises(interface.UserError, match="Give the model by its name or path, not None"):
        interface.make_run(None, "city-language")


def test_what_does_not_exist_is_refused_and_not_an_empty_answer(tmp_path):
    write(tmp_path, *(record(seed=s, train=TrainSpec(rank=rank)) for s in (0, 1) for rank in (4, 8)))
    records = interface.read_records(tmp_path)
    assert interface.make_table(records, by="model,rank").by == ("model", "rank")
    assert len(interface.make_table(records, by="rank", published=False).rows) == 2
    with pytest.raises(interface.UserError, match="Unknown key of by: 'ranks'"):
        interface.make_table(records, by=["model", "ranks"])
    with pytest.raises(interface.UserError, match="Unknown format 'latex'"):
        interface.render_table(interface.make_table(records), "latex")
    for call in (
        lambda: interface.make_table(records, scoring="first"),
        lambda: interface.epochs_frame(tmp_path, scoring="first"),
        lambda: interface.probes_frame(tmp_path, scoring="first"),
        lambda: interface.draw_figures(tmp_path, scoring="first"),
        lambda: interface.write_report(tmp_path, output=tmp_path / "r.html", scoring="first"),
    ):
        with pytest.raises(interface.UserError, match="Unknown scoring 'first'"):
            call()
    for read in (interface.read_records, interface.epochs_frame, interface.probes_frame, interface.draw_figures):
        with pytest.raises(interface.UserError, match="Name a folder"):
            read()
    with pytest.raises(interface.UserError, match="Name a folder"):
        interface.write_report(output=tmp_path / "r.html")
    with pytest.raises(interface.UserError, match=r"Give the folder by its name or path, not \["):
        interface.read_records([interface.make_run("smollm2-135m", "city-language")])
    with pytest.raises(interface.UserError, match="There are no records"):
        interface.make_table([])
    with pytest.raises(interface.UserError, match="Give records, as from read_records, not 'results'"):
        interface.make_table("results")


def test_records_as_a_frame(tmp_path):
    write(tmp_path, *(record(seed=s, train=TrainSpec(lr=lr)) for s in (0, 1) for lr in (1e-3, 2e-3)))
    records = interface.read_records(tmp_path, where="lr=2e-3")
    assert len(records) == 2
    frame = interface.records_frame(records)
    assert len(frame) == 2 * 2 * 3 * 2
    assert frame.lr.tolist() == [2e-3] * 24
    assert sorted(set(frame.moment)) == ["base", "final"]
    assert (
        frame.query(
            "seed == 1 and moment == 'final' and scoring == 'sequence' and quantity == 'test_entailment'"
        ).mean_rank.item()
        == 0.5
    )
    table = interface.make_table(records, metric="mrr", by=("model", "lr"))
    assert "0.83 [" in interface.render_table(table)


def test_a_damaged_record_is_a_warning(tmp_path):
    write(tmp_path, record(), record(seed=1))
    (tmp_path / "run0/result.json").write_text("{")
    with pytest.warns(UserWarning, match="run0/result.json is not a valid record"):
        assert len(interface.read_records(tmp_path)) == 1


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Runs of two seeds, scored after every other epoch."""
    from ocr_eval.cli.app import run

    output = tmp_path_factory.mktemp("frames")
    flags = ["--epochs", "3", "--score-at", "every:2", "--n", "3", "--m-train", "2", "--m-test", "3", "--quiet"]
    run(["sweep", "--models", tiny, "--assocs", "city-language", "--seeds", "0-1", *flags, "-o", str(output)])
    return output


def test_epochs_as_a_frame(finished):
    frame = interface.epochs_frame(finished, where="seed=1")
    assert frame.epoch.tolist() == [0, 1, 2, 3]
    assert set(frame.seed) == {1}
    assert frame.train_loss.isna().tolist() == [True, False, False, False]
    assert frame.test_entailment_ocr_score.isna().tolist() == [False, True, False, False]
    assert not frame.train_fact_top1.isna().any()  # a premise is scored until all of them hold
    (record,) = interface.read_records(finished, where="seed=1")
    score = record.final["sequence"]["test_fact"]
    last = interface.epochs_frame(finished, where="seed=1", scoring="sequence").iloc[-1]
    assert (last.run, last.train_loss, last.lr) == (record.run, record.train_loss, record.train.lr)
    assert (last.test_fact_mean_rank, last.test_fact_top1) == (score.mean_rank, score.top1)


def test_probes_as_a_frame(finished):
    frame = interface.probes_frame(finished, scoring="sequence")
    assert len(frame) == 2 * 2 * 30
    assert sorted(set(frame.epoch)) == [0, 3]
    final = frame.query("epoch == 3")
    for each in interface.read_records(finished):
        for quantity, score in each.final["sequence"].items():
            own = final[(final.run == each.run) & (final.quantity == quantity)]
            assert own.answer_rank.mean() == pytest.approx(score.mean_rank)
            assert (own.answer_rank == 0).mean() == pytest.approx(score.top1)
            assert set(own["rank"]) == {each.train.rank}
    assert ((final["best"] == final["answer"]) == (final.answer_rank == 0)).all()
    assert (final.logprob < 0).all()


def test_a_run_without_its_lines_is_a_warning(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    for kept, says in (
        (1, r"probes\.jsonl is missing\. Skipped"),
        (0, r"probes\.jsonl is missing, as is that of 1 more"),
    ):
        next((tmp_path / "copy").rglob("probes.jsonl")).unlink()
        with pytest.warns(UserWarning, match=says) as caught:
            assert len(interface.probes_frame(tmp_path / "copy")) == kept * 2 * 30
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


def test_a_table_shows_itself_and_is_a_frame():
    records = [record(seed=seed, model="<b>&c") for seed in (0, 1)]
    table = interface.make_table(records)
    frame = table.to_frame()
    assert list(frame.columns) == interface.render_table(table, "csv").splitlines()[0].split(",")
    own = frame[~frame.published]
    assert (own.model.item(), own.seeds.item(), own.mean_rank.item()) == ("<b>&c", 2, 0.5)
    shown = table._repr_html_()
    assert shown.startswith("<table>")
    assert '<th scope="row">&lt;b&gt;&amp;c</th>' in shown
    assert "<b>" not in shown
    assert shown in interface.render_table(table, "html")


def test_the_python_page_runs(finished, tmp_path):
    """Its snippets on finished runs; those that train are the example's."""
    page = (files("ocr_eval") / "docs/python.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", page, re.S)[-1]
    scope = {"ocr_eval": interface, "records": interface.read_records(finished)}
    exec(snippet.replace('"results"', repr(str(finished))), scope)
    assert len(scope["epochs"]) == 8
    assert set(scope["wrong"].quantity) <= {"test_entailment"}


def test_the_example_of_the_documentation_runs(tiny, tmp_path):
    """As it stands, on a model small enough for a test."""
    example = files("ocr_eval") / "docs/example.py"
    text = example.read_text().replace('"smollm2-135m", name', f'"{tiny}", name').replace("smollm2-135m", "tiny-llama")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "country-code: mean rank" in done.stdout
    assert "| tiny-llama" in done.stdout
    assert (tmp_path / "results/example/report.html").is_file()
    assert (tmp_path / "results/example/scores.pdf").read_bytes().startswith(b"%PDF")
    assert Path(tmp_path / "results/example/runs").is_dir()


def test_a_report_from_python_shows_measures_by_layer(tmp_path):
    layers = {"name_excess": [1.0, 0.5, 0.0], "prompt_excess": [0.0, 0.5, 1.0]}
    write(tmp_path / "runs", record(measures={"patching": {"layers": layers}}))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl"):  # the run has no lines of epochs
        page = interface.write_report(tmp_path / "runs", output=tmp_path / "report.html").read_text()
    assert "Where answers come from" in page
