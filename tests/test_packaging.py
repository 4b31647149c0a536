"""The wheel, installed outside the checkout, is whole."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_works_away_from_the_checkout(tmp_path, tiny):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ocr_eval", "ocr_toy"}

    venv.create(tmp_path / "venv", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OCR_EVAL_EPOCHS": "2"}

    def run(*arguments: str) -> str:
        command = [tmp_path / "venv/bin/python", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import ocr_eval; print(ocr_eval.__file__)").startswith(str(site))
    assert "country-code" in run("-m", "ocr_eval", "data", "list")
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
