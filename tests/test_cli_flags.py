"""How values get into a command: by position, flag, variable, file of flags, and the config.yaml of a run."""

import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import typer.main
import yaml
from conftest import one_line
from test_own_files import YAML

from ocr_eval.cli.app import app
from ocr_eval.cli.variables import commands, variables
from ocr_eval.common import yaml_files
from ocr_eval.records.config import config_yaml, read_run
from ocr_eval.specs.run import RunSpec

ROOT = typer.main.get_command(app)
SOURCES = Path(__file__).parent.parent / "ocr_eval"


def planned(answer) -> RunSpec:
    """The run of a --dry-run."""
    assert answer.code == 0, answer.err
    content = yaml.safe_load(answer.out)
    del content["schema_version"]
    return yaml_files.parse(RunSpec, content, "plan", strict=False)


# Variables


def test_every_flag_has_the_variable_of_its_name():
    without = {"--help", "--version", "--install-completion", "--show-completion"}
    ours = [command for words, command in commands(ROOT) if words.split()[:1] != ["toy"]]
    flags = [parameter for command in ours for parameter in command.params if parameter.opts[0].startswith("--")]
    assert len(flags) > 150
    for flag in flags:
        expected = "OCR_EVAL_" + flag.opts[0][2:].replace("-", "_").upper()
        assert flag.envvar == (None if flag.opts[0] in without else expected), flag.opts


def test_variables_that_are_read_elsewhere_are_known():
    read = {
        name for path in SOURCES.rglob("*.py") for name in re.findall(r'"OCR_EVAL_([A-Z_]*[A-Z])"', path.read_text())
    }
    assert read >= {"CACHE", "OFFLINE"}
    assert read <= variables(ROOT)


def test_a_misspelled_variable_is_named_once(ocr_eval):
    answer = ocr_eval("data", "list", OCR_EVAL_EPOCH="3")
    assert answer.code == 0
    assert answer.err.strip().splitlines() == [
        "ocr-eval: OCR_EVAL_EPOCH is not a variable of ocr-eval. Did you mean OCR_EVAL_EPOCHS?"
    ]


def test_a_variable_of_another_command_is_no_misspelling(ocr_eval):
    assert ocr_eval("data", "list", OCR_EVAL_EXECUTOR="slurm", OCR_EVAL_ADAPTER="x", OCR_EVAL_CACHE="y").err == ""


def test_a_worker_does_not_repeat_the_warning(ocr_eval, tmp_path):
    assert "is not a variable" not in ocr_eval("sweep", "--worker", 0, "-o", tmp_path, OCR_EVAL_EPOCH="3").err


def test_flags_of_the_results_can_come_from_variables(ocr_eval, tmp_path):
    assert "--by" in one_line(ocr_eval("table", tmp_path, OCR_EVAL_BY="colour"))
    assert "--port needs --serve" in one_line(ocr_eval("report", OCR_EVAL_PORT="0"))


# The association, by position or by flag


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["country-code"], {}),
        (["--assoc", "country-code"], {}),
        (["country-code", "--assoc", "country-code"], {}),
        ([], {"OCR_EVAL_ASSOC": "country-code"}),
        (["country-code"], {"OCR_EVAL_ASSOC": "city-language"}),
    ],
)
def test_ways_to_name_the_association(ocr_eval, tiny, arguments, variables):
    run = planned(ocr_eval("finetune", *arguments, "--model", tiny, "--dry-run", **variables))
    assert run.association.name == "country-code"


@pytest.mark.parametrize("command", [["finetune"], ["controls"], ["curve", "--m-train", "1"], ["data", "candidates"]])
def test_which_association(ocr_eval, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert f"'ocr-eval {' '.join(command[: 1 + (command[0] == 'data')])} country-code'" in one_line(ocr_eval(*command))
    line = one_line(ocr_eval(*command, "country-code", "--assoc", "city-language"))
    assert "'country-code'" in line
    assert "'city-language'" in line


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("country-code --seed 0,1", "--seeds 0,1"),
        ("--seed 0-2 --assoc=country-code", "--seeds 0-2"),
        ("--assoc country-code --seeds 0-2 --dry-run", "--seeds 0-2"),
        ("--assoc a,b --json", "--assocs a,b"),
        ("-q --assocs a", "--assocs a"),
        ("a,b", "--assocs a,b"),
        ("country-code --model a,b", "--models a,b"),
        ("country-code --method lora,full --lr 1e-3", "--methods lora,full"),
        ("country-code --m-train 0-3", "--m-train 0-3"),
    ],
)
def test_several_values_lead_to_sweep(ocr_eval, arguments, command):
    assert f"use 'ocr-eval sweep {command}'" in one_line(ocr_eval("finetune", *arguments.split()))


