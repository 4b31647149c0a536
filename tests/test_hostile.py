"""What files, flags and other people's models bring must not become wrong numbers, code, or files elsewhere."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accidents import in_time
from conftest import SMALL, only_run, tiny_run
from made_records import record
from safetensors.torch import load_file, save_file

from ocr_eval.analysis.table import build_table
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import replacing, replacing_folder, write_atomic
from ocr_eval.execution import run_pack
from ocr_eval.execution.jobs import Job, Placement, run_jobs
from ocr_eval.methods.pack import GradientPack
from ocr_eval.records.folder import RunFolder
from ocr_eval.report.tables import FORMATS, to_csv


class Killed(Exception):
    pass


@pytest.fixture
def stopped(finetune, tmp_path, monkeypatch):
    """The folder of a run of 4 epochs that was killed after 3, with a checkpoint."""
    honest = GradientPack.step
    monkeypatch.setattr(run_pack, "CHECKPOINT_EVERY", 0.0)

    def step(pack, lanes):
        if pack.learners[0].epochs_done == 3:
            raise Killed
        return honest(pack, lanes)

    monkeypatch.setattr(GradientPack, "step", step)
    with pytest.raises(Killed):
        finetune(tmp_path / "out", "--epochs", 4)
    monkeypatch.setattr(GradientPack, "step", honest)
    (metrics,) = (tmp_path / "out").glob("runs/*/*/*/*/metrics.jsonl")
    return metrics.parent


def state(run: Path) -> Path:
    """The one checkpoint that a killed run keeps."""
    (found,) = run.glob("checkpoint-*.pt")
    return found


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def lose_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


DAMAGE = {
    "a bit of the state": lambda run: flip(state(run)),
    "its end": lambda run: os.truncate(state(run), 1000),
    "its digest": lambda run: state(run).with_suffix(".sha256").unlink(),
    "metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "the first line of metrics": lambda run: lose_a_line(run / "metrics.jsonl"),
    "a bit of metrics": lambda run: flip(run / "metrics.jsonl", 0.1),
    "probes": lambda run: (run / "probes.jsonl").unlink(),
    "a bit of probes": lambda run: flip(run / "probes.jsonl"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_said_and_the_run_starts_over(stopped, finetune, tmp_path, damage):
    DAMAGE[damage](stopped)
    answer = finetune(tmp_path / "out", "--epochs", 4, "--quiet", "--json")
    assert answer.code == 0, answer.err
    assert len([line for line in answer.err.splitlines() if "checkpoint-" in line and "starts over" in line]) == 1
    found = json.loads(answer.out)
    whole = json.loads(finetune(tmp_path / "whole", "--epochs", 4, "--json").out)
    for each in (found, whole):
        del each["seconds"], each["memory"]
    assert found == whole


def test_an_older_whole_state_is_used_where_the_newer_is_damaged(stopped):
    run, newer = RunFolder(stopped), state(stopped)
    run.write_checkpoint(0, lambda file: file.write(newer.read_bytes()) and None)
    assert len(run.resumable()) == 2
    flip(newer)
    assert run.resumable() == {0}


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 1', "half"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_record_is_never_done(finetune, ocr_eval, tmp_path, content, finished):
    before = json.loads(finetune(tmp_path, "--json").out)
    run = only_run(tmp_path)
    if content == "half":
        content = (run / "result.json").read_text()[:2000]
    (run / "result.json").write_text(content)
    if not finished:
        (run / "status.json").unlink()
    assert not RunFolder(run).is_done()
    answer = finetune(tmp_path, "--json")
    assert answer.code == 0, answer.err
    assert "result.json" in answer.err
    assert "starts over" in answer.err
    assert json.loads(answer.out)["final"] == before["final"]


def test_a_record_of_a_newer_program_is_not_replaced(finetune, tmp_path):
    finetune(tmp_path)
    path = only_run(tmp_path) / "result.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    answer = finetune(tmp_path)
    assert answer.code == 2
    assert "schema version 2" in answer.err
    assert path.is_file()


def test_score_refuses_an_adapter_that_is_not_its_record_s(finetune, ocr_eval, tmp_path):
    finetune(tmp_path)
    run = only_run(tmp_path)
    assert ocr_eval("score", run).code == 0
    path = run / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, path)
    answer = ocr_eval("score", run)
    assert answer.code == 2
    assert "sha256" in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--lr", "--alpha", "--max-grad-norm", "--weight-decay", "--beta1", "--warmup"])
@pytest.mark.parametrize("value", ["1e400", "inf", "nan", "1e-42", "-inf"])
def test_no_number_but_a_finite_one_becomes_a_setting(finetune, tmp_path, flag, value):
    answer = finetune(tmp_path, f"{flag}={value}")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e-42, 1e300])
def test_nor_from_python_or_a_prevention(tiny, value):
    for field in ("lr", "alpha", "max_grad_norm"):
        with pytest.raises(UserError, match=field):
            tiny_run(tiny, **{field: value})
    with pytest.raises(UserError, match="strength"):
        tiny_run(tiny, prevent=(f"product-decay:strength={value}",))


def test_a_model_s_own_code_does_not_run_unless_trusted(finetune, model_files, tmp_path):
    folder = tmp_path / "with-code"
    shutil.copytree(model_files["llama"].with_suffix(""), folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    command = [sys.executable, "-m", "ocr_eval", "finetune", "--model", str(folder), "--assoc", "country-code"]
    command += ["-o", str(tmp_path / "out"), *SMALL]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    asked = subprocess.run(command, input="y\n" * 9, capture_output=True, text=True, check=False, env=environment)
    assert asked.returncode == 2, asked.stderr
    assert not (tmp_path / "ran").exists()
    assert "--trust-remote-code" in asked.stderr
    trusted = [*command, "--trust-remote-code", "--json"]
    done = subprocess.run(trusted, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").exists()
    assert json.loads(done.stdout)["remote_code"] is True


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("size", [100_000_000, 1e30])
def test_a_model_of_impossible_sizes_is_refused_at_once(ocr_eval, model_files, tmp_path, field, size):
    shutil.copytree(model_files["qwen2"].with_suffix(""), tmp_path / "large")
    config = json.loads((tmp_path / "large/config.json").read_text())
    for kept in ({**config, field: size}, {**config, "text_config": {field: size}}):
        kept.pop("layer_types", None)
        (tmp_path / "large/config.json").write_text(json.dumps(kept))
        with in_time(2):
            answer = ocr_eval("models", "check", tmp_path / "large", "--assoc", "country-code")
        assert answer.code == 2
        assert f"'{field}': {size}" in answer.err
        assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("value", ["account=a\n#SBATCH --uid=0", "comment=a\rb", "comment=a\x00b"])
def test_a_control_character_is_no_part_of_a_job(tmp_path, value):
    placement = Placement("slurm", slurm=(value,))
    with pytest.raises(UserError, match="control character"):
        run_jobs([Job("a", ("true",))], placement, tmp_path)


def test_partial_files_follow_no_link_and_are_nobody_else_s(tmp_path):
    (tmp_path / "victim").write_text("old")
    for name in ("file.partial", ".file.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "old"
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one.name != other.name
        one.write(b"one")
        other.write(b"other")
    assert (tmp_path / "file").read_bytes() == b"one"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    with replacing_folder(tmp_path / "f") as a, replacing_folder(tmp_path / "g") as b:
        assert a != b


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "country-code", "-o", ""),
        ("finetune", "country-code", "--output-dir="),
        ("sweep", "--assocs", "country-code", "-o", " "),
        ("report", "--output", ""),
        ("figures", "--to", ""),
        ("score", ""),
    ],
    ids=str,
)
def test_an_empty_word_is_refused(ocr_eval, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    answer = ocr_eval(*words)
    assert answer.code == 2
    assert "empty" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    (tmp_path / "flags.yaml").write_text("output-dir: ''\n")
    assert ocr_eval("finetune", "country-code", "--config", "flags.yaml").code == 2


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_of_a_csv_is_no_formula(begins):
    formula = f"{begins}cmd|' /C calc'!A0"
    table = build_table([record(association=formula, model=formula)], "first-token")
    cells = [cell for row in csv.reader(io.StringIO(to_csv(table))) for cell in row]
    assert f"'{formula}".replace("\r", " ") in cells
    numbers = [cell for cell in cells if cell.startswith("-")]
    assert all(float(cell) < 0 for cell in numbers)
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)


def test_text_after_a_row_of_tex_is_no_option_of_it():
    tex = FORMATS["tex"](
        build_table([record(association="a", model=name) for name in ("[5cm]a", "*b", r"\input{x}")], "first-token")
    )
    rows = [line.strip() for line in tex.partition(r"\midrule")[2].splitlines()]
    assert not any(line.startswith(("[", "*")) for line in rows)
    assert r"\input" not in tex.replace(r"\input it", "")


def test_env_json_says_what_the_bits_depend_on(finetune, tmp_path):
    finetune(tmp_path)
    found = json.loads((only_run(tmp_path) / "env.json").read_text())
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu_ability"] == torch.backends.cpu.get_cpu_capability()
