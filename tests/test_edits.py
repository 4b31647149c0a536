"""ROME and MEMIT: closed forms against dense fp64 oracles, keys and z against stock transformers, runs to the table."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import load, tiny_run
from transformers import AutoConfig, AutoModelForCausalLM

from ocr_eval.common.errors import RunFailed
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.methods import edits
from ocr_eval.methods.covariance import covariances
from ocr_eval.methods.edit_pack import edit_pack
from ocr_eval.methods.pack import attach
from ocr_eval.methods.rome import Search
from ocr_eval.methods.train import batch_forest

SMALL = {"n": 2, "m_train": 1, "m_test": 1}


@pytest.fixture
def numbers():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    text = draw(40, 12)
    return draw(5, 12), draw(5, 7), text.T @ text / 40, draw(7, 12)


def test_rank_one_edits_are_those_of_a_dense_loop_and_insert_exactly(numbers):
    keys, deltas, moment, w0 = numbers
    a, b = edits.rank_one_updates(keys, deltas, moment)
    w = w0.clone()
    for k, delta in zip(keys, deltas, strict=True):
        u = torch.linalg.inv(moment) @ k
        w = w + torch.outer(w0 @ k + delta - w @ k, u) / (u @ k)
        torch.testing.assert_close(w @ k, w0 @ k + delta)
    torch.testing.assert_close(w0 + b.T @ a, w)


def test_memit_solves_the_least_squares_that_it_states(numbers):
    keys, residuals, moment, _ = numbers
    lam = 3.0
    # min |dW K - R|^2 + lam tr(dW C dW^T) as one stacked system, with C = L L^T
    rows = torch.cat([keys, lam**0.5 * torch.linalg.cholesky(moment).T])
    wanted = torch.cat([residuals, torch.zeros(12, 7, dtype=torch.float64)])
    dense = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(residuals.T @ edits.least_squares_update(keys, moment, lam), dense)


def text_of(folder, words=4000):
    generator = torch.Generator().manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    draws = torch.randint(0, 26, (words, 4), generator=generator)
    path = folder / "text.txt"
    path.write_text(" ".join("".join(letters[i] for i in row) for row in draws.tolist()))
    return path


def test_keys_gradient_and_covariance_are_those_of_the_plain_network(tiny, tmp_path):
    spec, base = tiny_run(tiny, method="rome", **SMALL), load(tiny)
    subjects = edits.subjects_of(base.tokenizer, build_task(spec))
    passes = edits.passes_of(base, subjects)
    network = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""))
    name = "model.layers.1.mlp.down_proj"
    keys = edits.means_at_subjects(base, passes, name, of_input=True)
    taken = []
    network.get_submodule(name).register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    for subject, key in zip(subjects, keys, strict=True):
        network(torch.tensor([subject.statements[0].prompt]))
        torch.testing.assert_close(taken.pop()[0, subject.ends[0] - 1].double(), key, rtol=1e-3, atol=1e-4)
    bos, *ids = base.tokenizer(text_of(tmp_path).read_text()).input_ids
    total, read = torch.zeros(128, 128, dtype=torch.float64), 0
    for start in range(0, len(ids), 255):
        network(torch.tensor([[bos, *ids[start : start + 255]]]))
        k = taken.pop()[0].detach().double()
        total, read = total + k.T @ k, read + len(k)
    found = covariances(base, [name], str(tmp_path / "text.txt"))[name]
    torch.testing.assert_close(found, total / read, rtol=1e-3, atol=1e-4)
    again = covariances(base, [name], str(tmp_path / "text.txt"))[name]  # from the cache
    assert torch.equal(again, found)


def test_z_makes_the_network_say_what_is_taught(tiny):
    spec, base = tiny_run(tiny, method="rome", **SMALL), load(tiny)
    subjects = edits.subjects_of(base.tokenizer, build_task(spec))
    passes, module = edits.passes_of(base, subjects), "model.layers.0.mlp.down_proj"
    aim = Search(steps=40, rate=1.0, clamp=1000.0, decay=0.0, kl=0.0)
    deltas, nll = edits.seek(base, passes, module, aim)
    network = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""))
    for subject, delta, reached in zip(subjects, deltas, nll, strict=True):
        losses = []
        for each, end in zip(subject.statements, subject.ends, strict=True):

            def add(layer, inputs, y, end=end, delta=delta):
                return torch.cat([y[:, : end - 1], y[:, end - 1 : end] + delta.float(), y[:, end:]], dim=1)

            hook = network.get_submodule(module).register_forward_hook(add)
            logits = network(torch.tensor([[*each.prompt, *each.answer]])).logits[0, len(each.prompt) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(each.answer)).item())
            hook.remove()
        assert sum(losses) / len(losses) == pytest.approx(reached.item(), rel=1e-2, abs=1e-3)
    untouched = edits.seek(base, passes, module, aim.model_copy(update={"rate": 1e-9}))[1]
    assert (nll < untouched).all()


def plain_loss(network, module, subject, delta, v0, before, aim):
    """One subject's loss in the search for z, sentence by sentence."""

    def logits(ids, end):
        def add(layer, inputs, y):
            return torch.cat([y[:, : end - 1], y[:, end - 1 : end] + delta, y[:, end:]], dim=1)

        hook = network.get_submodule(module).register_forward_hook(add)
        found = network(torch.tensor([ids])).logits[0]
        hook.remove()
        return found

    nll = torch.stack(
        [
            torch.nn.functional.cross_entropy(
                logits([*each.prompt, *each.answer], end)[len(each.prompt) - 1 : -1], torch.tensor(each.answer)
            )
            for each, end in zip(subject.statements, subject.ends, strict=True)
        ]
    ).mean()
    after = logits(subject.essence, subject.essence_end)[-1].log_softmax(-1)
    divergence = torch.nn.functional.kl_div(before, after, log_target=True, reduction="sum")
    return nll + aim.kl * divergence + aim.decay * delta.norm() / v0.norm() ** 2


