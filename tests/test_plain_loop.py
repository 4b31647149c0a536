"""The plain loop of the documentation and what ocr-eval computes are the same."""

import runpy
import sys

import pytest
from conftest import ARCHITECTURES, as_a_pack, tiny_run

import ocr_eval as interface
from ocr_eval.docs import plain_loop
from ocr_eval.execution.run_pack import Execution

SCORINGS = ("first-token", "sequence")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_runs_side_by_side_learn_and_infer_what_the_plain_loop_does(architecture, model_files, tmp_path):
    path = model_files[architecture]
    specs = [tiny_run(path, m_test=8), tiny_run(path, "country-code", seed=1, rank=2, batch_size=5)]
    packed = [folder.record().run for folder in as_a_pack(specs, tmp_path, Execution(device="cpu"))]
    frames = {scoring: interface.epochs_frame(tmp_path, scoring=scoring).groupby("run") for scoring in SCORINGS}
    probes = {scoring: interface.probes_frame(tmp_path, scoring=scoring).groupby("run") for scoring in SCORINGS}
    for spec, run in zip(specs, packed, strict=True):
        plain = list(plain_loop.teach(spec))
        losses = frames["first-token"].get_group(run).train_loss.tolist()
        assert losses[1:] == pytest.approx([loss for loss, _ in plain[1:]], rel=1e-4)
        for scoring in SCORINGS:
            epochs = frames[scoring].get_group(run)
            for statistic in ("rank", "null", "score"):
                means = [float(getattr(ranks[scoring], statistic).mean()) for _, ranks in plain]
                name = {"rank": "mean_rank", "null": "null_rank", "score": "ocr_score"}[statistic]
                assert epochs[f"test_entailment_{name}"].tolist() == pytest.approx(means, abs=1e-6)
            asked = probes[scoring].get_group(run).query("quantity == 'test_entailment'")
            for epoch in (0, spec.train.epochs):
                answered, ranks = asked.query(f"epoch == {epoch}"), plain[epoch][1][scoring]
                assert answered.answer_rank.tolist() == ranks.rank.tolist()
                assert answered.null_rank.tolist() == pytest.approx(ranks.null.tolist())


def test_the_script_prints_a_line_per_epoch(tiny, monkeypatch, capsys):
    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["plain_loop", *arguments])
        runpy.run_path(plain_loop.__file__, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    base, first = script("--model", tiny, "--assoc", "sport-music", "--epochs", "1")
    assert base.startswith("epoch 0/1  untouched base")
    assert first.startswith("epoch 1/1    loss")
    assert "OCR score" in first
    with pytest.raises(SystemExit) as ended:
        script("--model", "no-such")
    assert ended.value.code == 2
    assert "'no-such'" in capsys.readouterr().err
