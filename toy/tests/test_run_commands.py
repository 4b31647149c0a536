"""toy train and toy sweep: options, presets, and what is printed and written."""

import json
from pathlib import Path

import pytest
from ocr_toy import run_commands
from ocr_toy.cli import app
from ocr_toy.errors import ToyError

from test_toy_cli import TINY, TINY_TASK, runner


def test_train_prints_json_and_writes_the_same(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    arguments = ["train", *TINY, "--steps", "40", "--json", "--output", str(target)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document == json.loads(target.read_text())
    assert document["records"][-1]["step"] == 40
    assert set(document["records"][-1]["loss"]) == {"train_fact", "train_entailment", "test_fact", "test_entailment"}
    assert document["records"][-1]["norms"]["nuclear"] > 0
    assert runner.invoke(app, arguments).stdout == result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_every_option_of_a_run_reaches_it() -> None:
    given = (
        "--param merged --n 3 --m-train 2 --m-test 1 --noise 2 --seq-len 5 --d-h 7 --fix-kq --attention softmax --mlp 4"
        " --optimizer gd --lr 0.01 --decay 0.1 --product-decay 0.2 --init symmetric --init-scale 0.3 --steps 2"
        " --batch 6 --seed 4 --record-every 1 --precision float64 --json"
    )
    spec = json.loads(runner.invoke(app, ["train", *given.split()]).stdout)["spec"]
    assert spec == {
        "task": {"n_pairs": 3, "m_train": 2, "m_test": 1, "n_noise": 2, "seq_len": 5},
        "model": {
            "param": "merged",
            "d_h": 7,
            "trainable_kq": False,
            "attention": "softmax",
            "mlp_width": 4,
            "loss_floor": 0,
        },
        "train": {
            "optimizer": "gd",
            "lr": 0.01,
            "decay": 0.1,
            "product_decay": 0.2,
            "init": "symmetric",
            "init_scale": 0.3,
            "steps": 2,
            "batch": 6,
            "seed": 4,
            "record_every": 1,
            "norms_every": 1,
            "draws": 4,
            "precision": "float64",
        },
    }
    for noise, seq_len in ((5, 16), (0, 3)):
        arguments = ["train", *TINY, "--noise", str(noise), "--steps", "1", "--json"]
        assert json.loads(runner.invoke(app, arguments).stdout)["spec"]["task"]["seq_len"] == seq_len


def test_the_official_preset_is_the_official_codes_and_yields_to_options() -> None:
    def spec(*given: str) -> dict[str, dict[str, object]]:
        arguments = ["train", *TINY, "--preset", "official", "--steps", "1", "--json", *given]
        found: dict[str, dict[str, object]] = json.loads(runner.invoke(app, arguments).stdout)["spec"]
        return found

    merged, factorized, own = spec("--param", "merged"), spec(), spec("--seed", "7", "--init-scale", "0.5")
    assert [s["model"]["loss_floor"] for s in (merged, factorized)] == [1e-8, 1e-8]
    assert [(s["train"]["init"], s["train"]["seed"]) for s in (merged, factorized)] == [
        ("symmetric", 42),
        ("gaussian", 42),
    ]
    assert merged["train"]["init_scale"] == 1e-4
    assert factorized["train"]["init_scale"] == pytest.approx(1 / 128**0.5)
    assert (own["train"]["seed"], own["train"]["init_scale"], own["model"]["loss_floor"]) == (7, 0.5, 1e-8)


def test_the_official_rank_sweep_starts_as_the_official_code() -> None:
    arguments = ["sweep", *TINY_TASK, "--preset", "official", "--values", "2", "--seeds", "5", "--steps", "1", "--json"]
    document = json.loads(runner.invoke(app, arguments).stdout)
    assert document["base"]["train"]["init_scale"] == pytest.approx(1 / 128**0.5)
    assert (document["base"]["train"]["steps"], document["base"]["model"]["loss_floor"]) == (1, 1e-8)
    assert [row["seed"] for row in document["rows"]] == [5]


def test_train_prints_a_table() -> None:
    result = runner.invoke(app, ["train", *TINY, "--steps", "20", "--record-every", "10", "--m-train", "0"])
    lines = result.stdout.splitlines()
    assert lines[0].split() == list(run_commands.HEADINGS)
    assert [line.split()[0] for line in lines[1:]] == ["0", "10", "20"]
    assert lines[1].split()[1] == "-"


def test_large_seeds_are_used_to_the_last_digit() -> None:
    seeds = [9007199254740993, 9007199254740992]
    text = ",".join(map(str, seeds))
    for given in (["--over", "seed", "--values", text], ["--over", "m_train", "--values", "1", "--seeds", text]):
        result = runner.invoke(app, ["sweep", *TINY, *given, "--steps", "1", "--json"])
        assert [row["seed"] for row in json.loads(result.stdout)["rows"]] == seeds


def test_a_sweep_can_be_read_back_as_a_rank_sweep(tmp_path: Path) -> None:
    from ocr_toy.files import read_json
    from ocr_toy.sweep import rank_sweep

    target = tmp_path / "ranks.json"
    arguments = ["sweep", *TINY_TASK, "--values", "2,4", "--seeds", "0,1", "--steps", "30", "--output", str(target)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0
    found = rank_sweep(read_json(target))
    assert (found.steps, found.n_pairs) == (30, 3)
    assert [p.value for p in found.points] == [2, 4]
    assert f"{found.points[0].test_losses[0]:.3g}" in result.stdout


def test_a_rank_sweep_may_have_one_seed_and_must_be_one() -> None:
    from ocr_toy.sweep import rank_sweep

    point = {"value": 3, "test_losses": [0.5]}
    document = {"over": "d_h", "base": {"train": {"steps": 9}, "task": {"n_pairs": 5}}, "points": [point]}
    found = rank_sweep(document)
    assert (found.points[0].test_losses, found.points[0].test_loss) == ((0.5,), None)
    wrong_points = [{"value": "x"}, {"value": 0}, {"test_losses": []}, {"test_losses": [-1]}, {"test_losses": [1e400]}]
    changes = [
        {"over": "seed"},
        {"points": []},
        *({"points": [point, point | change]} for change in wrong_points),
        {"base": document["base"] | {"train": {"steps": 1e400}}},
        {"base": document["base"] | {"train": {"steps": 0}}},
        {"base": document["base"] | {"task": {"n_pairs": 1}}},
    ]
    for wrong in ([], {}, *(document | change for change in changes)):
        with pytest.raises(ToyError, match=r"^rank sweep: not such"):
            rank_sweep(wrong)
