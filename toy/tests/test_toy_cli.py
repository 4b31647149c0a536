"""The commands: what goes where, exit codes, and errors of one line, also when mounted."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ocr_eval.cli.app import run
from ocr_toy import check as checks
from ocr_toy import cli, study_commands
from ocr_toy.cli import app
from typer.testing import CliRunner

runner = CliRunner()
TINY_TASK = ["--n", "3", "--m-test", "1", "--noise", "0", "--batch", "12"]
TINY = [*TINY_TASK, "--d-h", "4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--m-test", "0"], "m_test = 0: nothing is held out; use m_test >= 1"),
        (["train", "--n", "1"], "n = 1: a wrong answer needs a second pair; use n >= 2"),
        (["train", "--d-h", "0"], "d_h = 0: W_O and W_V need a width; use d_h >= 1"),
        (["train", "--seq-len", "2"], "seq_len = 2: too short for subject, relation and EOS; use 3 or more"),
        (["train", "--param", "both"], "param = both: unknown; use factorized or merged"),
        (["train", "--batch", "0"], "batch = 0"),
        (["sweep", "--batch", "2"], "batch = 2: fewer than the 3 trained question sets"),
        (["train", "--init", "symmetric"], "init = symmetric with param = factorized"),
        (["sweep", "--over", "width"], "over = width"),
        (["sweep", "--values", "3,x"], "values = 3,x"),
        (["sweep", "--values", "3.5"], "values = 3.5: not integers"),
        (["check", "--solver", "a" * 6000], "solver = AAAA"),
        (["check", "--solver", "a\n\x1b[31m"], r"solver = A \x1b[31M: unknown"),
        (["sweep", "--param", "merged"], "over = d_h with param = merged"),
        (["check", "--solver", "mosek"], "solver = MOSEK: unknown; use CLARABEL or SCS"),
        (["check", "--grid", "3,1"], "grid = 3,1"),
        (["check", "--grid", "3,0,1"], "m_train = 0"),
        (["open", "--question", "why", "-o", "new/open.json"], "question = why"),
        (["mitigate", "--method", "prayer", "-o", "new/found.json", "--figures", "drawn"], "method = prayer"),
        (["open", "--question", "mitigation"], "question = mitigation"),
        (["mitigate", "--method", "prayer"], "method = prayer: unknown"),
        (["mitigate", "--seeds", "0,0"], "seeds: one is given twice"),
        (["complete", "--n", "2"], "n = 2: use 3 to 20"),
        (["complete", "--seeds", "x"], "seeds = x: not integers"),
        (["systems", "--system", "solar"], "system = solar: unknown"),
        (["systems", "--system", "grokking", "--seeds", "-1"], "seed = -1"),
        (["systems", "--system", "stages", "--seeds", "0,1,2,3,4,5,6,7,8,9,10"], "seeds = 11"),
        (["check", "--figures", "pictures"], "figures = pictures: "),
        (["sweep", "--preset", "mine"], "preset = mine: unknown; use published or official"),
        (["train", "--preset", "mine"], "preset = mine: unknown; use published or official"),
        (["open", "--seeds", "0"], "seeds = 1"),
        (["open", "--seeds", "0,0"], "seeds: one is given twice"),
        (["sweep", "--seeds", "0,1,2,3,4,5,6,7,8,9,10"], "seeds = 11"),
        (["sweep", "--seeds", "1,1"], "seeds: one is given twice"),
        (["sweep", "--over", "seed", "--seeds", "5,6"], "seeds = 5,6 with over = seed: give it as"),
        (["sweep", "--seeds", "3_0"], "seeds = 3_0: not integers"),
        (["sweep", "--over", "decay", "--values", "0.1_5"], "values = 0.1_5: not numbers"),
        (["sweep", "--over", "d_h", "--d-h", "64"], "d_h = 64 with over = d_h: give it as"),
        (["sweep", "--over", "init", "--init-scale", "1e-4"], "init_scale = 0.0001 with over = init"),
        (["sweep", "--values", "3,3"], "values of d_h: one is given twice"),
        (["check", "--rank-steps", "0"], "rank_steps = 0"),
        (["check", "--ranks", "4,2"], "ranks = 2: too narrow"),
        (["check", "--seed", "-1"], "seed = -1"),
        (["figures", "--seed", "-1"], "seed = -1"),
        (["train", "--n", "100000000"], "n = 100000000: "),
        (["train", "--m-train", "100000000"], "m_train = 100000000: "),
        (["train", "--m-test", "100000000"], "m_test = 100000000: "),
        (["train", "--d-h", "100000000000000"], "d_h = 100000000000000: "),
        (["train", "--batch", "10000000"], "batch = 10000000: "),
        (["train", "--mlp", "10000000000000"], "mlp = 10000000000000: "),
        (["train", "--seq-len", "1" + 500 * "0"], "seq_len = 1000"),
        (["sweep", "--batch", "50000"], "runs = 21: "),
        (["check", "--grid", "3000,1000,1000"], "grid = 3000,1000,1000: "),
        (["train", "--init-scale", "inf"], "init_scale = inf"),
        (["figures", "--rank-sweep", "absent.json"], "file = absent.json"),
    ],
)
@pytest.mark.parametrize("mounted", [False, True])
def test_bad_input_is_one_line_on_stderr_and_exit_2(
    arguments: list[str],
    says: str,
    mounted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (run(["toy", *arguments]) if mounted else cli.main(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{'ocr-eval' if mounted else 'ocr_toy'}: {says}")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "figures"])
def test_a_solver_that_is_not_installed_names_the_extra(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    assert cli.main([command, "-o", str(tmp_path / "out/checks.json")]) == 2
    assert list(tmp_path.iterdir()) == []
    fix = "install the extra: pip install 'ocr-eval[theory]'"
    assert capsys.readouterr().err == f"ocr_toy: solver = SCS: the package cvxpy is not installed; {fix}\n"


def test_an_unwritable_output_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", *TINY, "--output", str(tmp_path / "file" / "run.json")]) == 2
    assert capsys.readouterr().err.startswith(f"ocr_toy: output = {tmp_path / 'file'}")


def test_an_output_that_is_no_plain_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, tmp_path):
        assert cli.main(["train", *TINY, "--output", str(target)]) == 2
        assert capsys.readouterr().err == f"ocr_toy: output = {target}: is not a plain file; name a file\n"
    assert pipe.is_fifo()


def test_systems_print_checks_write_json_and_draw(tmp_path: Path) -> None:
    output, pictures = tmp_path / "found.json", tmp_path / "pictures"
    arguments = ["systems", "--system", "scan-and-snap", "--seeds", "2", "--output", str(output)]
    result = runner.invoke(app, [*arguments, "--figures", str(pictures)])
    assert result.exit_code == 0
    assert "published log" in result.stdout
    report = json.loads(output.read_text())["reports"]["scan-and-snap"]
    assert report["published"][0] == 3.52636
    assert all(check["passed"] for check in report["checks"])
    assert sorted(p.name for p in pictures.iterdir()) == [f"scan_and_snap.{kind}" for kind in ("pdf", "png", "svg")]


@pytest.mark.parametrize("passed", [True, False])
def test_check_all_adds_every_study(passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from ocr_toy.report import Check, Report

    def study(name: str) -> object:
        wrong = 0.0 if passed or name != "stages" else 1.0
        return SimpleNamespace(report=lambda seeds, say: Report(name, "paper", [Check(name, "n", 0.0, wrong, 0.1)], []))

    monkeypatch.setattr(checks, "run_checks", _stub(True))
    modules = {f"ocr_toy.{module}": study(name) for name, module in study_commands.SYSTEMS.items()}
    monkeypatch.setattr(study_commands, "importlib", SimpleNamespace(import_module=modules.__getitem__))
    result = runner.invoke(app, ["check", "--all", "--json"])
    assert result.exit_code == (0 if passed else 1)
    assert set(json.loads(result.stdout)["reports"]) == set(study_commands.SYSTEMS)
    assert f"{len(study_commands.SYSTEMS) + (1 if passed else 0)} of {len(study_commands.SYSTEMS) + 1}" in result.stderr


def test_every_study_has_a_report() -> None:
    for module in study_commands.SYSTEMS.values():
        assert callable(importlib.import_module(f"ocr_toy.{module}").report)


def _stub(passed: bool) -> object:
    def run(spec: checks.CheckSpec, say: checks.Say) -> list[checks.Check]:
        return [checks.Check(1, "named", 1.0, 1.0 if passed else 2.0, 0.1)]

    return run


@pytest.mark.parametrize("passed", [True, False])
def test_check_exits_1_if_any_check_fails(passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "run_checks", _stub(passed))
    result = runner.invoke(app, ["check"])
    assert result.exit_code == (0 if passed else 1)
    assert ("pass" if passed else "FAIL") in result.stdout
    document = json.loads(runner.invoke(app, ["check", "--json"]).stdout)
    assert document["checks"][0]["passed"] is passed


def test_interruption_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run_checks", interrupted)
    assert cli.main(["check"]) == 130
    assert capsys.readouterr().err == "ocr_toy: Interrupted.\n"
    assert run(["toy", "check"]) == 130
    assert capsys.readouterr().err == "ocr-eval: Interrupted.\n"


def test_running_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checks, "run_checks", exhausted)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err.startswith("ocr_toy: not enough memory")
    assert run(["toy", "check"]) == 1
    assert "not enough memory" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ocr_toy.cli import app;"
        "assert CliRunner().invoke(app, ['check', '--help']).exit_code == 0;"
        "print([m for m in ('torch', 'cvxpy', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--m-test", "0"], "m_test = 0"),
        (["train", "--d-h", "wide"], "Invalid value for '--d-h'"),
        (["train", "--depth", "2"], "No such option: --depth"),
        (["teach"], "No such command 'teach'"),
    ],
)
def test_a_mistake_is_one_line_when_run_as_a_module(arguments: list[str], says: str) -> None:
    found = subprocess.run([sys.executable, "-m", "ocr_toy", *arguments], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert found.stderr.startswith(f"ocr_toy: {says}")


def test_help_and_no_command_as_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    assert "--m-test" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "ocr_toy:" not in capsys.readouterr().err
