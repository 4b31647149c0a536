"""The page "extend" is a package: installed and used, it opens every door without a patch."""

import ast
import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from ocr_eval.common.registry import MEASURES, METHODS, PREVENTIONS

PACKAGE = Path(__file__).parent.parent / "ocr_eval"
PAGE = (PACKAGE / "docs/extend.md").read_text()
BLOCKS = dict(re.findall(r"```(?:python|toml|yaml)\n# (\S+)\n(.*?)```", PAGE, re.S))
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder with the page's package installed in ``site``."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in BLOCKS.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "source/residents.yaml").rename(folder / "residents.yaml")
    backend = '\n[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    with (folder / "source/pyproject.toml").open("a") as file:
        file.write(backend + '[tool.hatch.build.targets.wheel]\npackages = ["my_ocr"]\n')
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True, capture_output=True)
    return folder


def test_each_file_of_the_page_is_short():
    assert set(BLOCKS) == {
        *("pyproject.toml", "residents.yaml", "my_ocr/method.py"),
        *("my_ocr/structure.py", "my_ocr/measure.py", "my_ocr/prevention.py"),
    }
    assert max(text.count("\n") for text in BLOCKS.values()) < 40


def test_what_the_package_brings_is_listed_run_recorded_and_shown(outside, tiny):
    where = os.pathsep.join(filter(None, [str(outside / "site"), os.environ.get("PYTHONPATH")]))
    small = {"EPOCHS": "2", "M_TEST": "2", "N": "3", "QUIET": "1", "MODEL": tiny, "OUTPUT_DIR": "out"}
    environment = {**os.environ, "PYTHONPATH": where, **{f"OCR_EVAL_{key}": value for key, value in small.items()}}

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "ocr_eval", *arguments],
            cwd=outside,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for door, name in (("methods", "lora-fa"), ("measures", "candidate-mass"), ("preventions", "late-layers")):
        assert f"{name} " in call(door, "list")
        assert json.loads(call(door, "list", "--json"))[-1]["source"] == "my-ocr 1.0"
    assert "reworded (my-ocr 1.0)" in call("data", "list")
    assert "The first layer that may change." in call("preventions", "show", "late-layers")
    assert "no cost model for 'lora-fa'" in call("finetune", "residents.yaml", "--method", "lora-fa", "--dry-run")
    for command in COMMANDS:
        call(*command.split()[1:])
    (path,) = (outside / "out").rglob("result.json")
    record = json.loads(path.read_text())
    assert (record["train"]["method"], record["train"]["prevent"]) == ("lora-fa", ["late-layers:first=1"])
    assert set(record["final"]["first-token"]) == {"as_taught", "reworded"}
    assert 0 < record["measures"]["candidate-mass"]["final"] < 1
    adapter = path.parent / "adapter/adapter_model.safetensors"
    check = (
        "import sys; from safetensors.torch import load_file; t = load_file(sys.argv[1]);"
        "print(sorted({n.split('.')[4] for n, v in t.items() if 'lora_B' in n and v.any()}))"
    )
    moved = subprocess.run([sys.executable, "-c", check, adapter], capture_output=True, text=True, check=True)
    assert moved.stdout.strip() == "['1']"
    table = call("table", "out", "--metric", "candidate-mass.final")
    assert "LoRA-FA + late-layers:first=1" in table
    assert "residents" in table
    call("figures", "out", "--text")
    call("report", "out", "--output", "page.html")


def test_without_the_package_its_runs_are_still_shown(outside, ocr_eval, tmp_path):
    assert "lora-fa + late-layers:first=1" in ocr_eval("table", outside / "out").out
    assert ocr_eval("report", outside / "out", "--output", tmp_path / "page.html").code == 0
    assert "lora-fa" in (tmp_path / "page.html").read_text()
    (run,) = (outside / "out").rglob("config.yaml")
    refused = ocr_eval("finetune", "-C", run, "-o", tmp_path)
    assert refused.code == 2
    assert "lora-fa" in refused.err


def test_a_package_that_takes_a_shipped_name_is_said(tmp_path):
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ocr_eval.methods]\nlora = rival:LORA\n")
    where = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "ocr_eval", "methods", "list"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": where}, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert "'lora'" in done.stderr


def test_nothing_outside_a_door_branches_on_what_is_behind_it():
    names = {name for registry in (METHODS, MEASURES, PREVENTIONS) for name in registry.names()}
    behind = ("methods", "preventions", "measures", "docs")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in behind:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            matched = [node.value] if isinstance(node, ast.MatchValue) else []
            for each in chain.from_iterable(ast.walk(operand) for operand in (*compared, *matched)):
                if isinstance(each, ast.Constant) and each.value in names:
                    found.append(f"{path.name}:{node.lineno} {each.value}")
    assert not found
