"""The lines that a person follows of a sweep."""

import json

import numpy as np
from conftest import tiny_run

from ocr_eval.execution.execute import PlannedRun
from ocr_eval.execution.progress import Step, SweepWatcher
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.scoring.ranks import HeldOut


def step(tiny, tmp_path, seed, epoch):
    spec = tiny_run(tiny, seed=seed, epochs=2)
    held_out = {"first-token": HeldOut(["a", "b"], np.array([0, 1]), np.array([[1.0, 2.0], [1.0, 0.0]]))}
    line = MetricsLine(epoch=epoch, train_loss=1.0 if epoch else None, held_out=held_out)
    return Step(spec, RunFolder.of(tmp_path, spec, "01234567"), line)


def test_a_run_that_could_not_go_on_is_not_waited_for(tiny, tmp_path, capfd):
    runs = [step(tiny, tmp_path, seed, 0) for seed in (0, 1)]
    watch = SweepWatcher([[PlannedRun(run.spec, run.folder) for run in runs]])
    watch(runs)
    watch([step(tiny, tmp_path, 0, 1)])  # the other has diverged
    watch([step(tiny, tmp_path, 0, 2)])
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["0%", "75%", "100%"]
    assert "city-language x2 OCR +1.00" in lines[0]
    assert "left" not in lines[2]


def test_runs_that_are_nobodys_are_passed_over(tiny, tmp_path, capfd):
    SweepWatcher([[]])([step(tiny, tmp_path, 0, 1)])
    assert capfd.readouterr().err == ""


def test_who_follows_or_reads_runs_copes_with_epochs_at_which_little_or_nothing_is_scored(ocr_eval, tiny, tmp_path):
    grid = ["--models", tiny, "--assocs", "city-language", "--seeds", "0-1", "--n", 2, "--m-test", 3]
    means = ["--epochs", 12, "--score-at", "last", "--report-to", "tensorboard", "--workers", 1, "-o", tmp_path]
    answer = ocr_eval("sweep", *grid, *means)
    assert answer.code == 0, answer.err
    lines = [line for line in answer.err.splitlines() if "epoch" in line]
    assert len(lines) == 13
    assert all("loss" in line for line in lines[1:])
    assert ["OCR" in line for line in (lines[0], lines[1], lines[-1])] == [True, False, True]
    in_full, partly, unscored = set(), set(), set()
    for path in tmp_path.glob("runs/*/*/*/*/metrics.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            kind = in_full if "held_out" in line else partly if "scores" in line else unscored
            kind.add(line["epoch"])
    assert {0, 12} < in_full, "premises hold before the end"
    assert partly
    assert unscored
    assert "12" in ocr_eval("status", tmp_path).out
    assert "mean rank" in ocr_eval("figures", tmp_path, "--text").out
    assert ocr_eval("figures", tmp_path, "-o", tmp_path / "figures").code == 0
    page = ocr_eval("report", tmp_path, "-o", tmp_path / "report.html")
    assert (page.code, "Skipped" in page.err) == (0, False)
    single = ["--assoc", "city-language", "--model", tiny, "--n", 2, "--m-test", 3, "--epochs", 12, "--seed", 3]
    answer = ocr_eval("finetune", *single, "--score-at", "last", "-o", tmp_path)
    said = [line for line in answer.err.splitlines() if "epoch" in line]
    assert len(said) == 13
    assert "learned" in said[1]
    assert "OCR score" not in said[1]
    assert "OCR score" in said[-1]
