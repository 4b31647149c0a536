"""Tiny random models of every architecture, with a tokenizer trained on the shipped associations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GOMP_SPINCOUNT"] = "3000"
for variable in [name for name in os.environ if name.startswith("OCR_EVAL_") and name != "OCR_EVAL_CACHE"]:
    del os.environ[variable]

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ocr_eval.cli.app import run
from ocr_eval.common.messages import be_quiet
from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.execution.execute import Bases, PlannedRun, do_pack
from ocr_eval.execution.run_pack import Execution
from ocr_eval.methods.pack import Pack, attach
from ocr_eval.methods.view import View
from ocr_eval.models.base import Base, load_base
from ocr_eval.models.weights import locate
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.record import to_plain
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.names import FIRST_NAMES, LAST_NAMES
from ocr_eval.specs.published import published_associations
from ocr_eval.specs.run import RunSpec, make_run_spec

torch.set_num_threads(1)  # the models are too small for more

SIZES = {
    "hidden_size": 64,  # NF4 wants blocks of 64
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 0,
}
#: Every architecture of configs/models, with the quirk that could break packed attention or scoring.
ARCHITECTURES = {
    "llama": (LlamaConfig, {"num_key_value_heads": 2}, {"bos": True}),
    "olmo": (OlmoConfig, {"clip_qkv": 0.5}, {"bos": False}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}, {"bos": False}),
    "mistral": (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 64}, {"bos": True}),
    "gemma2": (
        Gemma2Config,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 64,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        {"bos": True},
    ),
}


def _train_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    words: list[str] = [*FIRST_NAMES, *LAST_NAMES]
    for name in published_associations():
        association = load_association(name)
        # only beginnings, so that answers of more than four letters have several tokens and distinct first ones
        words += [word[:4] for pair in association.pairs for word in pair] * 50
        templates = [*association.fact.templates, *association.entailment.templates]
        words += [word for text in templates for word in text.split() if "{" not in word]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1100, special_tokens=["<eos>", "<bos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((f" {word}" for word in words), trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A YAML file for a tiny random model of each architecture."""
    root = tmp_path_factory.mktemp("models")
    tokenizers = {bos: _train_tokenizer(bos) for bos in (True, False)}
    files = {}
    for name, (config_class, extra, quirks) in ARCHITECTURES.items():
        tokenizer = tokenizers[quirks["bos"]]
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(
            config_class(**SIZES, **extra, vocab_size=len(tokenizer), initializer_range=0.2)
        )
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        files[name] = root / f"{name}.yaml"
        files[name].write_text(
            f"name: tiny-{name}\ndescription: random\nlicense: none\ndtype: float32\n"
            f"weights: {{kind: folder, path: ./{name}}}\n"
            "train: {lr: 1e-2, epochs: 3, batch_size: 8, rank: 4, alpha: 8.0}\n"
        )
    return files


@pytest.fixture(scope="session")
def tiny(model_files: dict[str, Path]) -> str:
    """The path of the tiny Llama's YAML, as a user would give it."""
    return str(model_files["llama"])


def load(path: str | Path, quantized: bool = False) -> Base:
    """A fresh base for a model YAML."""
    spec = load_model_spec(str(path))
    return load_base(spec, locate(spec), "cpu", quantized)


def bare(base: Base) -> View:
    """A base as it is, without adapters."""
    return View(base, base.network)


def tiny_run(path: str | Path, assoc: str = "city-language", seed: int = 0, **changes: object) -> RunSpec:
    """A run of 3 groups of 2 + 3 subjects; keywords that DataSpec does not know go to training."""
    data = {"n": 3, "m_train": 2, "m_test": 3}
    train = {}
    for key, value in changes.items():
        (data if key in ("n", "m_train", "m_test", "candidates", "variant", "templates") else train)[key] = value
    return make_run_spec(load_model_spec(str(path)), load_association(assoc), data, train, seed)


def prevented(path: str | Path, *prevent: str, **changes: object) -> RunSpec:
    """`tiny_run` with preventions."""
    spec = tiny_run(path, **changes)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"prevent": prevent})})


def packed(base: Base, *specs: RunSpec) -> Pack:
    """Runs attached to a base, to be trained step by step."""
    return attach(base, specs, [training_tokens(base.tokenizer, build_task(spec)) for spec in specs])


#: Data of a run of 3 groups in flags.
SMALL = ["--n", "3", "--m-train", "2", "--m-test", "3", "--quiet"]


def only_run(output: Path) -> Path:
    """The folder of the only finished run below an output folder."""
    (status,) = output.glob("runs/*/*/*/*/status.json")
    return status.parent


def content(folder: RunFolder) -> dict[str, object]:
    """Metrics, record and probes of a run, but for what no repetition has in common."""
    lines = [{k: v for k, v in line.as_json().items() if not k.endswith("_seconds")} for line in folder.metrics()]
    record = {k: v for k, v in to_plain(folder.record()).items() if k not in ("seconds", "memory", "run")}
    return {"metrics": lines, "record": record, "probes": (folder.path / "probes.jsonl").read_text()}


def runs_in(output: Path) -> dict[str, dict[str, object]]:
    """What every run of a sweep states, by its place."""
    packs = json.loads((output / "sweep.json").read_text())["packs"]
    return {run: content(RunFolder(output / "runs" / run)) for pack in packs for run in pack}


#: The data of a small sweep of four runs, in flags.
GRID = ["--assocs", "city-language,country-code", "--seeds", "0-1", "--n", 3, "--m-train", 2, "--m-test", 3]


def as_a_pack(specs: list[RunSpec], output: Path, how: Execution) -> list[RunFolder]:
    """Do runs side by side; their folders."""
    bases = Bases(how.device)
    runs = [PlannedRun(spec, bases.folder(spec, output)) for spec in bases.settle(specs, output)]
    do_pack(bases, runs, how)
    return [run.folder for run in runs]


@pytest.fixture
def add_prevention(monkeypatch: pytest.MonkeyPatch):
    """Adds preventions of a test, gone after it."""
    monkeypatch.setattr(PREVENTIONS, "_added", {})
    return PREVENTIONS.add


@pytest.fixture(autouse=True)
def _no_network_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """No test fetches anything or touches the user's own cache, but for those that use the real model.

    Nor does one test's --quiet silence the next.
    """
    be_quiet(False)
    if "real_model" not in request.keywords:
        monkeypatch.setenv("OCR_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setenv("OCR_EVAL_OFFLINE", "1")


class Answer:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def one_line(answer: Answer, *said: object) -> str:
    """What a refusal says: exit 2, nothing on stdout, one line, with these words."""
    assert (answer.code, answer.out) == (2, ""), answer.err
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("ocr-eval: ")
    for part in said:
        assert str(part) in line
    return line


@pytest.fixture
def ocr_eval(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process."""

    def call(*arguments: object, **environment: str) -> Answer:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def finetune(ocr_eval, tiny: str):
    """Train a small run of country-code from the command line."""

    def call(output: Path, *more: object) -> Answer:
        return ocr_eval("finetune", "--model", tiny, "--assoc", "country-code", "-o", output, *SMALL, *more)

    return call


@pytest.fixture
def sweep(ocr_eval, tiny: str):
    """Do a small sweep from the command line."""

    def call(output: Path, *more: object) -> Answer:
        return ocr_eval("sweep", "--models", tiny, *GRID, "-o", output, *more)

    return call
