"""Preventions: their gradients against autograd, their effect through a whole run, and each hook of the door."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import bare, load, tiny_run
from peft import PeftModel
from safetensors.torch import load_file

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import Example, build_task
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.methods.pack import attach
from ocr_eval.methods.prevention import Prevention, preventions_of, task_of_run
from ocr_eval.methods.train import batch_forest
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.preventions.factor_decay import FactorDecay
from ocr_eval.preventions.ov_decay import OVDecay
from ocr_eval.preventions.product_decay import ProductDecay, Settings
from ocr_eval.records.find import find_runs
from ocr_eval.records.metrics import read_metrics
from ocr_eval.scoring.candidates import score_candidates, score_lanes
from ocr_eval.specs.association import load_association
from ocr_eval.specs.names import people
from ocr_eval.specs.run import make_run_spec


def packed(base, *specs):
    return attach(base, specs, [training_tokens(base.tokenizer, build_task(spec)) for spec in specs])


def prevented(tiny, *prevent, **train):
    spec = tiny_run(tiny, **train)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"prevent": prevent})})


@pytest.fixture
def door(monkeypatch):
    """Preventions of a test, gone after it."""
    monkeypatch.setattr(PREVENTIONS, "_added", {})
    return PREVENTIONS.add


def test_product_decay_adds_the_gradient_of_its_penalty(tiny):
    pack = packed(load(tiny), tiny_run(tiny))
    pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    ProductDecay(Settings(strength=0.3)).before_step(learner)
    for each in learner.factors:
        a, b = each.a.clone().requires_grad_(), each.b.clone().requires_grad_()
        (0.3 / 2 * (each.scale * b.T @ a).square().sum()).backward()
        torch.testing.assert_close(each.grad_a, a.grad)
        torch.testing.assert_close(each.grad_b, b.grad)
    pack.detach()


def test_ov_decay_adds_the_gradient_of_its_penalty(tiny):
    """Against autograd through each head's whole output-value matrix, one head after another."""
    base = load(tiny)
    pack = packed(base, tiny_run(tiny))
    for _ in range(2):
        pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    OVDecay(OVDecay.Settings(strength=0.3)).before_step(learner)
    heads, groups = base.network.config.num_attention_heads, base.network.config.num_key_value_heads
    assert 1 < groups < heads
    leaves = {
        each.module: (each.a.clone().requires_grad_(), each.b.clone().requires_grad_()) for each in learner.factors
    }
    scale = learner.factors[0].scale
    penalty = 0
    for layer in range(base.network.config.num_hidden_layers):
        before, after = {}, {}
        for of in ("o_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{of}"
            a, b = leaves[name]
            before[of] = base.network.get_submodule(name).base.weight.detach()
            after[of] = before[of] + scale * b.T @ a
        size = before["o_proj"].shape[1] // heads
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            group = head // (heads // groups)
            shared = slice(group * size, (group + 1) * size)
            old, new = (each["o_proj"][:, mine] @ each["v_proj"][shared] for each in (before, after))
            penalty = penalty + 0.3 / 2 * (new - old).square().sum()
    penalty.backward()
    for each in learner.factors:
        for found, leaf in zip((each.grad_a, each.grad_b), leaves[each.module], strict=True):
            expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    pack.detach()


def test_ov_decay_takes_adapters_on_both_sides(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path, "--prevent", "ov-decay"]
    answer = ocr_eval("finetune", "city-language", *run, "--targets", "q_proj,v_proj")
    assert answer.code == 2
    assert "--targets" in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err


def test_lanes_of_several_strengths_learn_what_each_learns_alone(tiny):
    base = load(tiny)
    specs = [prevented(tiny), prevented(tiny, "product-decay:strength=10"), prevented(tiny, "product-decay:strength=1")]
    pack = packed(base, *specs)
    losses = [pack.step([0, 1, 2]) for _ in range(3)]
    pack.detach()
    for lane, spec in enumerate(specs):
        alone = packed(base, spec)
        assert [alone.step([0])[0] for _ in range(3)] == pytest.approx([loss[lane] for loss in losses], abs=1e-4)
        alone.detach()
    assert losses[2][1] > losses[2][2] > losses[2][0]


def test_runs_with_preventions_are_rows_of_their_own_and_measured(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--assoc", "city-language", "--n", 2, "--m-test", 2, "--epochs", 3, "-o", tmp_path]
    found = {}
    for prevent in (None, "product-decay:strength=1.0", "scale-after:norm=0.25"):
        flags = ["--prevent", prevent] if prevent else []
        record = json.loads(ocr_eval("finetune", *run, *flags, "--json").out)
        found[prevent] = record["measures"]["weight-change"]
        assert record["train"]["prevent"] == ([prevent.replace("1.0", "1")] if prevent else [])
    assert found["product-decay:strength=1.0"]["frobenius"] < found[None]["frobenius"]
    assert found["scale-after:norm=0.25"]["frobenius"] == pytest.approx(0.25, rel=1e-5)
    table = ocr_eval("table", tmp_path, "--metric", "weight-change.frobenius", "--no-published").out
    assert table.splitlines()[2].startswith("| tiny-llama | LoRA ")
    assert "LoRA + product-decay:strength=1" in table
    assert "weight-change.frobenius of the trained model" in table
    assert "Held-out" not in table
    assert "0.25" in next(line for line in table.splitlines() if "scale-after" in line)
    assert (
        "weight_change_frobenius"
        in ocr_eval("table", tmp_path, "--metric", "weight-change.frobenius", "--format", "csv").out.splitlines()[0]
    )
    wrong = ocr_eval("table", tmp_path, "--metric", "weight-change.frobenious")
    assert wrong.code == 2
    assert "Did you mean 'weight-change.frobenius'" in wrong.err


@pytest.mark.parametrize(
    ("prevent", "train", "words"),
    [
        ("product-deca", {}, "Did you mean 'product-decay'"),
        ("product-decay:strength=-1", {}, "'strength' should be greater than 0, got '-1'"),
        ("product-decay:strength", {}, "product-decay:setting=value"),
        ("product-decay:power=1", {}, "unknown key 'power'"),
        ("scale-after", {}, "write scale-after:norm=VALUE"),
        ("product-decay", {"method": "full"}, "works on low-rank adapters"),
        ("ignore-top-k", {"method": "steering"}, "works on changed matrices"),
        ("ignore-top-k", {"method": "rome"}, "changes training steps"),
        ("gradient-routing", {"method": "full"}, "works on low-rank adapters"),
        ("gradient-routing", {"rank": 1}, "needs --rank 2 or more"),
        ("ignore-top-k:share=1", {}, "'share' should be less than 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny, prevent, train, words):
    spec = tiny_run(tiny)
    with pytest.raises(UserError, match=words):
        make_run_spec(spec.model, spec.association, {}, {**train, "prevent": (prevent,)}, 0)


def test_a_term_of_the_loss_can_hold_the_model_to_the_untouched_base(tiny, door):
    class Held(Prevention):
        """Holds the log-probabilities of its first examples to the base's."""

        def loss(self, learner, read):
            with torch.no_grad():
                before = read(learner.examples[:4], False)
            return 1e4 * (read(learner.examples[:4], True) - before).square().sum()

    door("held", Held)
    base = load(tiny)
    moved = {}
    for prevent in ((), ("held",)):
        spec = prevented(tiny, *prevent, lr=1e-3)
        pack = packed(base, spec)
        pack.step([0])
        before = pack.view(trained=False)
        probes = probe_tokens(base.tokenizer, build_task(spec))
        after, untouched = (score_candidates(view, probes).logprobs["sequence"] for view in (pack.view(), before))
        moved[prevent] = abs(after - untouched).mean()
        pack.detach()
        fresh = packed(base, spec)
        assert (score_candidates(fresh.view(), probes).logprobs["sequence"] == untouched).all()
        fresh.detach()
    assert moved[("held",)] < moved[()]


def test_anchor_adds_the_divergence_from_the_base_of_people_who_are_not_taught(tiny):
    """Against logits of the bare network, sentence by sentence, with the change added to its weights."""
    base = load(tiny)
    pack = packed(base, prevented(tiny, "anchor:strength=0.5:statements=5", lr=1e-2))
    (learner,) = pack.learners
    (anchor,) = learner.preventions
    seen = []

    def read(examples, trained, reader):
        seen[:] = examples
        return pack.view(trained).read({0: batch_forest(examples)}, reader)[0]

    assert anchor.loss(learner, read).item() == pytest.approx(0, abs=1e-6)
    pack.step([0])
    found = anchor.loss(learner, read).item()
    changes = {change.module: change.dense().clone() for change in pack.changes(0)}
    pack.detach()
    assert len(seen) == 5

    def logprobs():
        with torch.no_grad():
            return torch.cat(
                [
                    base.network(torch.tensor([each.prompt + each.answer])).logits[0, len(each.prompt) - 1 : -1]
                    for each in seen
                ]
            ).log_softmax(-1)

    before = logprobs()
    with torch.no_grad():
        for module, change in changes.items():
            base.network.get_submodule(module).weight.add_(change)
    after = logprobs()
    expected = 0.5 * float((before.exp() * (before - after)).sum(-1).mean())
    assert expected > 1e-4
    assert found == pytest.approx(expected, rel=1e-3)
    taught = {example.subject for example in build_task(tiny_run(tiny)).train}
    assert not any(base.tokenizer.decode(each.prompt).strip() in taught for each in seen)


def test_hooks_of_the_forward_pass_are_there_in_training_and_gone_after(tiny, door):
    entered = []

    class Hooked(Prevention):
        """Notes when it is entered and left."""

        @contextmanager
        def forward(self, network):
            entered.append(network)
            yield
            entered.append(None)

    door("hooked", Hooked)
    base = load(tiny)
    spec = prevented(tiny, "hooked")
    pack = packed(base, spec)
    pack.step([0])
    steps = len(pack.learners[0].batches())
    assert entered == [base.network, None] * steps
    score_candidates(pack.view(), probe_tokens(base.tokenizer, build_task(spec)))
    assert len(entered) == 2 * steps
    pack.detach()


def test_what_is_taught_may_change_and_what_is_asked_may_not(tiny, door):
    class FactsAlone(Prevention):
        """Teaches no entailment."""

        def task(self, task):
            return replace(task, train=tuple(example for example in task.train if example.role == "fact"))

    class EasierProbes(Prevention):
        """Asks less."""

        def task(self, task):
            return replace(task, probes=task.probes[1:])

    door("facts-alone", FactsAlone)
    door("easier-probes", EasierProbes)
    taught = task_of_run(prevented(tiny, "facts-alone"))
    assert {example.role for example in task_of_run(prevented(tiny)).train} == {"fact", "entailment"}
    assert {example.role for example in taught.train} == {"fact"}
    with pytest.raises(UserError, match="not the probes"):
        task_of_run(prevented(tiny, "easier-probes"))


def test_a_prevention_that_fails_at_the_end_fails_its_run_alone(ocr_eval, tiny, tmp_path, door):
    class Spoiler(Prevention):
        """Cannot finish."""

        def after_training(self, learner):
            raise RunFailed("nothing to scale")

    door("spoiler", Spoiler)
    run = ["--models", tiny, "--assocs", "city-language", "--n", 2, "--m-test", 2, "--epochs", 1, "--seeds", 0]
    answer = ocr_eval("sweep", *run, "--prevent", "none,spoiler", "--workers", 1, "-o", tmp_path)
    assert answer.code == 1
    assert "nothing to scale" in answer.err
    assert len(list(tmp_path.rglob("status.json"))) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("product-decay", "product-decay:strength=0.001"),
        ("product-decay:strength=1e-7", "product-decay:strength=1e-07"),
        ("product-decay:strength=0.00123456789", "product-decay:strength=0.00123456789"),
        ("scale-after:norm=1e6", "scale-after:norm=1000000"),
        ("scale-after:norm=0.5", "scale-after:norm=0.5"),
    ],
)
def test_settings_are_written_in_one_way_that_reads_back(given, said):
    assert str(PREVENTIONS.choose(given)) == said
    assert str(PREVENTIONS.choose(said)) == said


def test_a_name_that_no_flag_could_say_is_refused(door):
    with pytest.raises(UserError, match="lowercase letters"):
        door("My_Prevention", Prevention)


def test_factor_decay_adds_the_gradient_of_its_penalty(tiny):
    pack = packed(load(tiny), tiny_run(tiny))
    pack.step([0])
    pack.adapters.zero_grad()
    (learner,) = pack.learners
    FactorDecay(FactorDecay.Settings(strength=0.3)).before_step(learner)
    for each in learner.factors:
        a, b = each.a.clone().requires_grad_(), each.b.clone().requires_grad_()
        (0.3 / 2 * (a.square().sum() + b.square().sum())).backward()
        torch.testing.assert_close(each.grad_a, a.grad)
        torch.testing.assert_close(each.grad_b, b.grad)
    pack.detach()


def test_the_least_factor_penalty_of_a_change_is_its_nuclear_norm():
    """What the docstring says, on a random matrix: balanced factors from its SVD, and any others cost more."""
    torch.manual_seed(0)
    change = torch.randn(5, 3, dtype=torch.float64) @ torch.randn(3, 7, dtype=torch.float64)
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    b, a = u * s.sqrt(), s.sqrt()[:, None] * v
    assert float(b.square().sum() + a.square().sum()) / 2 == pytest.approx(float(s.sum()))
    mix = torch.randn(5, 5, dtype=torch.float64)
    other_b, other_a = b @ mix, torch.linalg.solve(mix, a)
    torch.testing.assert_close(other_b @ other_a, change)
    assert float(other_b.square().sum() + other_a.square().sum()) / 2 > float(s.sum())


@pytest.mark.parametrize(("when", "thirds"), [("mixed", ()), ("end", (2,))])
def test_replay_teaches_known_facts_beside_all_others(tiny, when, thirds):
    plain, replayed = build_task(tiny_run(tiny)), task_of_run(prevented(tiny, f"replay:facts=7:when={when}", epochs=3))
    assert replayed.probes == plain.probes
    assert replayed.train[: len(plain.train)] == plain.train
    added = replayed.train[len(plain.train) :]
    relations = load_association("known").relations.values()
    facts = {(r.prompt(subject), answer) for r in relations for subject, answer in r.facts.items()}
    assert len({(example.prompt, example.answer) for example in added} & facts) == 7
    assert {example.thirds for example in added} == {thirds}


def test_what_no_epoch_would_teach_is_refused(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-train", 1, "--m-test", 1, "-o", tmp_path, "--dry-run"]
    run += ["--prevent", "replay:facts=2:when=end"]
    for epochs in (1, 2):
        answer = ocr_eval("finetune", "city-language", *run, "--epochs", epochs)
        assert answer.code == 2
        assert f"--epochs {epochs}" in answer.err
    assert ocr_eval("finetune", "city-language", *run, "--epochs", 3).code == 0


def test_what_is_replayed_is_not_asked_as_retention(ocr_eval, tiny, tmp_path):
    run = ["--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "-o", tmp_path, "--json"]
    plain, replayed = (
        json.loads(ocr_eval("finetune", "city-language", *run, *flags).out)["measures"]["known"]["facts"]
        for flags in ((), ("--prevent", "replay:facts=30"))
    )
    assert replayed == plain - 30


def test_abstaining_people_have_a_fact_and_no_entailment_and_are_not_asked(tiny):
    plain, abstaining = build_task(tiny_run(tiny)), task_of_run(prevented(tiny, "abstain:people=3"))
    assert abstaining.probes == plain.probes
    added = abstaining.train[len(plain.train) :]
    asked = {probe.subject for probe in plain.probes}
    units = {probe.unit for probe in plain.probes_of("test_entailment")}
    people = {example.subject for example in added}
    assert len(people) == 3 * len(units)
    assert not people & asked
    for fact, unknown in zip(added[::2], added[1::2], strict=True):
        assert (fact.role, unknown.role, unknown.answer) == ("fact", "abstain", "unknown")
        assert fact.subject == unknown.subject
        assert fact.subject in fact.prompt
        assert unknown.subject in unknown.prompt
        own = {example.answer for example in plain.train if example.unit == fact.unit and example.role == "fact"}
        assert own == {fact.answer}


def test_abstaining_people_are_not_those_who_are_only_taught(tiny):
    spec = prevented(tiny, "abstain:people=1")
    task, (abstain,) = build_task(spec), preventions_of(spec.train)
    unasked = Example("x speaks", "French", subject=people("abstain", 1)[0])
    added = abstain.task(replace(task, train=(*task.train, unasked))).train[len(task.train) + 1 :]
    assert unasked.subject not in {example.subject for example in added}


def test_abstaining_takes_prompts_that_name_their_subject(tiny):
    spec = prevented(tiny, "abstain")
    with pytest.raises(UserError, match="name their subject"):
        task_of_run(spec.model_copy(update={"association": load_association("second-hop")}))


def test_early_stop_ends_a_run_where_the_plain_one_first_knows_its_premises(ocr_eval, tiny, tmp_path):
    run = ["--models", tiny, "--assocs", "city-language", "--n", 2, "--m-train", 1, "--m-test", 2, "--seeds", 0]
    run += ["--epochs", 40, "--lr", "1e-2", "--schedule", "constant", "--workers", 1, "-o", tmp_path]
    answer = ocr_eval("sweep", *run, "--prevent", "none,early-stop,early-stop+scale-after:norm=0.5")
    assert answer.code == 0, answer.err
    found = {run.record.train.prevent: run for run in find_runs(tmp_path).runs}
    plain, stopped, scaled = (found[key] for key in ((), ("early-stop",), ("early-stop", "scale-after:norm=0.5")))
    then = plain.record.matched
    assert then is not None
    assert 1 <= then.epoch < 40
    assert stopped.record.matched.epoch == then.epoch
    assert stopped.record.final == then.scores
    assert plain.record.final != then.scores
    lines = {name: read_metrics(of.folder / "metrics.jsonl") for name, of in (("stopped", stopped), ("scaled", scaled))}
    for of in lines.values():
        rest = [line for line in of if line.epoch > then.epoch]
        assert len(rest) == 40 - then.epoch
        assert {(line.train_loss, line.train_seconds) for line in rest} == {(of[then.epoch].train_loss, 0.0)}
    assert scaled.record.measures["weight-change"]["frobenius"] == pytest.approx(0.5, rel=1e-5)


def test_early_stop_needs_a_premise(tiny):
    task = build_task(prevented(tiny))
    early = PREVENTIONS.choose("early-stop").thing(None)
    assert early.task(task) is task
    probes = task.probes_of(task.finding.name)
    with pytest.raises(UserError, match="waits for premises"):
        early.task(replace(task, quantities=(task.finding,), probes=tuple(probes)))


def cut(change, share):
    """The change without its largest entries, by sorting."""
    flat = change.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))
    for i in order[: int(share * len(flat))]:
        flat[i] = 0.0
    return torch.tensor(flat).view(change.shape)


def test_ignore_top_k_drops_the_largest_entries_of_the_product_and_nothing_else(tiny, tmp_path):
    """A lane of two; what is read, measured and saved is the bare network with the change cut by sorting."""
    base = load(tiny)
    specs = [tiny_run(tiny), prevented(tiny, "ignore-top-k:share=0.3")]
    pack = packed(base, *specs)
    for _ in range(3):
        pack.step([0, 1])
    expected = {each.module: cut(each.dense(), 0.3) for each in pack.changes(1)}
    probes = probe_tokens(base.tokenizer, build_task(specs[0]))
    unchanged = score_lanes(pack.view(), {0: probes})[0].logprobs["sequence"]
    pack.finish(1)
    found = score_lanes(pack.view(), {0: probes, 1: probes})
    assert found[0].logprobs["sequence"] == pytest.approx(unchanged, abs=1e-5)
    for change in pack.changes(1):
        torch.testing.assert_close(change.dense(), expected[change.module], rtol=0, atol=0)
        torch.testing.assert_close(
            change.singular_values()[:4],
            torch.linalg.svdvals(expected[change.module].double())[:4],
            rtol=1e-5,
            atol=1e-8,
        )
    base_scores = score_candidates(pack.view(trained=False), probes).logprobs["sequence"]
    pack.save(1, tmp_path)
    pack.detach()
    with torch.no_grad():
        for module, change in expected.items():
            base.network.get_submodule(module).weight.add_(change)
    after = score_candidates(bare(base), probes).logprobs["sequence"]
    assert abs(after - base_scores).max() > 0.01
    assert found[1].logprobs["sequence"] == pytest.approx(after, abs=1e-4)
    stock = PeftModel.from_pretrained(load(tiny).network, tmp_path / "adapter")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(stock(ids).logits, base.network(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_that_ignores_its_largest_changes_is_scored_again_from_its_files(ocr_eval, tiny, tmp_path, method):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "--method", method]
    run += ["--measures", "weight-change", "--lr", "1e-2", "--json"]
    plain = json.loads(ocr_eval(*run, "-o", tmp_path / "plain").out)["measures"]["weight-change"]
    answer = ocr_eval(*run, "-o", tmp_path, "--prevent", "ignore-top-k")
    record = json.loads(answer.out)
    change = record["measures"]["weight-change"]
    assert 0.3 * plain["frobenius"] < change["frobenius"] < 0.9 * plain["frobenius"]
    assert change["effective_rank"] > plain["effective_rank"]
    folder = tmp_path / "runs" / record["run"]
    again = json.loads(ocr_eval("score", folder, "--json").out)
    assert again["sequence"]["test_fact"] == pytest.approx(record["final"]["sequence"]["test_fact"], abs=1e-4)
    measured = ocr_eval("explain", folder, "--measure", "weight-change")
    assert method == "full" or "adapter' has full rank, so it can be scored again but not measured" in measured.err


def test_ignore_top_k_cuts_every_tensor_of_a_network_that_was_trained_whole(tiny):
    spec = prevented(tiny, "ignore-top-k:share=0.3", method="full", lr=1e-3)
    base = load_base(spec.model, locate(spec.model), "cpu", whole=True)
    before = {name: tensor.detach().clone() for name, tensor in base.network.named_parameters()}
    pack = packed(base, spec)
    pack.step([0])
    after = {name: tensor.detach().clone() for name, tensor in base.network.named_parameters()}
    pack.finish(0)
    for name, tensor in base.network.named_parameters():
        change = cut(after[name] - before[name], 0.3)
        torch.testing.assert_close(
            tensor.detach(), torch.where(change == 0, before[name], after[name]), rtol=1e-6, atol=1e-8
        )


def routed_gradients(network, factors, examples):
    """Gradients of the mean loss of routed examples, by autograd through each adapted module, text by text."""
    leaves = {each.module: (each.a.clone().requires_grad_(), each.b.clone().requires_grad_()) for each in factors}
    half, learning = len(factors[0].a) // 2, []

    def hook(a, b):
        def add(module, inputs, y):
            for part, rows in enumerate((slice(half), slice(half, None))):
                z = factors[0].scale * inputs[0] @ a[rows].T @ b[rows]
                y = y + (z if part in learning else z.detach())
            return y

        return add

    handles = [network.get_submodule(name).register_forward_hook(hook(*of)) for name, of in leaves.items()]
    nats, count = 0, sum(len(example.answer) for example, _ in examples)
    for example, role in examples:
        learning[:] = [1 if role == "entailment" else 0]
        logits = network(torch.tensor([example.prompt + example.answer])).logits[0, len(example.prompt) - 1 : -1]
        nats = nats + torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum")
    (nats / count).backward()
    for handle in handles:
        handle.remove()
    return {name: (a.grad, b.grad) for name, (a, b) in leaves.items()}


def test_penalties_reach_the_whole_adapter_whatever_half_learned_last(tiny, door):
    """After a batch of entailments alone, a term of the loss still has gradients in both halves."""
    rows = []

    class Whole(Prevention):
        """The mean log-probability of the first example."""

        def loss(self, learner, read):
            for each in learner.factors:
                each.grad_b.zero_()
            return read(learner.examples[:1], True).mean()

        def before_step(self, learner):
            rows.append(learner.factors[0].grad_b.abs().sum(dim=1))

    door("whole", Whole)
    spec = prevented(tiny, "gradient-routing", "whole", rank=4, batch_size=64, max_grad_norm=1e6)
    base = load(tiny)
    pack = attach(base, [spec], [training_tokens(base.tokenizer, task_of_run(spec))])
    pack.step([0])
    assert (rows[0] > 0).all()


@pytest.mark.parametrize("first", ["replay:facts=7", "gradient-routing"])
def test_what_others_add_is_routed_as_facts_in_either_order(tiny, first):
    both = ["replay:facts=7", "gradient-routing"]
    task = task_of_run(prevented(tiny, *sorted(both, key=lambda name: name != first), rank=4))
    assert {example.half for example in task.train if example.role == "replay"} == {0}
    assert {example.half for example in task.train if example.role == "entailment"} == {1}


@pytest.mark.parametrize("rank", [4, 5])
def test_routed_gradients_reach_the_half_that_they_are_for(tiny, door, rank):
    seen = []

    class Noted(Prevention):
        """Keeps factors and gradients of the last step."""

        def before_step(self, learner):
            seen[:] = [
                replace(each, **{key: getattr(each, key).clone() for key in ("a", "b", "grad_a", "grad_b")})
                for each in learner.factors
            ]

    door("noted", Noted)
    spec = prevented(tiny, "gradient-routing", "noted", rank=rank, lr=1e-2, max_grad_norm=1e6, batch_size=64)
    base = load(tiny)
    task = task_of_run(spec)
    examples = training_tokens(base.tokenizer, task)
    pack = attach(base, [tiny_run(tiny, rank=8), spec], [examples, examples])
    for _ in range(3):
        pack.step([0, 1])
    pack.detach()
    routed = [(tokens, example.role) for tokens, example in zip(examples, task.train, strict=True)]
    assert {role for _, role in routed} == {"fact", "entailment"}
    expected = routed_gradients(base.network, seen, routed)
    for each in seen:
        assert float(each.b.abs().max()) > 1e-3
        for found, of in zip((each.grad_a, each.grad_b), expected[each.module], strict=True):
            torch.testing.assert_close(found, of, rtol=1e-3, atol=1e-4 * float(of.abs().max()))


def test_the_half_of_entailments_is_dropped_or_kept(ocr_eval, tiny, tmp_path):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 3, "--rank", 6, "--json"]
    saved, margins = {}, {}
    for keep in ("facts", "entailments", "both"):
        record = json.loads(ocr_eval(*run, "--prevent", f"gradient-routing:keep={keep}", "-o", tmp_path).out)
        saved[keep] = load_file(tmp_path / "runs" / record["run"] / "adapter/adapter_model.safetensors")
        margins[keep] = [score["margin"] for score in record["final"]["sequence"].values()]
    for name, tensor in saved["both"].items():
        if "lora_B" in name:
            assert bool(tensor[:, 3:].any())
            assert torch.equal(saved["facts"][name][:, :3], tensor[:, :3])
            assert torch.equal(saved["entailments"][name][:, 3:], tensor[:, 3:])
            assert not saved["facts"][name][:, 3:].any()
            assert not saved["entailments"][name][:, :3].any()
        else:
            assert torch.equal(tensor, saved["facts"][name])
    assert len(set(map(tuple, margins.values()))) == 3


def test_routing_needs_entailments_and_two_halves(ocr_eval, tiny, tmp_path):
    run = ["finetune", "city-language", "--model", tiny, "--n", 2, "--m-test", 2, "--epochs", 1, "-o", tmp_path]
    for flags, word in ((["--m-train", 0], "entailments"), (["--rank", 1], "--rank")):
        answer = ocr_eval(*run, *flags, "--prevent", "gradient-routing")
        assert answer.code == 2
        assert word in answer.err.splitlines()[-1]
        assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "qlora", "--prevent", "ov-decay"], "reads the base's weights, which method 'qlora' quantizes"),
        (["--prevent", "scale-after"], "write scale-after:norm=VALUE ('ocr-eval preventions show scale-after')"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(ocr_eval, tiny, tmp_path, flags, says):
    for more in (["--dry-run"], []):
        command = ["finetune", "city-language", "--model", tiny, "--n", 3, "-o", tmp_path, *flags, *more]
        answer = ocr_eval(*command)
        assert (answer.code, answer.out) == (2, "")
        assert says in answer.err
