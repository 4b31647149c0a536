"""Bad input is one line and exit 2; good input prints data on stdout and progress on stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import one_line

from ocr_eval.common.yaml_files import shipped


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "--assoc", "country-cod"], "Did you mean 'country-code'?"),
        (["finetune", "--assoc", "country-code", "--model", "smollm-135m"], "Did you mean 'smollm2-135m'?"),
        (["finetune", "--assoc", "./nowhere.yaml"], "No association file at './nowhere.yaml'"),
        (["finetune", "--assoc", "country-code", "--model", "./nowhere.yaml"], "No model file at './nowhere.yaml'"),
        (["finetune", "--assoc", "country-code", "--n", "21"], "n = 21 is more than the 20 pairs"),
        (["finetune", "--assoc", "country-code", "--n", "11"], "ten candidates cannot hold 11 answers in use"),
        (["finetune", "--assoc", "country-code", "--method", "full", "--rank", "4"], "--rank: method 'full'"),
        (["finetune", "--assoc", "country-code", "--method", "full", "--alpha", "4"], "--alpha: method 'full'"),
        (["report", "--port", "0"], "--port needs --serve"),
        (["report", "-o", "page.pdf"], "the page is HTML. Name it 'page.html'"),
        (["audit", "country-cod"], "Did you mean 'country-code'?"),
        (["audit", "country-code", "--columns", "city"], "--columns selects from a table, but 'country-code' is an"),
        (["audit", "country-code", "--csv"], "'country-code' is a single link. Give --json."),
        (["audit", "country-code", "--csv", "--json"], "Drop --csv"),
        (["curve", "staff.csv", "--m-train", "1"], "'staff.csv' is a table of facts, not an association. Give it as"),
        (["beliefs", "./nowhere"], "'nowhere' does not exist. Give a folder below <output>/runs"),
        (["finetune", "--assoc", "country-code", "--m-test", "999999"], "lower one of them"),
        (["finetune", "--assoc", "country-code", "--m-test", "0"], "'--m-test': '0'"),
        (["finetune", "--assoc", "country-code", "--lr", "-1"], "'--lr': '-1'"),
        (["finetune", "--assoc", "country-code", "--lr", "fast"], "'--lr'"),
        (["finetune", "--assoc", "country-code", "--epochs", "0"], "'--epochs': '0'"),
        (["finetune", "--assoc", "country-code", "--templates", "9"], "there is no template 9"),
        (["finetune", "--assoc", "country-code", "--templates", "first"], "'--templates': 'first'"),
        (["finetune", "--assoc", "country-code", "--candidates", "tem"], "Did you mean 'ten'?"),
        (["finetune", "--assoc", "country-code", "--method", "magic"], "Unknown method 'magic'"),
        (["finetune", "--assoc", "country-code", "--device", "tpu"], "--device"),
        (["finetune", "--assoc", "country-code", "--variant", "shuffled", "--m-train", "0"], "has none"),
        (["finetune", "--asoc", "country-code"], "--assoc"),
        (["finetune"], "--assoc"),
        (["fintune"], "No such command 'fintune'. Did you mean 'finetune'? See 'ocr-eval --help'."),
        (["data", "shw"], "Did you mean 'show'? See 'ocr-eval data --help'."),
        (["finetune", "--assoc", "country-code", "--epochs", "x"], "'--epochs': 'x'. It should be an integer."),
        (["table", "--bogus"], "See 'ocr-eval table --help'."),
        (["compare", "seed=0", "sed=1"], "Unknown key of condition: 'sed'. Did you mean 'seed'?"),
        (["table", sys.executable], "is a file. Give a folder that contains runs"),
        (["models", "check", "~nobody-of-this-name/m"], "unknown home folder"),
        (["finetune", "--assoc", "~nobody-of-this-name/a.yaml"], "unknown home folder"),
        (["models", "check", "./"], "'.' has no tokenizer (tokenizer.json). Give a folder"),
        (["sweep", "--variants", "shufled"], "Did you mean 'shuffled'?"),
        (["score"], "What should be scored?"),
        (["score", "./nowhere"], "'nowhere' does not exist"),
        (["score", "./run", "--seed", "0"], "--seed has no effect with a run's folder"),
        (["score", "./run", "--n", "4"], "--n has no effect with"),
        (["score", "./run", "--model", "gemma3-270m"], "--model has no effect with"),
        (["score", "./run", "--assoc", "country-code"], "--assoc has no effect with"),
        (["score", "./run", "--adapter", "./run"], "--adapter has no effect with"),
        (["score", "--assoc", "country-code", "--adapter", "./nowhere"], "--adapter nowhere contains no adapter"),
        (["table", "./nowhere"], "There is no folder"),
        (["table", "."], "No finished run"),
        (["table", ".", "--by", "model,model"], "--by 'model,model' names model twice. Give each once."),
        (["table", ".", "--components", "--no-published"], "--components prints its own table"),
        (["report", ".", "--serve", "-o", "page.html"], "--output has no effect with --serve"),
        (["compare", ".", ".", "."], "both A and B are folders. Drop RUNS."),
        (["score", "--assoc", "country-code", "--per-request", "3"], "--per-request needs --endpoint"),
        (["finetune", "country-code", "--measures", "hedge,hedge"], "names hedge twice"),
        (["finetune", "country-code", "--score-at", "3,99"], "there is no epoch 99; the last is 16"),
        (["sweep", "--epochs", "4,8", "--score-at", "9", "--dry-run"], "there is no epoch 9; the last is 8"),
        (["controls", "country-code", "--score-at", "99", "--dry-run"], "there is no epoch 99"),
        (["data", "show", "sport-musik"], "Did you mean 'sport-music'?"),
        (["models", "pull", "llama-8b"], "Did you mean 'llama3-8b'?"),
        (["models", "pull", "smollm2-135m", "--force", "--offline"], "which needs the network"),
    ],
)
def test_bad_input(ocr_eval, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in one_line(ocr_eval(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_looked_at_before_it_is_scored(ocr_eval, tmp_path):
    run = ["score", "--assoc", "city-language", "--adapter", tmp_path]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert f"is a run's folder. Give it without --adapter: ocr-eval score {tmp_path}" in one_line(ocr_eval(*run))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "--method full has no adapter" in one_line(ocr_eval(*run, "--method", "full"))


def test_a_model_with_its_own_code_can_be_scored_by_its_runs_folder(ocr_eval, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ocr_eval("score", "./run", "--trust-remote-code", OCR_EVAL_TRUST_REMOTE_CODE="0")
    assert "'run' does not exist" in one_line(answer)


def test_an_output_folder_that_cannot_be_written_is_found_first(ocr_eval, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    run = ["finetune", "--model", tiny, "--assoc", "city-language", "-o", tmp_path / "file" / "out"]
    assert "cannot be written" in one_line(ocr_eval(*run))


def test_a_flag_can_come_from_its_variable(ocr_eval, tmp_path):
    answer = ocr_eval("finetune", "--assoc", "city-language", "--dry-run", OCR_EVAL_EPOCHS="7", OCR_EVAL_M_TEST="1")
    assert answer.code == 0
    assert "7 epochs" in answer.out
    assert "subjects: 25 in 5 groups" in answer.out


def test_dry_run_writes_nothing(ocr_eval, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = ocr_eval("finetune", "--model", tiny, "--assoc", "city-language", "--dry-run")
    assert answer.code == 0
    assert "120 statements, 3 epochs, 45 steps" in answer.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [(["data", "list"], ""), (["sweep", "--dry-run"], " Finished work is kept; rerun the command to resume.")],
)
def test_only_what_makes_runs_says_that_it_can_resume(ocr_eval, monkeypatch, words, said):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ocr_eval.specs.grid.read_sweep", stop)
    monkeypatch.setattr("ocr_eval.cli.data.load_association", stop)
    answer = ocr_eval(*words)
    assert (answer.code, answer.err) == (130, f"ocr-eval: Interrupted.{said}\n")


def test_data_list_and_show(ocr_eval):
    kinds = {row["name"]: row["kind"] for row in json.loads(ocr_eval("data", "list", "--json").out)}
    assert (
        kinds.items()
        >= {
            "city-language": "causal",
            "city-language-cf": "counterfactual",
            "country-code": "spurious",
            "profession-color": "spurious",
            "sport-music": "spurious",
            "reversal": "causal",
        }.items()
    )
    assert ["Peru", "Go"] in [line.split() for line in ocr_eval("data", "show", "country-code").out.splitlines()]


def test_data_export_loads_as_a_dataset(ocr_eval, tmp_path):
    from datasets import load_dataset

    answer = ocr_eval("data", "export", "--assoc", "city-language", "-o", tmp_path / "out")
    assert answer.out.split() == [
        str(tmp_path / "out" / name) for name in ("train.jsonl", "probes.jsonl", "manifest.json")
    ]
    files = {"train": str(tmp_path / "out/train.jsonl"), "probes": str(tmp_path / "out/probes.jsonl")}
    loaded = {
        name: load_dataset("json", data_files=path, cache_dir=str(tmp_path))["train"] for name, path in files.items()
    }
    assert (len(loaded["train"]), len(loaded["probes"])) == (120, 200)
    assert all(row["answer"] in row["candidates"] for row in loaded["probes"])
    assert all(row["text"] == f"{row['prompt']} {row['answer']}" for row in loaded["train"])


def test_an_export_next_to_that_of_another_run_is_refused(ocr_eval, tmp_path):
    export = ("data", "export", "-o", tmp_path, "--format")
    assert ocr_eval(*export, "jsonl", "city-language").code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other in (["country-code"], ["city-language", "--seed", 1]):
        assert "train.jsonl is not what manifest.json desc" in one_line(ocr_eval(*export, "prompt-completion", *other))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for same in ("prompt-completion", "hub"):
        assert ocr_eval(*export, same, "city-language").code == 0


def test_methods_show_gives_the_settings_of_training(ocr_eval):
    shown = {name: ocr_eval("methods", "show", name).out for name in ("lora", "full", "dpo", "in-context")}
    flags = {name: [line.split()[0] for line in out.splitlines() if line[:2] == "--"] for name, out in shown.items()}
    assert {"--lr", "--epochs", "--rank", "--targets"} <= set(flags["lora"])
    assert set(flags["lora"]) - set(flags["full"]) - {"---------------"} == {"--rank", "--alpha", "--targets"}
    assert "rejected" in shown["dpo"]
    assert "It has no settings." in shown["in-context"]
    assert not any("``" in out for out in shown.values())


def test_models_list_names_all_seven(ocr_eval):
    rows = {row["name"]: row for row in json.loads(ocr_eval("models", "list", "--json").out)}
    assert set(rows) == {
        "gemma2-9b",
        "gemma3-270m",
        "llama3-8b",
        "mistral-7b",
        "olmo-7b",
        "qwen2-7b",
        "smollm2-135m",
    }
    assert rows["llama3-8b"]["weights"]["gated"] is True
    assert rows["smollm2-135m"]["on_disk"] is False


def test_doctor(ocr_eval):
    findings = json.loads(ocr_eval("doctor", "--json").out)
    assert findings["offline"] is True
    assert findings["libraries"]["torch"].startswith("2.")
    assert ocr_eval("doctor").code == 0


@pytest.mark.parametrize("command", [[], ["data"], ["models"], ["toy"]])
def test_without_arguments_the_help_is_shown(ocr_eval, command):
    answer = ocr_eval(*command)
    assert answer.code == 2
    assert answer.err.startswith("Usage: ")
    assert ("Commands:" if command else "Teach:") in answer.err


def test_help_imports_nothing_heavy():
    code = "import sys; from ocr_eval.cli.app import run; run(['--help'])"
    code += "; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "peft", "pandas", "numpy", "scipy"):
        assert f"'{heavy}'" not in out


def test_models_show_gives_defaults_and_reasons(ocr_eval, tiny, model_files):
    shown = ocr_eval("models", "show", "smollm2-135m").out
    assert "lr 0.002, 16 epochs, batches of 32, rank 16, alpha 32" in shown
    assert "method full: lr 0.0001, 16 epochs, batches of 8" in shown
    assert "'ocr-eval models pull smollm2-135m'" in shown
    assert (shipped("models") / "smollm2-135m.yaml").read_text() in shown
    assert f"weights: on disk in {Path(tiny).with_suffix('')}" in ocr_eval("models", "show", tiny).out
    for model in ("some-lab/some-model", model_files["qwen2"].with_suffix("")):
        content = yaml.safe_load(ocr_eval("models", "show", model).out)
        assert content == json.loads(ocr_eval("models", "show", model, "--json").out)
        assert content["train"]["rank"] == 16
    assert "Did you mean" in one_line(ocr_eval("models", "show", "smollm-135m"))