def test_a_file_with_a_comma_in_its_name_is_one_association(ocr_eval, tiny, tmp_path):
    (tmp_path / "a,b.yaml").write_text(YAML)
    run = ["--model", tiny, "--n", 3, "--candidates", "all", "--dry-run"]
    assert planned(ocr_eval("finetune", tmp_path / "a,b.yaml", *run)).association.name == "my-own"


# Files of flags


def test_a_config_file_takes_underscores_and_dashes(ocr_eval, tiny, tmp_path):
    (tmp_path / "c.yaml").write_text(f"model: {tiny}\nassoc: country-code\nm_train: 2\nm-test: 3\nbatch_size: 4\n")
    run = planned(ocr_eval("finetune", "-C", tmp_path / "c.yaml", "--dry-run"))
    assert (run.data.m_train, run.data.m_test, run.train.batch_size) == (2, 3, 4)
    (tmp_path / "c.yaml").write_text("m_train: 2\nm-train: 2\n")
    assert "given twice" in one_line(ocr_eval("finetune", "-C", tmp_path / "c.yaml"))


@pytest.fixture
def odd_run(model_files, tmp_path, ocr_eval) -> Path:
    """The config.yaml of a run with everything unusual, over files that are gone."""
    (tmp_path / "own.yaml").write_text(YAML.replace('speaks {answer}"', 'speaks {answer}", "{name} says {answer}"'))
    (tmp_path / "own.yaml").write_text(
        (tmp_path / "own.yaml").read_text().replace('in {answer}"', 'in {answer}", "{name} is in {answer}"')
    )
    flags = "--seed 7 --n 3 --m-train 2 --m-test 3 --candidates all --templates 0,1 --probe-template 1"
    flags += " --variant shuffled --method lora --lr 3e-3 --epochs 2 --batch-size 5 --rank 2 --alpha 3"
    run = ["--model", model_files["llama"], "--assoc", tmp_path / "own.yaml", *flags.split(), "--dry-run"]
    spec = planned(ocr_eval("finetune", *run))
    train = spec.train.model_copy(update={"targets": ("q_proj", "v_proj"), "max_grad_norm": 0.5})
    model = spec.model.model_copy(update={"attention": "eager", "dtype": "bfloat16", "name": "gone"})
    (tmp_path / "own.yaml").unlink()
    path = tmp_path / "kept.yaml"
    path.write_text(config_yaml(spec.model_copy(update={"train": train, "model": model})))
    return path


def test_the_config_of_a_run_repeats_that_very_run(ocr_eval, odd_run):
    answer = ocr_eval("finetune", "-C", odd_run, "--dry-run")
    assert planned(answer) == read_run(odd_run)
    assert "\n".join(line for line in answer.out.splitlines() if line[:1] != "#") + "\n" == odd_run.read_text()


def test_flags_beside_the_config_of_a_run_win(ocr_eval, odd_run):
    kept = read_run(odd_run)
    run = planned(ocr_eval("finetune", "city-language", "-C", odd_run, "--seed", 1, "--lr", "1e-4", "--dry-run"))
    assert (run.seed, run.train.lr, run.association.name) == (1, 1e-4, "city-language")
    assert (run.train.targets, run.train.epochs, run.data, run.model) == (
        kept.train.targets,
        kept.train.epochs,
        kept.data,
        kept.model,
    )
    with_variable = ocr_eval("finetune", "-C", odd_run, "--dry-run", OCR_EVAL_M_TEST="2")
    assert planned(with_variable).data.m_test == 2


def test_rates_follow_a_change_between_adapters_and_all_parameters(ocr_eval, odd_run):
    kept = read_run(odd_run)
    full = planned(ocr_eval("finetune", "-C", odd_run, "--method", "full", "--dry-run"))
    assert (full.train.lr, full.train.batch_size, full.train.epochs) == (kept.model.full.lr, 8, kept.train.epochs)
    odd_run.write_text(config_yaml(full))
    back = planned(ocr_eval("finetune", "-C", odd_run, "--method", "lora", "--dry-run"))
    assert (back.train.lr, back.train.batch_size) == (kept.model.train.lr, kept.model.train.batch_size)


