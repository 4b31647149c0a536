"""The study of rerun noise: remakes of a tiny run, and its statistics by numbers worked by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load, packed, tiny_run

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import noise
import noise_page

from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.specs.model import load_model_spec


@pytest.fixture(autouse=True)
def _door(monkeypatch):
    monkeypatch.setattr(PREVENTIONS, "_added", {"remake": noise.Remake, "mean-weights": noise.MeanWeights})


def prevented(spec, *prevent):
    return spec.model_copy(update={"train": spec.train.model_copy(update={"prevent": prevent})})


def weights_after(base, *specs, epochs=1):
    """All weights of each lane after some epochs of a pack, and after it is finished. [lanes, P] twice"""
    pack = packed(base, *specs)

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
    monkeypatch.setattr(noise, "CONDITIONS", {"constant": {}, "linear": {"schedule": "linear"}})
    trained = []

    def train(base, spec):
        trained.append((spec.seed, spec.association.name, spec.train.schedule))
        return [{"association": spec.association.name, "seed": spec.seed, "reading": "last", "score": 1 / 3}]

    monkeypatch.setattr(noise, "train_remakes", train)
    path, model = tmp_path / "new/runs.csv", load_model_spec(tiny)
    noise.train(path, model, part=1, parts=2, packs=2)
    assert trained == [(0, noise.ASSOCIATIONS[i], "linear") for i in (0, 1)]
    for _ in range(2):  # what is left, and nothing
        noise.train(path, model)
        assert len(trained) == len(set(trained)) == 2 * len(noise.ASSOCIATIONS) * len(noise.SEEDS)
    table = noise.read_table(path)
    assert sorted(trained) == sorted(table[["seed", "association", "condition"]].itertuples(index=False, name=None))
    assert set(table.score) == {0.33333}


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


def readings(condition, association, *scores):
    """Rows as noise.py writes them: remakes of a run with these scores."""
    of_run = {"condition": condition, "association": association, "seed": 0, "reading": "last"}
    same = {"facts": 1.0, "taught": 0.9, "ranks": "1 2", "nulls": "2 2", "ranks_in_use": "0 1"}
    return [
        {**of_run, **same, "remake": i, "score": score, "score_in_use": score}
        for i, score in enumerate(scores, start=1)
    ]


def test_a_condition_is_compared_on_the_cells_that_it_shares_with_the_reference():
    rows = [
        *readings("constant", "city-language", 0.9, 0.9),
        *readings("constant", "sport-music", 0.2, 0.6),
        *readings("linear", "sport-music", 0.3, 0.5),
        *readings("linear", "country-code", 0.0, 9.0),  # not finished under the reference
    ]
    page = noise_page.page(pd.DataFrame(rows), ["constant", "linear"])
    line = next(line for line in page.splitlines() if line.startswith("| linear; last epoch"))
    _, _, cells, remakes, deviation, _, ratio, *_, facts, taught, _ = line.split("|")
    assert (int(cells), int(remakes), int(facts), int(taught)) == (1, 2, 0, 2)
    assert deviation.startswith(" 0.141 ")
    assert ratio.startswith(" 0.500 ")
    assert "+0.40 (1.50)" in page  # the mean score and rank of either
    assert "+4.50" not in page
