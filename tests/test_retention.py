"""What of the facts that were known before is kept, and what that depends on."""

import json

import numpy as np
import pytest
from made_records import record, write
from msgspec.structs import replace

from ocr_eval.specs.model import TrainSpec

#: kept = 0.9 + 0.1 x fitted known - 0.4 x fitted unknown, but for the noise of the last two.
POINTS = [(0, 0, 0.9), (10, 0, 0.95), (0, 10, 0.7), (5, 15, 0.625), (20, 0, 1.0)]


def run(seed, known, unknown, kept, **changes):
    found = {"facts": 200, "base_known": 80, "kept": kept, "taught": 20}
    found |= {"fitted_known": known, "fitted_unknown": unknown}
    return record(seed=seed, run=f"run-{seed}", measures={"known": found}, **changes)


def test_a_hand_worked_regression(ocr_eval, tmp_path):
    folder = write(tmp_path, *(run(seed, *point) for seed, point in enumerate(POINTS)))
    answer = json.loads(ocr_eval("retention", folder, "--json").out)
    fit = answer["regression"]
    assert (fit["intercept"], fit["known"], fit["unknown"]) == pytest.approx((0.9, 0.1, -0.4))
    assert fit["r2"] == pytest.approx(1)
    (cell,) = answer["cells"]
    assert cell["runs"] == 5
    assert cell["kept"] == pytest.approx((0.9 + 0.95 + 0.7 + 0.625 + 1) / 5)
    assert cell["fitted_unknown"] == pytest.approx((0 + 0 + 10 + 15 + 0) / 5 / 20)
    shown = ocr_eval("retention", folder).out
    assert "kept = 0.900 +0.100 x fitted known -0.400 x fitted unknown" in shown
    assert "84%" in shown  # kept, on average


def test_held_out_facts_are_regressed_where_runs_have_them(ocr_eval, tmp_path):
    runs = [run(seed, *point) for seed, point in enumerate(POINTS)]
    refused = ocr_eval("retention", write(tmp_path / "a", *runs), "--explain", "held-out").out
    assert "No regression: Only 0 runs have held-out facts" in refused
    for i, (each, (*_, accuracy)) in enumerate(zip(runs, POINTS, strict=True)):
        of = each.final["first-token"]
        held_out = replace(of["test_entailment"], top1=accuracy / 2)
        runs[i] = replace(each, final={**each.final, "first-token": {**of, "held_out": held_out}})
    answer = ocr_eval("retention", write(tmp_path / "b", *runs), "--explain", "held-out")
    assert "held-out = 0.450 +0.050 x fitted known -0.200 x fitted unknown" in answer.out, answer.err


def test_runs_of_several_designs_have_no_common_regression(ocr_eval, tmp_path):
    runs = [run(seed, *point) for seed, point in enumerate(POINTS)]
    other = run(9, 3, 3, 0.8, association="country-code", train=TrainSpec(rank=4))
    answer = ocr_eval("retention", write(tmp_path, *runs, other))
    assert answer.code == 0
    assert "No regression: These runs differ in rank and association" in answer.out
    assert "kept = " in ocr_eval("retention", tmp_path, "--filter", "association=city-language").out


def test_what_noise_is_left_over_is_in_r2(ocr_eval, tmp_path):
    points = [(0, 0, 0.8), (0, 0, 1.0), (10, 0, 0.9), (0, 10, 0.5)]
    folder = write(tmp_path, *(run(seed, *point) for seed, point in enumerate(points)))
    fit = json.loads(ocr_eval("retention", folder, "--json").out)["regression"]
    mean = (0.8 + 1.0 + 0.9 + 0.5) / 4
    assert fit["r2"] == pytest.approx(1 - 0.02 / sum((kept - mean) ** 2 for *_, kept in points))


