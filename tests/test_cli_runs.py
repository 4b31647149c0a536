"""Commands over runs that are there: finished, damaged, or in the way."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import one_line

SMALL = ["--assoc", "country-code", "--n", 2, "--m-train", 1, "--m-test", 2, "--epochs", 1, "--quiet"]


@pytest.fixture
def finetune(ocr_eval, tiny, tmp_path):
    def call(*more: object):
        return ocr_eval("finetune", "--model", tiny, *SMALL, "-o", tmp_path / "out", *more)

    return call


@pytest.fixture
def run(finetune, tmp_path) -> Path:
    """The folder of a finished run."""
    assert finetune().code == 0
    (status,) = tmp_path.glob("out/runs/*/*/*/*/status.json")
    return status.parent


def test_a_finished_run_is_shown_without_what_trains(run, tiny, tmp_path):
    command = ["finetune", "--model", tiny, *map(str, SMALL), "-o", str(tmp_path / "out")]
    code = f"import sys; from ocr_eval.cli.app import run; run({command}); sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"done before: {run}" in shown.stdout
    assert shown.returncode == 0, "torch was imported"


def test_a_damaged_record_names_the_way_out(run, finetune, ocr_eval, tmp_path):
    whole = (run / "result.json").read_bytes()
    (run / "result.json").write_bytes(whole[:300])
    answer = ocr_eval("table", tmp_path / "out")
    assert answer.code == 2
    complaint, end = answer.err.strip().splitlines()
    assert "--force" in complaint
    assert "--force" in end
    again = finetune()
    assert again.code == 0
    assert "is damaged: training starts over" in again.err
    assert "written to" in again.out


def test_a_folder_in_the_place_of_the_record_gives_way_to_it(run, finetune):
    (run / "result.json").unlink()
    (run / "result.json").mkdir()
    (run / "metrics.jsonl").unlink()
    assert "written to" in finetune().out
    assert (run / "result.json").is_file()


@pytest.mark.parametrize(("command", "flag"), [("figures", "--to"), ("report", "--output")])
def test_what_cannot_be_written_names_the_flag(run, ocr_eval, tmp_path, command, flag):
    (tmp_path / "file").write_text("")
    line = one_line(ocr_eval(command, tmp_path / "out", flag, tmp_path / "file" / "page.html"))
    assert line.endswith(f"Choose another with {flag}.")
