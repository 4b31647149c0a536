"""The README's commands run as written, and its table is the program's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
