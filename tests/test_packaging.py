"""The wheel, installed outside the checkout, is whole."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pip(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (source,) = tmp_path.glob("*.tar.gz")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    (again,) = tmp_path.glob("*.whl")
    assert content(again) == content(wheel)


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path, tiny):
    top = {name.split("/")[0] for name in content(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ocr_eval", "ocr_toy"}

    venv.create(tmp_path / "venv", with_pip=False)
    pip("--python", tmp_path / "venv", "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OCR_EVAL_EPOCHS": "2"}

    def run(*arguments: str) -> str:
        command = [tmp_path / "venv/bin/python", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import ocr_eval; print(ocr_eval.__file__)").startswith(str(site))
    assert "country-code" in run("-m", "ocr_eval", "data", "list")
    assert "finetune" in run(str(tmp_path / "venv/bin/ocr-eval"), "--help")
    assert "llama3-8b" in run("-m", "ocr_eval", "models", "list")
    assert "ocr_eval_task.py" in run(
        "-m", "ocr_eval", "data", "export", "--assoc", "sport-music", "--format", "lm-eval", "-o", "exported"
    )
    assert "--assoc" in run("-m", "ocr_eval.docs.plain_loop", "--help")
    assert "120 statements" in run("-m", "ocr_eval", "finetune", "--assoc", "sport-music", "--dry-run")
    shown = run("-m", "ocr_eval", "demo", "--model", tiny)
    assert "| tiny-llama | LoRA " in shown
    assert "open results/demo/report.html in a browser" in shown
    assert (tmp_path / "results/demo/report.html").is_file()


def test_the_lock_names_every_dependency_of_a_developer_with_one_version():
    import tomllib

    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            locked[name.lower().replace("_", "-")] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (ours,) = (requirement for requirement in extras["dev"] if requirement.startswith("ocr-eval["))
    developed = ["dev", *ours.removeprefix("ocr-eval[").removesuffix("]").split(",")]
    for requirement in chain(project["dependencies"], *(extras[name] for name in developed)):
        name = requirement.split(";")[0].split(">=")[0].split("[")[0].strip().lower().replace("_", "-")
        assert name in locked or name == "ocr-eval", f"{name} is not in requirements.lock; run 'make lock'"
    assert not [version for version in locked.values() if "+" in version]
