"""What is measured inside a model, against dense products and plain forward passes."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZES, load
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import inside_page

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.measures.constant_direction import mean_cosine
from ocr_eval.measures.inside import corrected_ps
from ocr_eval.measures.ov_change import OVChange, gain, ov_changes
from ocr_eval.measures.untouched import first_logprobs
from ocr_eval.measures.weight_change import norms
from ocr_eval.methods.adapters import Adapters, LaneShape
from ocr_eval.methods.changes import Dense
from ocr_eval.records.config import read_config
from ocr_eval.specs.names import people

KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=50)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=32, sliding_window=8, vocab_size=50)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, vocab_size=50)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_changes_of_heads_are_those_of_dense_products(kind, whole):
    torch.manual_seed(0)
    network = KINDS[kind]().eval()
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.normal_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if whole:
        names = [name for name in before if name.endswith(("v_proj.weight", "o_proj.weight"))]
        for name in names:
            network.get_parameter(name).data.add_(0.1 * torch.randn(before[name].shape))
        after = {name: value.clone() for name, value in network.state_dict().items()}
        changes = [Dense(name.removesuffix(".weight"), lambda name=name: after[name] - before[name]) for name in names]
    else:
        adapters = Adapters(network, ["v_proj", "o_proj", "q_proj"], [LaneShape(3, 6.0)], torch.float32)
        after = dict(before)
        for each in adapters.factors(0):
            each.a.normal_()
            each.b.normal_(std=0.1)
            after[f"{each.module}.weight"] = before[f"{each.module}.weight"] + each.dense()
        changes = list(adapters.changes(0))
    config, found = network.config, list(ov_changes(network, changes))
    assert len(found) == 2
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None) or 16
    for number, of_layer in enumerate(found):
        at = f"model.layers.{number}."

        def product(weights, head, at=at):
            group = head // (heads // config.num_key_value_heads)
            o = weights[f"{at}self_attn.o_proj.weight"].double()[:, head * size : (head + 1) * size]
            v = weights[f"{at}self_attn.v_proj.weight"].double()[group * size : (group + 1) * size]
            g_in = weights[f"{at}input_layernorm.weight"].double()
            g_out = torch.ones(64).double()
            if kind == "gemma3":
                g_in, g_out = 1 + g_in, 1 + weights[f"{at}post_attention_layernorm.weight"].double()
            return g_out[:, None] * (o @ v) * g_in

        for head, values in enumerate(of_layer.singular_values()):
            dense = product(after, head) - product(before, head)
            torch.testing.assert_close(of_layer.left[head] @ of_layer.right[head], dense, rtol=1e-4, atol=1e-4)
            plain = norms(torch.linalg.svdvals(dense))
            assert norms(values) == pytest.approx(plain, rel=1e-3)
            assert whole or int((values > 1e-4 * values[0]).sum()) <= of_layer.rank == 6
        assert (of_layer.bias is None) == (kind != "qwen2")
        if of_layer.bias is not None:
            o = after[f"{at}self_attn.o_proj.weight"] - before[f"{at}self_attn.o_proj.weight"]
            bias = before[f"{at}self_attn.v_proj.bias"][16:32]
            assert float(of_layer.bias[3]) == pytest.approx(float((o[:, 48:64] @ bias).norm()), rel=1e-4)


def test_means_over_heads_are_of_the_layers_that_changed():
    """With one layer of two changed, the mean ratio is that layer's, which cannot be below 1 / sqrt(R)."""
    torch.manual_seed(0)
    network = KINDS["qwen2"]()
    adapters = Adapters(network, ["1.self_attn.v_proj"], [LaneShape(3, 6.0)], torch.float32)
    for each in adapters.factors(0):
        each.a.normal_()
        each.b.normal_()
    trained = SimpleNamespace(
        pack=SimpleNamespace(base=SimpleNamespace(network=network)), changes=lambda: adapters.changes(0)
    )
    found = OVChange().take(trained)
    assert found["ratio"] == pytest.approx(found["layers"]["ratio"][1], rel=1e-4)
    assert found["ratio"] > 1 / math.sqrt(found["rank_bound"])
    assert found["layers"]["ratio"][0] == 0


def test_gains_of_norms():
    norm = torch.nn.LayerNorm(6)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    torch.testing.assert_close(gain(norm, 6, norm.weight), norm.weight.detach().double(), rtol=1e-4, atol=1e-5)
    assert gain(None, 3, norm.weight).tolist() == [1, 1, 1]


