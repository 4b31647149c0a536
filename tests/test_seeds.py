"""A seed is three things: the data, the order of training, and initialization. They can be set and varied apart."""

import json
import shlex

import pytest
from conftest import tiny_run
from made_records import record

from ocr_eval.analysis.table import build_table
from ocr_eval.api import UserError, make_run, records_frame
from ocr_eval.data.task import build_task
from ocr_eval.records.find import find_runs
from ocr_eval.records.select import settings_of
from ocr_eval.report.reproduce import command
from ocr_eval.specs.association import load_association
from ocr_eval.specs.run import make_run_spec

SMALL = ["--n", 3, "--m-train", 2, "--m-test", 3, "--epochs", 2, "--quiet"]


def seeded(tiny, seed, train_seed=None):
    spec = tiny_run(tiny)
    return make_run_spec(spec.model, spec.association, dict(spec.data), {}, seed, train_seed)


def test_a_run_has_one_name_however_its_seeds_are_stated(tiny):
    spec = seeded(tiny, 3)
    assert seeded(tiny, 3, 3) == spec
    names = {seeded(tiny, *seeds).fingerprint("weights") for seeds in ((3, 3), (3, None), (3, 0), (0, 3), (0, None))}
    assert len(names) == 4
    assert spec.fingerprint("weights") in names


def test_each_draw_has_the_seed_that_it_says(tiny):
    spec, plain = seeded(tiny, 1, 0), {seed: seeded(tiny, seed) for seed in (0, 1)}
    assert build_task(spec) == build_task(plain[1]) != build_task(plain[0])
    for purpose in ("order", "initialization"):
        assert spec.stream(purpose) == plain[0].stream(purpose) != plain[1].stream(purpose)


@pytest.fixture(scope="module")
def crossed(tmp_path_factory, model_files):
    """Two data seeds crossed with two train seeds, done by ``sweep``."""
    from ocr_eval.cli.app import run

    folder = tmp_path_factory.mktemp("crossed")
    flags = ["--models", model_files["llama"], "--assocs", "country-code", *SMALL, "-o", folder]
    assert run([*map(str, ["sweep", *flags, "--data-seed", "0-1", "--train-seed", "0-1"])]) == 0
    return folder


def test_a_sweep_crosses_data_with_training(crossed, ocr_eval):
    runs = find_runs(crossed).runs
    of = {run.folder.name.rpartition("-")[0]: run.record for run in runs}
    assert list(of) == ["seed0", "seed0-train1", "seed1", "seed1-train0"]
    for seed, other in (("seed0", "seed0-train1"), ("seed1", "seed1-train0")):
        assert of[seed].base == of[other].base, "the same people are asked"
        assert of[seed].train_loss != of[other].train_loss, "and learn from another start"
    assert [(r.seed, r.train_seed) for r in of.values()] == [(0, None), (0, 1), (1, None), (1, 0)]
    assert "seed1-train0" in ocr_eval("status", crossed).out
    again = ocr_eval("sweep", "-o", crossed)
    assert (again.code, "0 to do" in again.err) == (0, True)


def test_tables_average_trainings_and_tell_them_apart_when_asked(crossed, ocr_eval):
    cells = json.loads(ocr_eval("table", crossed, "--no-published", "-f", "json").out)["cells"]
    assert [cell["seeds"] for cell in cells] == [2]
    by = json.loads(ocr_eval("table", crossed, "--no-published", "-f", "json", "--by", "train-seed").out)["cells"]
    assert [(cell["train_seed"], cell["seeds"]) for cell in by] == [("0", 2), ("1", 2)]
    one = json.loads(ocr_eval("table", crossed, "--filter", "train-seed=0,seed=1", "-f", "json").out)["cells"]
    assert sum(not cell["published"] for cell in one) == 1
    frame = records_frame(find_runs(crossed).runs[i].record for i in (0, 1))
    assert set(zip(frame["seed"], frame["train_seed"], strict=True)) == {(0, 0), (0, 1)}


def test_a_run_is_repeated_by_its_command_and_by_its_config(crossed, ocr_eval, model_files, tmp_path):
    (run,) = (each for each in find_runs(crossed).runs if each.folder.name.startswith("seed1-train0"))
    (tmp_path / "tiny-llama.yaml").write_text(model_files["llama"].read_text())
    words = shlex.split(command(run.record))[1:]
    words[words.index("--model") + 1] = str(model_files["llama"])
    assert "done before" in ocr_eval(*words, "-o", crossed).out
    config = run.folder / "config.yaml"
    assert "done before" in ocr_eval("finetune", "-C", config, "-o", crossed).out
    other = ocr_eval("finetune", "-C", config, "-o", crossed, "--data-seed", 0).out
    assert ("done before" in other, "/seed0-" in other) == (True, True)


def test_records_of_before_have_one_seed():
    old = record(seed=4)
    assert (settings_of(old)["train_seed"], old.seeds) == ("4", "4")
    rows = build_table([old, record(seed=4, train_seed=1), record(seed=5)], "first-token", {}).rows
    assert [row.cells["city-language"].seeds for row in rows] == [2]


def test_the_python_interface_takes_them(tiny):
    model = tiny_run(tiny).model
    run = make_run(model, load_association("country-code"), seed=1, train_seed=2)
    assert (run.seed, run.train_seed) == (1, 2)
    assert make_run(model, "country-code", data_seed=1) == make_run(model, "country-code", seed=1, train_seed=0)
    assert make_run(model, "country-code", seed=2, data_seed=3) == make_run(model, "country-code", seed=3, train_seed=2)
    for seed in (0, 2):
        with pytest.raises(UserError, match="--seed has no effect with both --data-seed and --train-seed"):
            make_run(model, "country-code", seed=seed, data_seed=3, train_seed=1)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["finetune", "--train-seed", "-1"], "--train-seed"),
        (["finetune", "--data-seed", "0-2"], "sweep"),
        (["finetune", "--seed", 0, "--data-seed", 1, "--train-seed", 2], "--seed has no effect"),
        (["sweep", "--seeds", "0,1", "--data-seed", "0-1", "--train-seed", 2], "--seed has no effect"),
        (["sweep", "--train-seed", "1,1"], "1 is named twice"),
        (["controls", "--data-seed", "none"], "--data-seed"),
    ],
)
def test_bad_seeds_are_one_line(ocr_eval, tiny, tmp_path, flags, complaint):
    plural = "s" if flags[0] == "sweep" else ""
    what = [f"--model{plural}", tiny, f"--assoc{plural}", "country-code", "-o", tmp_path]
    answer = ocr_eval(flags[0], *what, *flags[1:])
    assert answer.code == 2
    assert complaint in answer.err
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "seeds"),
    [
        ([], [0, 1, 2]),
        (["--seeds", 1], [1]),
        (["--data-seed", 3, "--train-seed", "0-1"], [3, 3]),
        (["--seeds", 0, "--train-seed", "0-2"], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("study", [["controls"], ["curve", "--m-train", "2"]])
def test_studies_have_three_seeds_unless_told(ocr_eval, tiny, tmp_path, study, flags, seeds):
    answer = ocr_eval(*study, "country-code", "--model", tiny, "--n", 3, *flags, "--dry-run", "-o", tmp_path)
    assert answer.code == 0, answer.err
    conditions = 3 if study[0] == "controls" else 1
    assert answer.out.count("country-code seed") == conditions * len(seeds)
    assert answer.out.count(f"seed {seeds[0]} ") >= conditions