def test_a_finished_run_is_found_by_its_own_config(ocr_eval, tiny, tmp_path):
    small = ["--n", 2, "--m-train", 1, "--m-test", 2, "--epochs", 1, "-q"]
    assert ocr_eval("finetune", "country-code", "--model", tiny, *small, "-o", tmp_path).code == 0
    (config,) = tmp_path.glob("runs/*/*/*/*/config.yaml")
    again = ocr_eval("finetune", "-C", config, "-o", tmp_path)
    assert again.out.splitlines()[-1] == f"done before: {config.parent}"
    assert ocr_eval("score", "-C", config).code == 0
    assert "has no effect with a run's folder" in one_line(ocr_eval("score", config.parent, "-C", config))


def test_studies_start_from_the_config_of_a_run(ocr_eval, odd_run):
    controls = ocr_eval("controls", "-C", odd_run, "--dry-run").out
    assert controls.count("gone my-own seed 7 lora lr 0.003 rank 2 epochs 2") == 3
    assert "m_train 2 real" in controls
    curve = ocr_eval("curve", "-C", odd_run, "--m-train", "2,3", "--dry-run").out
    assert curve.count("gone my-own seed 7 lora lr 0.003 rank 2 epochs 2") == 2
    assert "Missing option '--m-train'" in one_line(ocr_eval("curve", "-C", odd_run))


@pytest.mark.parametrize("command", [["sweep"], ["table"], ["models", "rehearse", "smollm2-135m"]])
def test_commands_that_are_not_about_one_run_refuse_its_config(ocr_eval, odd_run, command):
    line = one_line(ocr_eval(*command, "-C", odd_run))
    assert str(odd_run) in line
    assert "'ocr-eval finetune'" in line


def test_a_damaged_config_of_a_run(ocr_eval, odd_run):
    odd_run.write_text(odd_run.read_text().replace("m_test: 3", "m_tset: 3"))
    assert "unknown key 'data.m_tset'" in one_line(ocr_eval("finetune", "-C", odd_run))


# Help and completion


def test_commands_are_in_groups(ocr_eval):
    found = re.findall(r"^(\w+):\n((?:  .*\n)+)", ocr_eval("--help").out, re.M)
    named = {group: [line.split()[0] for line in lines.splitlines()] for group, lines in found}
    del named["Options"]
    assert list(named) == ["Teach", "Score", "Look", "Study", "Extend"]
    assert sorted(chain(*named.values())) == sorted(ROOT.commands), "every command is in one of them"


@pytest.mark.parametrize("command", [[], ["data"], ["models"], ["toy"]])
def test_no_summary_is_cut_at_80_columns(ocr_eval, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    answer = ocr_eval(*command, "--help")
    assert answer.code == 0
    assert ("Commands:" if command else "Teach:") in answer.out
    assert "..." not in answer.out.replace("COMMAND [ARGS]...", "")


def test_completion_in_bash(tmp_path):
    """The script that is shown, sourced by bash, completes commands, flags and names."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = """
        ocr-eval --install-completion >/dev/null && source ~/.bashrc
        complete -p ocr-eval >/dev/null || exit 1
        for line in "ocr-eval fin" "ocr-eval finetune cou" "ocr-eval finetune --model sm" "ocr-eval sweep --ass"; do
          COMP_WORDS=($line); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); _ocr_eval_completion ocr-eval
          echo "${COMPREPLY[*]}"
        done
    """
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["finetune", "country-code", "smollm2-135m", "--assocs"], done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sweep --facts t.csv --typo x", "No such option: --facts. It is one of 'ocr-eval finetune'."),
        ("sweep --epoch 3", "No such option: --epoch. Did you mean '--epochs'?"),
        ("sweep --nonsense=3", "No such option: --nonsense. See 'ocr-eval sweep --help'."),
        ("finetune --facts t.csv --holdout 20%", "No such option: --holdout. Did you mean '--hold-out'?"),
        ("finetune --facts t.csv --seeds 0-2", "a sweep whose --assocs names a YAML file of the table"),
        ("audit --facts t.csv", "No such option: --facts. Give FACTS without a flag."),
        ("audit t.csv --colums team", "No such option: --colums. Did you mean '--columns'?"),
        ("beliefs run --hold-out 20%", "No such option: --hold-out. It is one of 'ocr-eval finetune'."),
    ],
)
def test_a_flag_that_a_command_lacks_is_one_line_with_what_was_meant(ocr_eval, words, told):
    told_in = one_line(ocr_eval(*words.split()))
    assert told in told_in
    assert "Possible options" not in told_in