def test_p_of_the_best_of_many_layers_is_exact():
    """Of three layers one tells all groups apart; p counts the assignments whose best layer is as good."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 4))
    values[1] += 9 * np.eye(4)
    ps = corrected_ps(values, "test")
    assert ps[1] == 1 / 24
    best = [
        max(values[c][range(4), list(f)].mean() - values[c].mean() for c in range(3))
        for f in itertools.permutations(range(4))
    ]
    own = [values[c].diagonal().mean() - values[c].mean() for c in range(3)]
    assert ps.tolist() == [np.mean([b >= o - 1e-12 for b in best]) for o in own]
    moved = corrected_ps(np.roll(values, 1, axis=2), "test", observed=[1, 2, 3, 0])
    assert moved[1] == 1 / 9  # of the nine without a fixed point
    assert corrected_ps(rng.normal(size=(1, 8, 8)) + 9 * np.eye(8), "test")[0] == 1 / 2001


NAMES = ("constant-direction", "link-map", "logit-lens", "ov-change", "patching", "sharing")


@pytest.fixture(scope="module")
def inside(model_files, tmp_path_factory):
    """A run of a tiny Llama with every measure of the inside: its record and its folder."""
    from ocr_eval import finetune, make_run

    output = tmp_path_factory.mktemp("inside")
    settings = {"n": 3, "m_train": 2, "m_test": 3, "epochs": 12}
    record = finetune(make_run(str(model_files["llama"]), "city-language", **settings), output, measures=NAMES)
    assert set(record.measures) == set(NAMES)
    return record, output / "runs" / record.run


def test_the_last_layer_of_the_lens_is_the_model(inside, tiny):
    record, folder = inside
    found = record.measures["logit-lens"]
    for quantity, score in record.final["first-token"].items():
        assert found[f"{quantity}_rank"] == pytest.approx(score.mean_rank, rel=1e-3)
        assert found["layers"][f"{quantity}_null"][-1] == pytest.approx(score.null_rank, rel=1e-3)
    network = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""), dtype=torch.float32), folder / "adapter"
    )
    ranks = []
    for each in probe_tokens(load(tiny).tokenizer, build_task(read_config(folder))):
        if each.probe.quantity == "test_fact":
            with torch.no_grad():
                hidden = network(torch.tensor([each.prompt]), output_hidden_states=True).hidden_states[1][0, -1]
                logits = network.lm_head(network.model.model.norm(hidden))[[ids[0] for ids in each.candidates]]
            ranks.append(int((logits > logits[each.probe.target]).sum()))
    assert found["layers"]["test_fact_rank"][0] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_the_cosine_of_what_is_added_by_hand():
    """Of (1, 0), (0, 1) and (1, 1) / sqrt 2 the pairs have cosines 0, 1 / sqrt 2 and 1 / sqrt 2."""
    root = 2**-0.5
    assert mean_cosine(torch.tensor([1 + root, 1 + root]), 3) == pytest.approx(2 * root / 3)
    assert mean_cosine(torch.tensor([5.0, 0.0]), 5) == 1


def test_a_constant_direction_is_measured_on_what_plain_passes_see(inside, tiny):
    record, folder = inside
    base = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""), dtype=torch.float32)
    plain = {name: module.weight.detach().clone() for name, module in base.named_modules() if name.endswith("_proj")}
    network = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    seen, inputs = {}, {name: {} for name in plain}
    for name in plain:
        module = network.get_submodule(name)
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0][0]}))
    for each in probe_tokens(load(tiny).tokenizer, build_task(read_config(folder))):
        with torch.no_grad():
            network(torch.tensor([each.prompt]))
        for name, hidden in seen.items():
            inputs[name] |= {each.prompt[: t + 1]: hidden[t] for t in range(len(each.prompt))}
    cosines = {}
    for name, before in plain.items():
        change = (network.get_submodule(name).weight - before).detach()
        units = torch.nn.functional.normalize(torch.stack([*inputs[name].values()]) @ change.T, dim=1)
        cosines[name] = float((units @ units.T)[~torch.eye(len(units), dtype=bool)].mean())
    found = record.measures["constant-direction"]
    assert found["cosine"] == pytest.approx(np.mean([*cosines.values()]), abs=2e-3)
    of_first = np.mean([value for name, value in cosines.items() if ".layers.0." in name])
    assert found["layers"]["cosine"][0] == pytest.approx(of_first, abs=2e-3)
    assert found["kinds"]["kind"] == sorted({name.rpartition(".")[2] for name in plain})
    assert 0 < found["chance"] < found["cosine"] < 1


def test_patching_the_whole_stream_is_asking_the_donor(inside):
    """At the last token, after the last layer, nothing is left of the recipient."""
    record, folder = inside
    lines = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    asked = [each for each in lines if each["epoch"] == 12 and each["quantity"] == "test_entailment"]
    logprobs = np.array([each["logprobs"]["first-token"][:3] for each in asked]).reshape(
        3, 3, 3
    )  # group, subject, answer
    effects = []
    for donor in ([1, 2, 0], [2, 0, 1]):
        moved = logprobs[donor] - logprobs
        effects.append(np.mean([moved[g, :, donor[g]] - moved[g, :, g] for g in range(3)]))
    found = record.measures["patching"]
    assert any(found["layers"]["prompt_effect"][-1] == pytest.approx(each, rel=1e-3) for each in effects)
    assert found["name_p"] in (0.5, 1)
    assert found["prompt_excess"] == pytest.approx(max(found["layers"]["prompt_excess"]), abs=1e-3)


def test_the_link_map_asks_about_nobody_who_was_taught(ocr_eval, tiny, tmp_path, monkeypatch):
    """Nor about the people of a prevention, whom no probe asks about."""
    told = []

    def asks(view, answers, statement, lane, taught):
        told.append(taught)
        return first_logprobs(view, answers, statement, lane, taught)

    monkeypatch.setattr("ocr_eval.measures.link_map.first_logprobs", asks)
    run = ["--model", tiny, "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--json"]
    more = ["--prevent", "abstain:people=3", "--measures", "link-map"]
    record = json.loads(ocr_eval("finetune", "country-code", *run, *more).out)
    assert "trained_rank" in record["measures"]["link-map"]
    assert set(people("abstain", 6)) <= told[0]


def test_the_link_map_before_training_is_what_audit_says(inside):
    found = inside[0].measures["link-map"]
    assert found["null"] == 9.5
    assert sum(found["pairs"]["taught"]) == 3
    assert len(found["pairs"]["fact"]) == len(found["pairs"]["base"]) == 20
    of_base = np.array(found["pairs"]["base"])
    taught = np.array(found["pairs"]["taught"]) == 1
    assert found["base_rank"] == pytest.approx(of_base[taught].mean(), rel=1e-3)
    assert found["base_untaught"] == pytest.approx(of_base[~taught].mean(), rel=1e-3)


def test_sharing_has_cosines_of_both_kinds(inside):
    found = inside[0].measures["sharing"]
    for kind in ("weights", "shift"):
        same, other = (np.array(found["layers"][key]) for key in (kind, f"{kind}_other"))
        assert abs(same).max() <= 1
        assert found[kind] == pytest.approx((same - other).mean(), abs=1e-3)
        assert found[f"{kind}_p"] >= 1 / 6


def test_explain_shows_the_record_and_measures_the_weights_anew(inside, ocr_eval):
    record, folder = inside
    shown = ocr_eval("explain", folder)
    assert shown.code == 0
    assert all(f"{name}: " in shown.out for name in NAMES)
    assert json.loads(ocr_eval("explain", folder, "--json").out) == record.measures
    again = json.loads(ocr_eval("explain", folder, "--measure", ",".join(NAMES), "--json", "-q").out)
    for name in NAMES:
        for key, value in record.measures[name].items():
            if isinstance(value, float):
                assert again[name][key] == pytest.approx(value, rel=1e-2, abs=1e-3), (name, key)
    lines = shown.out.splitlines()
    assert max(len(line) for line in lines if set(line) == {"-", " "}) <= 100  # tables fit a terminal
    names = {name for line in lines for name in line.split()}
    assert names >= {*record.measures["logit-lens"]["layers"], *record.measures["ov-change"]["heads"]}
    one = json.loads(ocr_eval("explain", folder, "--layer", 1, "--json").out)
    assert one["ov-change"]["heads"]["layer"] == [1] * 4
    assert "link-map" not in one
    known = ocr_eval("explain", folder, "--measure", "frozen-layers,weight-change", "-q")
    assert known.code == 0


def test_explain_names_a_damaged_file(inside, ocr_eval, tmp_path):
    for name in ("metrics.jsonl", "result.json"):
        folder = shutil.copytree(inside[1], tmp_path / name)
        subprocess.run(["gzip", folder / name], check=True)
        os.truncate(folder / f"{name}.gz", 60)
        answer = ocr_eval("explain", folder)
        assert (answer.code, answer.out) == (2, "")
        assert name in answer.err


def test_a_whole_model_is_measured_against_the_base_on_disk(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "--n", 2, "--m-train", 2, "--m-test", 2, "--epochs", 2, "--lr", 1e-3]
    asked = ["--measures", ",".join((*NAMES, "weight-change")), "-o", tmp_path, "--json"]
    answer = ocr_eval("finetune", *run, "--method", "full", *asked)
    record = json.loads(answer.out)
    assert set(record["measures"]) == {*NAMES, "weight-change"}, answer.err
    assert "shift" not in record["measures"]["sharing"]
    assert "base_rank" not in record["measures"]["link-map"]
    folder = tmp_path / "runs" / record["run"]
    again = json.loads(ocr_eval("explain", folder, "--measure", "ov-change,weight-change", "--json", "-q").out)
    for name in again:
        assert again[name]["frobenius"] == pytest.approx(record["measures"][name]["frobenius"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--measure", "nothing"], "'nothing'"),
        (["--layer", 2], "--layer 2"),
        (["--layer", 1, "--measure", "known"], "--layer"),
        (["--measure", ""], "--measure"),
    ],
)
def test_bad_input_of_explain_is_one_line(inside, ocr_eval, arguments, named):
    answer = ocr_eval("explain", inside[1], *arguments, "-q")
    assert (answer.code, answer.out) == (2, "")
    assert named in answer.err
    assert len(answer.err.splitlines()) == 1


def test_without_weights_or_with_quantized_ones_explain_says_so(inside, ocr_eval, tiny, tmp_path):
    bare = shutil.copytree(inside[1], tmp_path / "bare")
    shutil.rmtree(bare / "adapter")
    assert ocr_eval("explain", bare).code == 0
    answer = ocr_eval("explain", bare, "--measure", "ov-change", "-q")
    assert answer.code == 2
    assert "adapter" in answer.err
    run = ["city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "--method", "qlora"]
    record = json.loads(ocr_eval("finetune", *run, "-o", tmp_path, "--measures", "none", "--json").out)
    folder = tmp_path / "runs" / record["run"]
    empty = ocr_eval("explain", folder)
    assert (empty.code, len(empty.err.splitlines())) == (2, 1)
    answer = ocr_eval("explain", folder, "--measure", "ov-change", "-q")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "quantized" in answer.err
    assert ocr_eval("explain", folder, "--measure", "logit-lens", "-q").code == 0


@pytest.mark.parametrize("place", ["ocr_eval.methods.view", "ocr_eval.measures.inside"])  # to score, to measure
def test_too_little_memory_is_one_line(inside, ocr_eval, monkeypatch, place):
    def full(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(f"{place}.lay_out", full)
    answer = ocr_eval("explain", inside[1], "--measure", "logit-lens", "-q")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert "too little memory" in answer.err


@pytest.mark.filterwarnings("ignore:.*LoRA:UserWarning", "ignore:.*lora_bias:UserWarning")
def test_what_is_not_lora_is_measured_in_training_alone(ocr_eval, tiny, tmp_path):
    run = ["city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "--method", "steering"]
    record = json.loads(ocr_eval("finetune", *run, "-o", tmp_path, "--measures", "logit-lens", "--json").out)
    assert "logit-lens" in record["measures"]
    answer = ocr_eval("explain", tmp_path / "runs" / record["run"], "--measure", "weight-change", "-q")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "--measures" in answer.err


def test_what_links_foretell_by_hand():
    """Over three pairs rho is 1 - (1 + 4 + 1) / 4 = -1/2, and of six permutations none is nearer to zero."""
    links = {"one": {"a": 0, "b": 1, "c": 2, "d": 9}, "two": {"a": 0, "b": 1, "c": 2, "d": 3}}
    scores = {"one": {"a": 0.9, "b": 0.1, "c": 0.3}, "two": {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}}
    found = inside_page.of_links(links, {"real": scores}, draws=2000).T.to_dict()
    assert found["real: one"] == {"pairs": 3, "W-rank": "1.0", "rho": "-0.50", "p": "1.0000"}
    assert found["real: two"] | {"p": ""} == {"pairs": 4, "W-rank": "1.5", "rho": "-1.00", "p": ""}
    assert float(found["real: two"]["p"]) == pytest.approx(2 / 24, abs=0.02)
    assert (found["real: all"]["pairs"], found["real: all"]["rho"]) == (7, "-0.75")
    assert float(found["real: all"]["p"]) == pytest.approx(14 / 144, abs=0.02)  # -1 and at most -1/2; -1/2 and -1


def test_patching_over_seeds_by_hand():
    """Two p of 0.1 have Fisher's statistic -2 ln 0.01, with p = 0.01 (1 - ln 0.01)."""
    seeds = [{"name_layer": 3, "name_excess": 1.0, "name_p": 0.1}, {"name_layer": 4, "name_excess": 2.0, "name_p": 0.1}]
    lines = [
        {"association": "one", "patching": each | {key.replace("name", "prompt"): value for key, value in each.items()}}
        for each in seeds
    ]
    found = inside_page.patching(lines).T.to_dict()["one, end of the name"]
    assert found == {"seeds": 2, "layer": "3.5", "nats": "+1.50", "p": f"{0.01 * (1 - np.log(0.01)):.2g}"}


def test_the_committed_page_is_what_its_records_show(capsys, monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    monkeypatch.setattr(inside_page, "DRAWS", 10)
    inside_page.show()
    shown, page = capsys.readouterr().out, (root / "results/inside/inside.md").read_text()
    assert shown.splitlines()[:25] == page.splitlines()[:25]
