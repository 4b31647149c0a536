"""Settings as text: each is a field of a spec, a flag of finetune, an axis of sweep, and a line of the docs."""

import json
from pathlib import Path

import pytest
import typer.main
import yaml
from conftest import one_line
from test_cli_flags import planned

from ocr_eval.cli.app import app
from ocr_eval.specs import grid
from ocr_eval.specs.grid import Grid, read_sweep
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import DataSpec
from ocr_eval.specs.settings import SETTINGS

COMMANDS = typer.main.get_command(app).commands
OLD_SWEEP = Path(__file__).parent / "old_sweep"


def flags(command: str) -> dict[str, str]:
    """The help of a command's options."""
    return {parameter.opts[0]: parameter.help for parameter in COMMANDS[command].params}


@pytest.mark.parametrize("name", [*DataSpec.model_fields, *TrainSpec.model_fields, "dtype", "attention", "seed"])
def test_every_field_is_a_flag_and_an_axis_and_described_once(name):
    setting = SETTINGS[name]
    assert setting.field.description.endswith(".")
    assert flags("finetune")[f"--{name.replace('_', '-')}"].startswith(setting.field.description)
    assert flags("sweep")[f"--{setting.axis.replace('_', '-')}"].startswith(setting.field.description)
    if name not in ("seed", "dtype"):
        assert setting.axis in Grid.model_fields


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("epochs", "8,1-3", (1, 2, 3, 8)),
        ("lr", "1e-3, 2e-3", (1e-3, 2e-3)),
        ("templates", "0,0+2,all", ((0,), (0, 2), "all")),
        ("targets", "all-linear,q_proj+v_proj", ("all-linear", ("q_proj", "v_proj"))),
        ("schedule", "cosine", ("cosine",)),
        ("dtype", "BF16", ("bfloat16",)),
    ],
)
def test_text_and_values(name, text, values):
    setting = SETTINGS[name]
    assert setting.parse_axis(text) == values
    assert setting.parse_axis(",".join(map(setting.text, values))) == values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("epochs", text) for text in ("", "x", "0", "3-1", "1,,2", "1-", "0-99999", "2,1-3")),
        *(("lr", text) for text in ("fast", "-1", "1", "nan", "1e-3,0.001")),
        *(("templates", text) for text in ("first", "-1", "0++1", "0+,1")),
        *(("schedule", text) for text in ("cosin", "constant,constant")),
        ("targets", "q_proj+"),
    ],
)
def test_text_that_states_no_values(ocr_eval, name, text):
    with pytest.raises(ValueError, match=r"\.$"):
        SETTINGS[name].parse_axis(text)
    said = f"'--{name}': '{text}'" if text else f"--{name} is empty"
    assert said in one_line(ocr_eval("sweep", f"--{name}={text}"))


def test_flags_of_training_and_attention_reach_the_run(ocr_eval, tiny):
    given = "--targets q_proj+v_proj --max-grad-norm 0.5 --weight-decay 0.1 --beta1 0.8 --beta2 0.9 --schedule cosine"
    given += " --warmup 0.25 --attention eager --templates all"
    run = planned(ocr_eval("finetune", "country-code", "--model", tiny, *given.split(), "--dry-run"))
    assert run.model.attention == "eager"
    assert run.data.templates == tuple(range(len(run.association.fact.templates)))
    assert run.train.targets == ("q_proj", "v_proj")
    assert (run.train.max_grad_norm, run.train.weight_decay, run.train.betas) == (0.5, 0.1, (0.8, 0.9))
    assert (run.train.schedule, run.train.warmup) == ("cosine", 0.25)


def test_everything_can_be_swept_and_the_plan_is_a_file_of_its_flags(ocr_eval, tiny, tmp_path):
    axes = "--templates 0,0+1 --targets all-linear,q_proj+v_proj --attention eager,grouped --max-grad-norm 0.5,1"
    axes += " --schedule constant,cosine --assocs country-code --seeds 0 --n 3 --m-train 2 --m-test 3"
    planned = ocr_eval("sweep", "--models", tiny, *axes.split(), "-o", tmp_path / "out", "--dry-run")
    assert planned.code == 0, planned.err
    assert sum(" seed 0 " in line for line in planned.out.splitlines()) == 2**5
    assert yaml.safe_load(planned.out)["templates"] == ["0", "0+1"]
    (tmp_path / "s.yaml").write_text(planned.out)
    assert ocr_eval("sweep", "-C", tmp_path / "s.yaml", "-o", tmp_path / "out", "--dry-run").out == planned.out


def test_a_sweep_over_templates_and_attention_is_done(ocr_eval, tiny, tmp_path):
    axes = "--templates 0,0+1 --attention eager,sdpa --assocs country-code --seeds 0 --n 2 --m-train 1 --m-test 2"
    sweep = ["sweep", "--models", tiny, *axes.split(), "--epochs", 1, "-o", tmp_path, "-q"]
    assert ocr_eval(*sweep).code == 0
    made = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert {(run["attention"], tuple(run["data"]["templates"])) for run in made} == {
        (attention, templates) for attention in ("eager", "sdpa") for templates in ((0,), (0, 1))
    }
    assert "4 to do" not in ocr_eval(*sweep[:-1]).err


def test_sweeps_of_before_are_read(tmp_path, monkeypatch):
    """Their files state one m_test and no templates."""
    held = read_sweep(OLD_SWEEP)
    seeds = {"models": held.grid.models, "assocs": held.grid.assocs, "seeds": (0, 1, 2)}
    assert held.grid == Grid(**seeds, dtype="bfloat16", score_at="every:5")
    assert len(held.grid.specs()) == len(held.runs)
    monkeypatch.setattr(grid.DataSpec, "legacy", classmethod(lambda cls: {"probe_template": 1}))
    assert read_sweep(OLD_SWEEP).grid.probe_template == (1,), "not today's default"


def test_axes_of_a_grid_are_those_of_its_file():
    made = Grid(models=("m",), assocs=("a",), seeds=(0,), templates=("all", (0, 2)), targets=(["q_proj"], "all-linear"))
    assert Grid.model_validate(json.loads(made.model_dump_json()), strict=False) == made
    assert list(made.flags())[:3] == ["models", "assocs", "seeds"]
