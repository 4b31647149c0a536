"""The Python interface, and the example of the documentation as it stands."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from test_comparison import write
from test_table import record

import ocr_eval as interface
from ocr_eval.specs import TrainSpec


def test_importing_is_instant():
    code = "import sys, ocr_eval; dir(ocr_eval); print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    with pytest.raises(interface.UserError, match="has no adapter"):
        interface.make_run(tiny, "city-language", method="full", rank=4)
    with pytest.raises(interface.UserError, match="targets: method 'full' trains all parameters"):
        interface.make_run(tiny, "city-language", method="full", targets=["q_proj"])
    with pytest.raises(interface.UserError, match="ten candidates cannot hold 12 answers in use"):
        interface.make_run(tiny, "city-language", n=12)


def test_records_as_a_frame(tmp_path):
    write(tmp_path, *(record(seed=s, train=TrainSpec(lr=lr)) for s in (0, 1) for lr in (1e-3, 2e-3)))
    records = interface.read_records(tmp_path, where="lr=2e-3")
    assert len(records) == 2
    frame = interface.records_frame(records)
    assert len(frame) == 2 * 2 * 3
    assert frame.lr.tolist() == [2e-3] * 12
    assert sorted(set(frame.moment)) == ["base", "final"]
    assert frame.query("seed == 1 and moment == 'final' and scoring == 'sequence'").mean_rank.item() == 0.5
    table = interface.make_table(records, metric="mrr", by=("model", "lr"))
    assert "0.67" in interface.render_table(table)


def test_a_damaged_record_is_a_warning(tmp_path):
    write(tmp_path, record(), record(seed=1))
    (tmp_path / "run0/result.json").write_text("{")
    with pytest.warns(UserWarning, match="run0/result.json is no whole record"):
        assert len(interface.read_records(tmp_path)) == 1


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
