"""The README's commands run as written, and its table is the program's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ocr_eval.analysis.controls import compare_conditions
from ocr_eval.cli.studies import conditions_text
from ocr_eval.records.find import find_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: Small enough that the whole README runs in under a minute; the flags in the text go first.
SMALL = {"OCR_EVAL_EPOCHS": "1", "OCR_EVAL_M_TEST": "2", "OCR_EVAL_M_TRAIN": "2", "OCR_EVAL_QUIET": "1"}


@pytest.mark.real_model
def test_the_commands_of_the_readme_run(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copytree(ROOT / "results/smollm2-135m", tmp_path / "results/smollm2-135m")
    shutil.copytree(ROOT / "data/example", tmp_path / "data/example")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
    ours = [command for command in commands if command.startswith("ocr-eval ")]
    assert len(ours) >= 10
    environment = {**os.environ, **SMALL, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in ours:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_two_commands_at_the_top_are_targets_of_the_makefile():
    first = re.findall(r"```sh\n(.*?)```", README, re.S)[0]
    targets = [shlex.split(line, comments=True)[1] for line in first.splitlines()]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


PUBLISHED = (ROOT / "ocr_eval/docs/published.md").read_text()
SHOWN = re.findall(r"<!-- table: (.*?) -->\n(.*?)<!-- /table -->", README + PUBLISHED, re.S)


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_table_is_what_the_program_makes_of_the_records(ocr_eval, monkeypatch, command, shown):
    monkeypatch.chdir(ROOT)
    made = ocr_eval("table", *shlex.split(command))
    assert made.code == 0
    assert shown.strip() == made.out.split("\n\n")[0].strip()


def test_the_controls_in_the_readme_are_those_of_the_records():
    command, shown = re.findall(r"```sh\n(ocr-eval controls.*?)\n```\n\n```\n(.*?)```", README, re.S)[0]
    association = shlex.split(command)[-1]
    records = find_runs(ROOT / "results/smollm2-135m", ROOT / "results/controls").records
    runs = [run for run in records if run.model == "smollm2-135m" and run.association == association and run.seed < 3]
    assert shown.strip() == conditions_text(compare_conditions(runs, "first-token"))


CLAIMED = [
    " ".join(command.split())
    for command in re.findall(r"\*\*Command\*\*: `(.*?)`", (ROOT / "ocr_eval/docs/claims.md").read_text(), re.S)
]
WITHOUT_A_MODEL = [command for command in CLAIMED if "toy check" not in command]


@pytest.mark.parametrize("command", WITHOUT_A_MODEL)
def test_the_command_of_a_claim_runs_on_the_records(ocr_eval, monkeypatch, command):
    assert len(CLAIMED) == 7
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    assert program == "ocr-eval"
    answer = ocr_eval(*arguments)
    assert answer.code == 0, answer.err
    assert "smollm2-135m" in answer.out or "city-language" in answer.out


def test_figures_of_the_symbolic_study_are_those_of_its_own_page():
    study = (ROOT / "toy/README.md").read_text()
    sections = PUBLISHED.partition("symbolic model")[2].partition("## Related experiments")[0]
    rows = [line.split("|")[-2] for line in sections.splitlines() if line.startswith("| ")]
    figures = [figure for row in rows for figure in re.findall(r"\d*\.\d{2,}", row)]
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in study] == []


def test_every_shipped_name_is_in_the_readme():
    from ocr_eval.common.yaml_files import shipped_names

    for name in [*shipped_names("models"), *shipped_names("templates")]:
        assert name in README
