"""Variance components and clustered errors: hand-worked cases, known truths, and the table through the command line."""

import numpy as np
import pytest
from made_records import answers, record, write

from ocr_eval.analysis.components import clustered, components
from ocr_eval.scoring.ranks import HeldOut
from ocr_eval.specs.run import SCORINGS


def test_hand_worked_components():
    """Rows of means 2 and 6, columns of 3 and 5, and nothing else: the rest is 0."""
    found = components({(0, 0): 1, (0, 1): 3, (1, 0): 5, (1, 1): 7})
    assert (found.data, found.training, found.rest) == (8.0, 2.0, 0.0)
    mixed = components({(0, 0): 0, (0, 1): 2, (1, 0): 2, (1, 1): 0})  # all of it interaction: MS_rest 4
    assert (mixed.data, mixed.training, mixed.rest) == (-2.0, -2.0, 4.0)


@pytest.mark.parametrize("keys", [[(0, 0), (1, 1)], [(0, 0), (0, 1)], [(0, 0), (0, 1), (1, 0)]])
def test_seeds_that_are_not_crossed_have_no_components(keys):
    assert components(dict.fromkeys(keys, 0.5)) is None


def test_known_components_are_found_on_average():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        data, training = rng.normal(0, 0.3, size=4), rng.normal(0, 0.1, size=5)
        scores = {(d, t): data[d] + training[t] + rng.normal(0, 0.2) for d in range(4) for t in range(5)}
        found.append(components(scores))
    assert np.mean([each.data for each in found]) == pytest.approx(0.09, abs=0.006)
    assert np.mean([each.training for each in found]) == pytest.approx(0.01, abs=0.002)
    assert np.mean([each.rest for each in found]) == pytest.approx(0.04, abs=0.002)


def test_hand_worked_clusters():
    """Deviations +1, +1, -1, -1 of four groups: two seeds add up to 2 and -2, two pairs to 0 and 0."""
    found = clustered([0, 0, 1, 1], ["a", "b", "a", "b"], [3.0, 3.0, 1.0, 1.0])
    by_seed, by_pair, by_group = (8 / 16) * 2, 0.0, (4 / 16) * 4 / 3
    assert (found.seed, found.pair) == (pytest.approx(by_seed**0.5), by_pair)
    assert found.both == pytest.approx((by_seed + by_pair - by_group) ** 0.5)
    with pytest.raises(ValueError, match="single cluster"):
        clustered([0, 0], ["a", "b"], [1.0, 2.0])


def worded(rank, words) -> dict[str, HeldOut]:
    held = answers(rank, 2.0)
    return dict.fromkeys(SCORINGS, HeldOut(held.subject, held.target, held.ranks, answers=list(words)))


def test_the_table_of_components(ocr_eval, tmp_path):
    crossed = [
        record(seed=d, train_seed=None if t == d else t, run=f"{d}-{t}", rank=rank, held_out=worded(rank, words))
        for d, words in enumerate(("abcde", "abcfg"))
        for t, rank in enumerate((0.2 + d, 0.4 + d))
    ]
    old = [record("sport-music", "spurious", seed=seed) for seed in range(2)]
    answer = ocr_eval("table", write(tmp_path, *crossed, *old), "--components")
    assert answer.code == 0, answer.err
    lines = [[part.strip() for part in line.split("|")] for line in answer.out.splitlines()]
    assert lines[2][2:4] == ["city-language", "2"]
    assert [cell.split()[0] for cell in lines[2][5:8]] == ["0.35", "0.07", "0.00"]  # means 0.85 and 0.35; 0.65 and 0.55
    assert all(float(cell) >= 0 for cell in lines[2][8:10])
    assert lines[3][2:] == ["sport-music", "2", "0.00", *[""] * 7]
    assert "--data-seed 0-2 --train-seed 0-2" in answer.out
    assert "Older records" in answer.out
    assert ocr_eval("table", tmp_path, "--components", "--short").code == 2
    next(tmp_path.rglob("result.json")).write_text("{")
    assert ocr_eval("table", tmp_path, "--components").code == 1
