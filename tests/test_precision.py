"""``dtype: auto``: what a device computes fast, decided by what it is, and kept by whatever began in it."""

import json
import platform
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import load, packed, tiny_run

import ocr_eval
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.methods.train import train_epoch
from ocr_eval.models import precision
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.records.folder import RunFolder
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.specs.model import load_model_spec

WITH_BF16 = {"avx2": True, "avx512_f": True, "avx512_bf16": True}
WITHOUT_BF16 = {"avx2": True, "avx512_bf16": False}


def on_processor(monkeypatch, capabilities, system="Linux"):
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: capabilities)
    monkeypatch.setattr(platform, "system", lambda: system)


@pytest.mark.parametrize(
    ("capabilities", "system", "dtype"),
    [
        (WITH_BF16, "Linux", "bfloat16"),
        (WITHOUT_BF16, "Linux", "float32"),
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, "Linux", "float32"),
        ({"amx_bf16": True}, "Linux", "bfloat16"),
        ({"neon": True, "bf16": True}, "Linux", "bfloat16"),
        ({"neon": True, "bf16": True}, "Darwin", "float32"),
        ({"neon": True}, "Linux", "float32"),
        ({}, "Windows", "float32"),
    ],
)
def test_a_cpu_by_its_flags(monkeypatch, capabilities, system, dtype):
    on_processor(monkeypatch, capabilities, system)
    assert precision.choose("cpu").dtype == dtype


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float16")]
)
def test_a_gpu_by_its_compute_capability(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    chosen = precision.choose("cuda")
    assert chosen.dtype == dtype
    assert chosen.untested


def test_a_gpu_that_is_elsewhere_and_one_of_apple(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.choose("cuda").dtype == "bfloat16"
    assert precision.choose("mps").dtype == "float32"


def without_dtype(model_file, folder=None):
    """The YAML of a tiny model without its own precision."""
    content = {key: value for key, value in yaml.safe_load(model_file.read_text()).items() if key != "dtype"}
    content["weights"]["path"] = str(folder or model_file.with_suffix(""))
    return content


@pytest.fixture
def auto(model_files, tmp_path):
    """A tiny Llama whose weights are stored in bfloat16 and whose YAML states no precision."""
    load(model_files["llama"]).network.to(torch.bfloat16).save_pretrained(tmp_path / "stored")
    load(model_files["llama"]).tokenizer.save_pretrained(tmp_path / "stored")
    path = tmp_path / "auto.yaml"
    path.write_text(yaml.safe_dump(without_dtype(model_files["llama"], tmp_path / "stored")))
    return path


def test_a_folder_is_not_rounded(monkeypatch, model_files, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    stored = tmp_path / "float32.yaml"
    stored.write_text(yaml.safe_dump(without_dtype(model_files["llama"])))
    assert precision.choose_for(load_model_spec(str(stored)), "cpu").dtype == "float32"
    assert precision.choose_for(load_model_spec(str(auto)), "cpu").dtype == "bfloat16"
    on_processor(monkeypatch, WITHOUT_BF16)
    assert precision.choose_for(load_model_spec(str(auto)), "cpu").dtype == "float32"


def test_models_that_overflow_in_float16_are_refused(ocr_eval, monkeypatch, tmp_path, model_files):
    answer = ocr_eval(
        "finetune", "--model", model_files["gemma2"], "--assoc", "country-code", "--dtype", "fp16", "-o", tmp_path / "o"
    )
    assert answer.code == 2
    assert "float16" in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "o" / "runs").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(precision.UserError, match=r"7\.5"):
        precision.choose_for(load_model_spec("gemma2-9b"), "cuda")
    assert precision.choose_for(load_model_spec("llama3-8b"), "cuda").dtype == "float16"


SMALL = ["--n", 3, "--m-train", 2, "--m-test", 2, "--epochs", 2]


@pytest.mark.parametrize(
    ("short", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("auto", "float32"), ("float16", "float16")]
)
def test_the_record_holds_the_precision_that_a_run_had(ocr_eval, monkeypatch, auto, tmp_path, short, dtype):
    on_processor(monkeypatch, WITHOUT_BF16)
    run = ["finetune", "--model", auto, "--assoc", "country-code", "--dtype", short, *SMALL, "-o", tmp_path / "o"]
    answer = ocr_eval(*run, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["dtype"] == dtype
    (config,) = (tmp_path / "o").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["model"]["dtype"] == dtype


def test_a_run_and_its_controls_keep_their_precision_on_another_machine(ocr_eval, monkeypatch, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    flags = ["--model", auto, "--assoc", "country-code", *SMALL, "-o", tmp_path / "o"]
    first = ocr_eval("finetune", *flags, "--json")
    on_processor(monkeypatch, WITHOUT_BF16)
    again = ocr_eval("finetune", *flags)
    assert "done before" in again.out
    assert json.loads(first.out)["dtype"] == "bfloat16"
    plan = ocr_eval("finetune", *flags, "--dry-run", "--json")
    assert json.loads(plan.out)["dtype"] == "bfloat16"
    assert ocr_eval("controls", *flags, "--seeds", 0).code == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "o").rglob("result.json")]
    assert [record["dtype"] for record in records] == ["bfloat16"] * 3


@pytest.mark.parametrize("names_its_runs", [True, False], ids=["now", "an older file"])
def test_a_sweep_keeps_its_precision_on_another_machine(ocr_eval, monkeypatch, auto, tmp_path, names_its_runs):
    on_processor(monkeypatch, WITH_BF16)
    flags = ["--models", auto, "--assocs", "country-code", "--seeds", "0-1", "--n", 3, "--m-train", 2, "--m-test", 2]
    assert ocr_eval("sweep", *flags, "--epochs", 1, "-o", tmp_path).code == 0
    state = json.loads((tmp_path / "sweep.json").read_text())
    assert {spec["model"]["dtype"] for spec in state["specs"].values()} == {"bfloat16"}
    for folder in [path.parent for path in tmp_path.rglob("status.json")]:
        RunFolder(folder).clear()
    if not names_its_runs:
        older = {key: value for key, value in state.items() if key != "specs"} | {"dtypes": {str(auto): "bfloat16"}}
        (tmp_path / "sweep.json").write_text(json.dumps(older))
    on_processor(monkeypatch, WITHOUT_BF16)
    again = ocr_eval("sweep", "-o", tmp_path)
    assert again.code == 0, again.err
    assert "2 to do" in again.err
    assert {json.loads(path.read_text())["dtype"] for path in tmp_path.rglob("result.json")} == {"bfloat16"}
    fresh = ocr_eval("sweep", *flags, "--epochs", 1, "-o", tmp_path / "fresh", "--dry-run")
    assert "in float32" in fresh.out


def test_doctor_says_what_it_would_choose_and_how_fast_each_is(ocr_eval, monkeypatch):
    on_processor(monkeypatch, WITHOUT_BF16)
    found = json.loads(ocr_eval("doctor", "--json").out)["dtype"]
    assert found["cpu"].startswith("float32 (")
    assert "bfloat16" in found["cpu"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_float16_learns_what_float32_learns(tiny, method):
    """Adapters and masters are fp32, the softmax too, and the loss is scaled: two epochs are close in both."""
    losses, scores = {}, {}
    for dtype in ("float32", "float16"):
        spec = tiny_run(tiny, method=method, **({} if method == "full" else {"rank": 4})).in_precision(dtype)
        base = load_base(spec.model, locate(spec.model), "cpu", whole=method == "full")
        dataset = build_task(spec)
        pack = attach(base, [spec], [training_tokens(base.tokenizer, dataset)])
        assert all(p.dtype == torch.float32 for p in pack.learners[0].parameters.values())
        losses[dtype] = [train_epoch(pack, [0])[0] for _ in range(2)]
        scores[dtype] = score_candidates(pack.view(), probe_tokens(base.tokenizer, dataset)).logprobs["sequence"]
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.02)
    assert scores["float16"] == pytest.approx(scores["float32"], abs=0.3)


@pytest.mark.parametrize("prevent", [(), ("anchor:strength=0.1",)])
def test_gradients_of_float16_are_scaled_back(tiny, prevent, monkeypatch):
    """Also those of a term that a prevention adds, which would underflow without the scale."""
    found = {}
    for dtype in ("float32", "float16"):
        spec = tiny_run(tiny, rank=4, prevent=prevent).in_precision(dtype)
        base = load_base(spec.model, locate(spec.model), "cpu")
        pack = packed(base, spec)
        pack.learners[0].optimizer.step = lambda: None  # keep the first gradient, unclipped
        base.accelerator.clip_grad_norm_ = lambda *_: None
        if prevent:  # the divergence from the base alone, away from its minimum
            for each in pack.learners[0].factors:
                each.b.copy_(0.05 * torch.randn(each.b.shape, generator=torch.Generator().manual_seed(1)))
            pack.adapters.refresh()

            def nothing(pack, batches, sizes):
                pack.adapters.zero_grad()
                return dict.fromkeys(batches, 0.0)

            monkeypatch.setattr("ocr_eval.methods.train._backward", nothing)
        train_epoch(pack, [0])
        found[dtype] = pack.learners[0].parameters["lora_B"].grad.clone()
    assert found["float16"] == pytest.approx(found["float32"], rel=0.05, abs=float(found["float32"].abs().max()) * 0.01)


def test_a_run_keeps_its_precision_where_its_weights_are_still_to_be_fetched(ocr_eval, monkeypatch, auto, tmp_path):
    from ocr_eval.models import weights

    on_processor(monkeypatch, WITH_BF16)
    flags = ["finetune", "country-code", "--model", auto, *SMALL, "-o", tmp_path / "o"]
    assert ocr_eval(*flags).code == 0
    on_processor(monkeypatch, WITHOUT_BF16)
    monkeypatch.setattr(weights, "cached", lambda spec: None)
    for path in ("status.json", "result.json"):
        next((tmp_path / "o").rglob(path)).unlink()
    assert ocr_eval(*flags).code == 0
    assert [json.loads(path.read_text())["dtype"] for path in (tmp_path / "o").rglob("result.json")] == ["bfloat16"]


def test_a_failed_run_pins_no_precision(ocr_eval, monkeypatch, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    flags = ["finetune", "country-code", "--model", auto, *SMALL, "-o", tmp_path / "o"]
    assert ocr_eval(*flags, "--dtype", "fp32").code == 0
    (folder,) = {path.parent for path in (tmp_path / "o").rglob("status.json")}
    (folder / "status.json").unlink()
    (folder / "failure.json").write_text('{"reason": "The loss became nan."}')
    assert json.loads(ocr_eval(*flags, "--json").out)["dtype"] == "bfloat16"


def test_a_sweep_takes_up_what_finetune_began_and_what_its_model_now_states(ocr_eval, monkeypatch, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    assert ocr_eval("finetune", "country-code", "--model", auto, *SMALL, "-o", tmp_path / "o").code == 0
    on_processor(monkeypatch, WITHOUT_BF16)
    flags = ["sweep", "--models", auto, "--assocs", "country-code", "--seeds", "0", *SMALL, "-o", tmp_path / "o"]
    assert "0 to do" in ocr_eval(*flags).err
    auto.write_text(auto.read_text() + "dtype: float32\n")
    assert "1 to do" in ocr_eval(*flags).err


def test_a_folder_that_states_no_precision_is_not_rounded(monkeypatch, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    config = tmp_path / "stored/config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if "dtype" not in k}))
    assert precision.choose_for(load_model_spec(str(auto)), "cpu").dtype == "float32"


def test_a_folder_in_float16_keeps_it_where_that_is_fast_and_gemma_never_does(monkeypatch, model_files, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    on_processor(monkeypatch, WITH_BF16)
    for name, on_gpu, on_cpu in (("llama", "float16", "float32"), ("gemma2", "bfloat16", "bfloat16")):
        shutil.copytree(model_files[name].with_suffix(""), tmp_path / name)
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}))
        spec = load_model_spec(str(tmp_path / name))
        assert (precision.choose_for(spec, "cuda").dtype, precision.choose_for(spec, "cpu").dtype) == (on_gpu, on_cpu)


def test_a_plan_of_a_begun_run_does_not_ask_the_device(ocr_eval, monkeypatch, auto, tmp_path):
    on_processor(monkeypatch, WITH_BF16)
    flags = ["finetune", "country-code", "--model", auto, *SMALL, "-o", tmp_path / "o"]
    assert ocr_eval(*flags).code == 0
    on_processor(monkeypatch, WITHOUT_BF16)
    assert "bfloat16 (as the run began)" in ocr_eval(*flags, "--dry-run").out


@pytest.mark.parametrize("command", ["finetune", "sweep"])
def test_an_unknown_precision_is_one_line(ocr_eval, tiny, tmp_path, command):
    model = ["--model", tiny, "country-code"] if command == "finetune" else ["--models", tiny]
    answer = ocr_eval(command, *model, "--dtype", "float23", "-o", tmp_path / "o")
    assert answer.code == 2
    assert "Did you mean 'float32'" in answer.err


def test_a_plan_names_the_faster_precision(ocr_eval, monkeypatch, auto, tmp_path):
    from ocr_eval.planning import timing

    monkeypatch.setattr(timing, "rates", lambda device: {"float32": 141.0, "bfloat16": 19.0})
    on_processor(monkeypatch, WITHOUT_BF16)
    flags = ["--model", auto, "--assoc", "country-code", *SMALL, "-o", tmp_path]
    slow = ocr_eval("finetune", *flags, "--dtype", "bfloat16", "--dry-run")
    assert "float32 multiplies matrices 7.4 x as fast" in slow.out
    assert "as fast" not in ocr_eval("finetune", *flags, "--dtype", "float32", "--dry-run").out


def test_nothing_becomes_fp64_on_a_device_which_may_not_have_it():
    sources = Path(ocr_eval.__file__).parent.rglob("*.py")
    lines = [line for path in sources for line in path.read_text().splitlines() if ".double()" in line]
    on_device = [line for line in lines if "cpu()" not in line.partition(".double()")[0] and "load_file" not in line]
    assert len(lines) > 10
    assert [line for line in on_device if 'device.type == "cuda"' not in line] == []