def test_intervals_are_those_of_a_jackknife_over_seeds(ocr_eval, tmp_path):
    """Against the closed form: without cluster g, b changes by -(X'X)^-1 X_g' (1 - H_gg)^-1 u_g."""
    points = [(0, 0, 0.9), (10, 2, 0.93), (4, 16, 0.6), (12, 0, 0.99), (2, 11, 0.7), (9, 9, 0.72), (1, 1, 0.85)]
    seeds = [0, 0, 0, 1, 1, 2, 2]
    runs = [
        replace(run(seed, *point), run=f"run-{i}") for i, (seed, point) in enumerate(zip(seeds, points, strict=True))
    ]
    folder = write(tmp_path, *runs)
    fit = json.loads(ocr_eval("retention", folder, "--json").out)["regression"]
    x = np.array([[1, known / 20, unknown / 20] for known, unknown, _ in points])
    inverse, hat = np.linalg.inv(x.T @ x), x @ np.linalg.inv(x.T @ x) @ x.T
    left = np.array([kept for *_, kept in points]) - hat @ [kept for *_, kept in points]
    changes = []
    for seed in range(3):
        own = np.array(seeds) == seed
        changes.append(inverse @ x[own].T @ np.linalg.solve(np.eye(own.sum()) - hat[np.ix_(own, own)], left[own]))
    half = 4.302653 * np.sqrt(2 / 3 * (np.array(changes) ** 2).sum(axis=0))
    for name, expected in zip(("intercept", "known", "unknown"), half, strict=True):
        assert fit["intervals"][name] == pytest.approx([fit[name] - expected, fit[name] + expected], rel=1e-5)
    assert (fit["seeds"], fit["runs"]) == (3, 7)
    low, high = fit["intervals"]["unknown"]
    shown = ocr_eval("retention", folder).out.splitlines()[-1]
    assert f"fitted unknown [{low:+.2f}, {high:+.2f}]" in shown
    assert "leaving out each of 3 seeds" in shown


def test_without_seeds_to_leave_out_there_are_no_intervals(ocr_eval, tmp_path):
    alone = [replace(run(0, *point), run=f"run-{i}") for i, point in enumerate(POINTS)]
    needed = [run(seed, *point) for seed, point in enumerate([(0, 0, 0.8), (0, 0, 1.0), (10, 0, 0.9), (0, 10, 0.5)])]
    for name, runs in (("alone", alone), ("needed", needed)):
        folder = write(tmp_path / name, *runs)
        assert json.loads(ocr_eval("retention", folder, "--json").out)["regression"]["intervals"] is None
        assert "No intervals: leaving out one seed" in ocr_eval("retention", folder).out


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([(0, 20, 0.5)] * 5, "do not differ"),
        ([(0, 20, 0.5), (10, 0, 0.7)], "needs four"),
        ([(known, unknown, 0.5) for known, unknown, _ in POINTS], "nothing to explain"),
    ],
)
def test_without_enough_runs_there_are_means_and_no_regression(ocr_eval, tmp_path, points, says):
    folder = write(tmp_path, *(run(seed, *point) for seed, point in enumerate(points)))
    answer = ocr_eval("retention", folder)
    assert answer.code == 0
    assert "city-language" in answer.out
    assert f"No regression: {says}" in answer.out or says in answer.out.splitlines()[-1]
    assert json.loads(ocr_eval("retention", folder, "--json").out)["regression"] is None


def test_what_cannot_be_counted_is_not(ocr_eval, tmp_path):
    odd = run(0, 0, 0, 0.5), run(1, 0, 0, 0.5)
    odd[0].measures["known"]["taught"] = 0
    odd[1].measures["known"]["base_known"] = None
    answer = ocr_eval("retention", write(tmp_path, *odd))
    assert (answer.code, answer.out) == (2, "")
    assert "No record has retention" in answer.err


def test_records_that_cannot_be_read_are_told_by_the_exit_code(ocr_eval, tmp_path):
    folder = write(tmp_path, *(run(seed, *point) for seed, point in enumerate(POINTS)))
    next(folder.rglob("result.json")).write_text("{")
    for more in ([], ["--json"]):
        answer = ocr_eval("retention", folder, *more)
        assert (answer.code, "is not a valid record" in answer.err) == (1, True)


def test_the_regression_says_where_its_runs_are_of_several_models(ocr_eval, tmp_path):
    runs = [run(seed, *point, model=f"m{seed % 2}") for seed, point in enumerate(POINTS)]
    assert "runs of 2 models: m0 and m1" in ocr_eval("retention", write(tmp_path, *runs)).out


def test_records_without_retention_are_no_table(ocr_eval, tmp_path):
    answer = ocr_eval("retention", write(tmp_path, record()))
    assert answer.code == 2
    assert "No record has retention" in answer.err
