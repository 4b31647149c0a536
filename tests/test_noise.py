"""The study of rerun noise: remakes of a tiny run, and its statistics by numbers worked by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load, tiny_run

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import noise
import noise_page

from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.specs.model import load_model_spec


@pytest.fixture(autouse=True)
def _door(monkeypatch):
    monkeypatch.setattr(PREVENTIONS, "_added", {"remake": noise.Remake, "mean-weights": noise.MeanWeights})


def prevented(spec, *prevent):
    return spec.model_copy(update={"train": spec.train.model_copy(update={"prevent": prevent})})


def weights_after(base, *specs, epochs=1):
    """All weights of each lane after some epochs of a pack, and after it is finished. [lanes, P] twice"""
    pack = attach(base, specs, [training_tokens(base.tokenizer, build_task(spec)) for spec in specs])

    def weights():
        return torch.stack([torch.cat([p.data for p in each.parameters.values()]) for each in pack.learners])

    try:
        for _ in range(epochs):
            pack.step(range(len(specs)))
        before = weights()
        for lane in range(len(specs)):
            pack.finish(lane)
        return before, weights()
    finally:
        pack.detach()


def test_a_remake_is_another_run_and_the_same_one_each_time(tiny):
    base, spec = load(tiny), tiny_run(tiny, lr=1e-9, epochs=1, batch_size=1000)  # one step that hardly learns
    specs = [spec, *(prevented(spec, f"remake:number={number}") for number in (1, 1, 2))]
    (original, one, again, two), _ = weights_after(base, *specs)
    assert torch.equal(one, again)
    for other in (original, two):
        moved = one - other
        assert moved.std().item() == pytest.approx(1e-6 * (1 if other is original else 2**0.5), rel=0.05)
    (_, later), _ = weights_after(base, spec, specs[1])
    assert torch.equal(one, later)


def test_mean_weights_are_those_of_every_step_of_the_last_epochs(tiny):
    base, spec = load(tiny), tiny_run(tiny, epochs=noise.TAIL, batch_size=1000)  # a step an epoch, all of them last
    start, *each = (weights_after(base, spec, epochs=epochs)[0] for epochs in range(noise.TAIL + 1))
    _, mean = weights_after(base, prevented(spec, "mean-weights"), epochs=noise.TAIL)
    torch.testing.assert_close(mean, torch.stack([start, *each]).mean(dim=0))


def test_remakes_are_read_at_the_end_and_the_page_is_made_of_them(tiny):
    base, spec = load(tiny), tiny_run(tiny, epochs=4)
    rows = pd.DataFrame(noise.train_remakes(base, spec)).assign(condition="constant")
    assert list(rows.reading) == [name for name in ("last-2", "last-1", "last", "mean-weights") for _ in range(4)]
    for _, row in rows.iterrows():
        ranks, nulls = (np.array(text.split(), dtype=float) for text in (row.ranks, row.nulls))
        assert row.score == pytest.approx(1 - ranks.mean() / nulls.mean(), abs=1e-3)
    groups = noise_page.by_group(rows[rows.reading == "last"])
    assert groups.shape == (1, noise.REMAKES, 3)
    assert groups.mean(axis=2)[0] == pytest.approx(rows[rows.reading == "last"].score_in_use, abs=1e-3)
    page = noise_page.page(rows, ["constant", "linear"])
    assert "| constant; mean of 3 epochs |" in page
    assert "| linear" not in page


def test_training_resumes_with_the_packs_that_are_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "ASSOCIATIONS", ["city-language"])
    monkeypatch.setattr(noise, "SEEDS", (0,))
    monkeypatch.setattr(noise, "CONDITIONS", {"constant": {}, "linear": {"schedule": "linear"}})
    model = load_model_spec(tiny)
    noise.train(tmp_path / "whole/runs.csv", model)
    noise.train(tmp_path / "parts/runs.csv", model, part=1, parts=2)
    half = noise.read_table(tmp_path / "parts/runs.csv")
    assert set(half.condition) == {"linear"}
    for _ in range(2):  # the pack that is missing, and none
        noise.train(tmp_path / "parts/runs.csv", model, packs=1)
    key = ["condition", "seed", "reading", "remake"]
    whole, parts = (noise.read_table(tmp_path / name / "runs.csv").sort_values(key) for name in ("whole", "parts"))
    assert len(whole) == 2 * 4 * noise.REMAKES
    pd.testing.assert_frame_equal(whole.reset_index(drop=True), parts.reset_index(drop=True))


def test_the_spread_is_pooled_over_cells_with_its_chi_square_interval():
    found = noise_page.spread(np.array([[0.0, 2.0], [5.0, 9.0]]))  # variances 2 and 8
    assert found.value == pytest.approx(5**0.5)
    # 2 degrees of freedom: quantiles 0.0506 and 7.378
    assert (found.low, found.high) == pytest.approx(((10 / 7.378) ** 0.5, (10 / 0.0506) ** 0.5), rel=1e-3)


def test_components_part_what_a_run_shares_from_what_each_group_has():
    together = np.array([[[0.0, 10.0], [2.0, 12.0]]])  # both groups move by 2
    assert noise_page.components(together) == pytest.approx((2.0, 0.0))
    assert noise_page.correlation(together) == pytest.approx(1.0)
    apart = np.array([[[0.0, 12.0], [2.0, 10.0]]])  # against each other
    assert noise_page.components(apart) == pytest.approx((-2.0, 4.0))
    assert noise_page.correlation(apart) == pytest.approx(-1.0)


def test_components_find_the_variances_that_made_the_scores():
    generator = np.random.default_rng(0)
    shared, own = generator.normal(0, 0.2, (400, 4, 1)), generator.normal(0, 0.3, (400, 4, 5))
    scores = 0.5 + generator.normal(0, 1, (400, 1, 5)) + shared + own
    assert noise_page.components(scores) == pytest.approx((0.04, 0.09), rel=0.1)
    interval = noise_page.resampled(noise_page.correlation, scores)
    assert interval.low < 0.04 / 0.13 < interval.high


def test_the_ratio_of_deviations_is_of_pooled_ones():
    reference = np.array([[0.0, 2.0], [5.0, 9.0]])
    assert noise_page.deviation_ratio(reference / 2, reference) == pytest.approx(0.5)
    interval = noise_page.resampled(noise_page.deviation_ratio, reference / 2, reference)
    assert (interval.low, interval.high) == pytest.approx((0.5, 0.5))


def test_conditions_are_compared_on_the_cells_that_all_have_finished():
    cells = [("constant", 0), ("constant", 1), ("linear", 0)]
    table = pd.DataFrame([{"association": "a", "seed": seed, "condition": name} for name, seed in cells])
    assert list(noise_page.finished(table).seed) == [0, 0]