@pytest.mark.parametrize(("kl", "decay"), [(3.0, 0.0), (0.0, 30.0), (0.5, 5.0)])
def test_the_search_descends_the_loss_that_it_states(tiny, kl, decay):
    spec, base = tiny_run(tiny, method="rome", **SMALL), load(tiny)
    subjects, module = edits.subjects_of(base.tokenizer, build_task(spec)), "model.layers.0.mlp.down_proj"
    passes = edits.passes_of(base, subjects)
    aim = Search(steps=6, rate=0.1, clamp=1e4, decay=decay, kl=kl)
    deltas, _ = edits.seek(base, passes, module, aim)
    network = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix("")).requires_grad_(False)
    for subject, found in zip(subjects, deltas, strict=True):
        taken = []
        hook = network.get_submodule(module).register_forward_hook(
            lambda layer, inputs, y, taken=taken: taken.append(y)
        )
        before = network(torch.tensor([subject.essence])).logits[0, -1].log_softmax(-1)
        hook.remove()
        delta = torch.zeros(64, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=aim.rate)
        for _ in range(aim.steps):
            optimizer.zero_grad()
            plain_loss(network, module, subject, delta, taken[0][0, subject.essence_end - 1], before, aim).backward()
            optimizer.step()
        assert torch.nn.functional.cosine_similarity(found.float(), delta.detach(), dim=0) > 0.99


def test_memit_over_layers_spreads_what_is_left_over_those_to_come(tiny, tmp_path):
    """Against dense weights that are changed one after another in a stock network."""
    text, lam, deep = text_of(tmp_path), 0.01, tmp_path / "deep.yaml"
    torch.manual_seed(0)
    shutil.copytree(Path(tiny).with_suffix(""), tmp_path / "deep")
    config = AutoConfig.from_pretrained(tmp_path / "deep", num_hidden_layers=3, layer_types=None, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "deep")
    deep.write_text(Path(tiny).read_text().replace(f"./{Path(tiny).stem}", "./deep"))
    method = f"memit:layers=0-1:lam={lam}:text={text}:clamp=1000:kl=0:rate=1:steps=20"
    spec, base = tiny_run(deep, method=method, **SMALL), load(deep)
    subjects = edits.subjects_of(base.tokenizer, build_task(spec))
    modules, block = [f"model.layers.{k}.mlp.down_proj" for k in (0, 1)], "model.layers.1"
    aim = Search(steps=20, rate=1.0, clamp=1000.0, decay=1e-3, kl=0.0)
    deltas, _ = edits.seek(base, edits.passes_of(base, subjects), block, aim)
    moments = covariances(base, modules, str(text))
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "deep").requires_grad_(False)

    def at_subjects(name, of_input):
        rows = []
        for subject in subjects:
            taken = []
            hook = network.get_submodule(name).register_forward_hook(
                lambda layer, inputs, y, taken=taken: taken.append(inputs[0] if of_input else y)
            )
            network(torch.tensor([subject.essence]))
            hook.remove()
            rows.append((taken[0][0] if isinstance(taken[0], tuple) else taken[0])[0, subject.essence_end - 1].double())
        return torch.stack(rows)

    z, expected = at_subjects(block, of_input=False) + deltas, {}
    for left, name in zip((2, 1), modules, strict=True):
        keys, residuals = at_subjects(name, of_input=True), (z - at_subjects(block, of_input=False)) / left
        rows = torch.cat([keys, lam**0.5 * torch.linalg.cholesky(moments[name]).T])
        wanted = torch.cat([residuals, torch.zeros(len(moments[name]), 64, dtype=torch.float64)])
        expected[name] = torch.linalg.lstsq(rows, wanted).solution.T
        network.get_submodule(name).weight += expected[name].float()
    pack = attach(base, [spec], [training_tokens(base.tokenizer, build_task(spec))])
    pack.step([0])
    for each in pack.adapters.factors(0):
        dense = each.b.double().T @ each.a.double()
        assert (dense - expected[each.module]).norm() < 0.02 * expected[each.module].norm()
    pack.detach()


