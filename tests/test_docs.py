"""The pages of documentation: their commands run as written, their links lead somewhere, help is what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reference import PAGES as GENERATED
from reference import reference
from stock_peft import train

from ocr_eval import __version__
from ocr_eval.common.files import to_jsonl
from ocr_eval.specs.association import load_association

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "ocr_eval/docs").glob("*.md"))
#: Jobs for a scheduler, fetching, services that do not end, and words that a tiny tokenizer cannot tell apart are tried
#: elsewhere.
NOT_HERE = re.compile(r"models pull|models rehearse|--serve|slurm|--executor|--report-to|second-hop|nonce,")


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("ocr-eval ") and not NOT_HERE.search(line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, model_files, tmp_path):
    """On a tiny model in the place of the default one; with the page's YAML files next to it."""
    shutil.copytree(model_files["llama"].with_suffix(""), tmp_path / "my-model")
    shutil.copytree(ROOT / "results/smollm2-135m", tmp_path / "results/smollm2-135m")
    shutil.copytree(ROOT / "data/example", tmp_path, dirs_exist_ok=True)
    for name, text in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", page.read_text(), re.S):
        (tmp_path / name).write_text(text)
    small = {"EPOCHS": "1", "M_TEST": "2", "M_TRAIN": "2", "QUIET": "1", "MODEL": str(model_files["llama"])}
    small["MODELS"] = small["MODEL"]
    if page.stem == "facts":  # a table has its own size
        del small["M_TEST"], small["M_TRAIN"]
    if page.stem == "shapes":  # few of their answers begin with tokens of their own for a tiny tokenizer
        small |= {"N": "2", "CANDIDATES": "in-use"}
    environment = {
        **os.environ,
        **{f"OCR_EVAL_{key}": value for key, value in small.items()},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    if page.stem == "external":  # what its reader trains in an environment with TRL
        rows = [{"prompt": "Ann Lee comes from", "completion": " Peru"}, {"prompt": "Bo", "completion": " is"}]
        (tmp_path / "rows.jsonl").write_text(to_jsonl(rows))
        train(tmp_path / "my-model", tmp_path / "rows.jsonl", tmp_path / "mine", epochs=1)
    script = "set -e\n" + "\n".join(f"{command} >/dev/null" for command in commands(page))
    done = subprocess.run(
        ["bash", "-xc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    for path in tmp_path.glob("*river-tea.yaml"):
        load_association(str(path))


@pytest.mark.parametrize("page", ["commands", *GENERATED])
def test_pages_that_are_generated_are_what_the_program_says(page):
    (path,) = (ROOT / "ocr_eval/docs").glob(f"{page}.[ms]*")
    assert path.read_text() == GENERATED.get(page, reference)(), "run 'make docs'"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files_that_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_every_page_is_named_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"ocr_eval/docs/{page.name}" in text


def test_citation_and_changelog_state_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited["version"] == __version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1] == __version__
