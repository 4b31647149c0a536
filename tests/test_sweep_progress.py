"""The lines that a person follows of a sweep."""

import numpy as np
from conftest import tiny_run

from ocr_eval.execution.progress import SweepWatcher
from ocr_eval.execution.run_pack import Step
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
    names = [run.folder.identity for run in runs]
    watch = SweepWatcher(dict.fromkeys(names, 2), dict.fromkeys(names, 0), 1)
    watch(runs)
    watch([step(tiny, tmp_path, 0, 1)])  # the other has diverged
    watch([step(tiny, tmp_path, 0, 2)])
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["0%", "75%", "100%"]
    assert "city-language x2 OCR +0.50" in lines[0]
    assert "left" not in lines[2]


def test_runs_that_are_nobodys_are_passed_over(tiny, tmp_path, capfd):
    SweepWatcher({}, {}, 1)([step(tiny, tmp_path, 0, 1)])
    assert capfd.readouterr().err == ""