@pytest.mark.parametrize("diverged", [{"a": 0.01, "b": torch.inf}, {"a": torch.nan, "b": 0.01}])
def test_an_edit_that_diverges_is_undone_and_costs_no_other_run(tiny, diverged):
    specs, base = [tiny_run(tiny, seed=k, method="rome", **SMALL) for k in (0, 1)], load(tiny)
    examples = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]

    def edit(adapters, lane, passes):
        for each in adapters.factors(lane):
            each.a.fill_(diverged["a"] if lane == 0 else 0.01)
            each.b.fill_(diverged["b"] if lane == 0 else 0.01)
        adapters.refresh()
        return torch.zeros(len(passes[0].subjects))

    pack = edit_pack(base, specs, examples, ["model.layers.0.mlp.down_proj"], edit)
    untouched = -pack.view(False).token_logprobs({0: batch_forest(examples[0])})[0].mean().item()
    losses = pack.step([0, 1])
    with pytest.raises(RunFailed, match="diverged"):
        pack.finish(0)
    pack.finish(1)
    assert losses[0] == pytest.approx(untouched, rel=1e-5)
    assert pack.notes(0) == {}
    assert pack.notes(1)["edit"]["relative_change"]["model.layers.0.mlp.down_proj"] > 0
    pack.detach()


def test_a_search_that_diverges_says_so(tiny):
    spec, base = tiny_run(tiny, method="rome", **SMALL), load(tiny)
    subjects = edits.subjects_of(base.tokenizer, build_task(spec))
    base.network.lm_head.weight.data.fill_(torch.nan)
    aim = Search(steps=2, rate=1.0, clamp=4.0, decay=0.0, kl=0.0)
    with pytest.raises(RunFailed, match="diverged in step 1 of its search"):
        edits.seek(base, edits.passes_of(base, subjects), "model.layers.0.mlp.down_proj", aim)


@pytest.mark.parametrize("method", ["rome:layer=0", "memit:layers=0-0:lam=0.01"])
def test_a_pack_edits_each_lane_and_leaves_the_base(tiny, tmp_path, method):
    method = f"{method}:text={text_of(tmp_path)}:clamp=1000:kl=0:rate=1:steps=40"
    specs, base = [tiny_run(tiny, seed=k, method=method, **SMALL) for k in (0, 1)], load(tiny)
    examples = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]
    ids = torch.tensor([[*examples[0][0].prompt, *examples[0][0].answer]])
    before = AutoModelForCausalLM.from_pretrained(Path(tiny).with_suffix(""))(ids).logits
    pack = attach(base, specs, examples)
    untouched = {
        lane: -pack.view().token_logprobs({lane: batch_forest(examples[lane])})[lane].mean() for lane in (0, 1)
    }
    together = pack.step([0, 1])
    assert all(together[lane] < untouched[lane] for lane in (0, 1))
    assert all(change > 0 for change in pack.notes(0)["edit"]["relative_change"].values())
    pack.detach()
    torch.testing.assert_close(base.network(ids).logits, before, rtol=1e-4, atol=1e-4)
    alone = attach(base, specs[1:], examples[1:])
    assert alone.step([0])[0] == pytest.approx(together[1], rel=1e-3)
    alone.detach()


def test_it_goes_to_the_table_and_is_scored_again(ocr_eval, tiny, tmp_path):
    text = text_of(tmp_path)
    run = ["--model", tiny, "--n", 2, "--m-train", 1, "--m-test", 1, "-o", tmp_path / "out"]
    for method in ("rome", "memit"):
        flags = ["--method", f"{method}:text={text}:steps=3", "--measures", "frozen-layers", "--json"]
        found = json.loads(ocr_eval("finetune", "city-language", *run, *flags).out)
        assert found["measures"]["frozen-layers"]["cut"] == 1
    table = ocr_eval("table", tmp_path / "out", "--no-published").out
    assert "ROME" in table
    assert "MEMIT" in table
    for path in (tmp_path / "out").rglob("result.json"):
        record = json.loads(path.read_text())
        assert "@" in record["train"]["method"]
        again = json.loads(ocr_eval("score", path.parent, "--json").out)["first-token"]
        for name, quantity in record["final"]["first-token"].items():
            assert again[name]["mean_rank"] == pytest.approx(quantity["mean_rank"], abs=0.2)


def test_what_cannot_be_is_one_line(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-train", 1, "--m-test", 1, "-o", tmp_path / "out"]
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    for method, said in {
        "rome:layer=9": "no layer 9",
        "memit:layers=1-9": "no layer 2",
        "memit:layers=9-1": "9-1",
        f"rome:text={short}": "short.txt",
        "rome:text=missing.txt": "missing.txt",
    }.items():
        for more in ([], ["--dry-run"]):
            answer = ocr_eval("finetune", "city-language", *run, "--method", method, *more)
            assert answer.code == 2, answer.err
            assert said in answer.err
            assert len([line for line in answer.err.splitlines() if "rror" in line or said in line]) == 1
