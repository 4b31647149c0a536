"""Grafting: what other runs learned is added to a run, or subtracted, and scored."""

import json
from pathlib import Path

import pytest
from conftest import bare, load
from safetensors.torch import load_file

from ocr_eval.cli.app import run
from ocr_eval.common.errors import UserError
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.methods.load_adapter import load_sum
from ocr_eval.records.config import read_config
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.scoring.quantities import summarize_quantities
from tests.test_trained import one_line

SMALL = ("--n", "3", "--m-train", "2", "--m-test", "3", "--candidates", "in-use", "--epochs", "4", "--quiet")
#: The four runs, of different ranks, scales and modules.
PARTS = {
    "regrouped": (),
    "real": ("--rank", "4", "--alpha", "12"),
    "no-entailment": ("--rank", "2", "--targets", "q_proj,v_proj"),
    "no-fact": (),
}


def taught(output, model, *more):
    assert run(["finetune", "nonce", "--model", str(model), "-o", str(output), *SMALL, *more]) == 0
    (status,) = output.glob("runs/*/*/*/*/status.json")
    return status.parent


@pytest.fixture(scope="module")
def runs(model_files, tmp_path_factory):
    """Their folders by name, those of a whole model, and of another base."""
    output = tmp_path_factory.mktemp("graft")
    parts = {name: ("--variant", name, "--lr", "1e-2", *more) for name, more in PARTS.items()}
    folders = {name: taught(output / name, model_files["llama"], *more) for name, more in parts.items()}
    folders["full"] = taught(output / "full", model_files["llama"], "--method", "full")
    return folders | {"other": taught(output / "other", model_files["qwen2"])}


def summed(path, terms):
    """A base whose own weights have the changes of adapters added: W + sum of +-(alpha / r) B A, dense."""
    base = load(path)
    for sign, folder in terms:
        config, saved = (json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS))
        for name, a in saved.items():
            if "lora_A" in name:
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                change = saved[name.replace("lora_A", "lora_B")] @ a * (config["lora_alpha"] / config["r"])
                base.network.get_submodule(module).weight.data += sign * change
    return bare(base)


WEIGHTS = Path("adapter_model.safetensors")


@pytest.mark.parametrize("graft", [{"plus": "real", "minus": "no-entailment"}, {"plus": "no-fact"}])
def test_a_graft_and_its_control_are_sums_of_dense_changes(ocr_eval, tiny, runs, graft):
    onto = runs["regrouped"]
    terms = [(1, onto), *((1 if flag == "plus" else -1, runs[name]) for flag, name in graft.items())]
    terms = [(sign, folder / "adapter") for sign, folder in terms]
    base, task = load(tiny), build_task(read_config(onto))
    probes = probe_tokens(base.tokenizer, task)
    dense = score_candidates(summed(tiny, terms), probes)
    found = score_candidates(load_sum(base, terms), probes).logprobs["sequence"]
    alone = score_candidates(summed(tiny, terms[:1]), probes).logprobs["sequence"]
    assert found == pytest.approx(dense.logprobs["sequence"], abs=1e-4)
    assert abs(found - alone).max() > 0.1
    flags = [text for flag, name in graft.items() for text in (f"--{flag}", runs[name])]
    answer = ocr_eval("score", onto, *flags, "--json")
    expected = summarize_quantities(task.quantities, task.probes, dense)
    for scoring, by_quantity in json.loads(answer.out).items():
        for quantity, score in by_quantity.items():
            assert score["mean_rank"] == pytest.approx(expected[scoring][quantity].mean_rank), answer.err


def test_what_is_added_and_subtracted_again_is_the_run(ocr_eval, runs):
    real, same = runs["real"], runs["no-entailment"]
    before, after = (ocr_eval("score", real, *more, "--json").out for more in ((), ("--plus", same, "--minus", same)))
    assert json.loads(after)["first-token"]["test_fact"] == pytest.approx(
        json.loads(before)["first-token"]["test_fact"], abs=1e-4
    )
    assert f"minus {same / 'adapter'}" in ocr_eval("score", real, "--minus", same).out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{real}", "--plus", "{other}"], "over another base"),
        (["{real}", "--minus", "{full}"], "no plain LoRA adapter"),
        (["{full}", "--plus", "{real}"], "no plain LoRA adapter"),
        (["{real}", "--plus", "nowhere"], "nowhere"),
        (["--assoc", "nonce", "--plus", "{real}"], "Give its folder"),
    ],
)
def test_what_cannot_be_grafted_is_refused_in_a_line(ocr_eval, runs, words, says):
    one_line(ocr_eval("score", *(word.format(**runs) for word in words)), says)


def test_nor_are_others_than_plain_lora_added_up_from_python(model_files, tiny, tmp_path):
    matrices = taught(tmp_path, model_files["llama"], "--method", "merged-ov:layers=1")
    with pytest.raises(UserError, match="no plain LoRA adapter"):
        load_sum(load(tiny), [(1, matrices / "adapter")])


def test_a_run_with_its_entailments_last_is_a_run_of_facts_alone_until_they_begin(model_files, tmp_path):
    """So that what is subtracted in a graft is where the other began."""
    both = taught(tmp_path / "both", model_files["llama"], "--order", "entailments-last", "--epochs", "6")
    facts = taught(tmp_path / "facts", model_files["llama"], "--variant", "no-entailment", "--epochs", "2")
    both, facts = ([json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (both, facts))
    assert [line["train_loss"] for line in both[1:3]] == [line["train_loss"] for line in facts[1:]]
    assert len({line["train_loss"] for line in both[1:]}) == 6
