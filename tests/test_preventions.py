"""Preventions: their gradients against autograd, their effect through a whole run, and each hook of the door."""

import json
from contextlib import contextmanager

import pytest
import torch
from conftest import load, packed, prevented, tiny_run

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.methods.prevention import Prevention
from ocr_eval.methods.train import batch_forest
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.specs.run import make_run_spec


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
        ("product_decay", {}, "Did you mean 'product-decay'"),
        ("product-decay:strenght=1", {}, "Did you mean 'strength'\\? Available: strength\\."),
        ("product-decay", {"method": "LORA"}, "Did you mean 'lora'"),
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


def test_a_term_of_the_loss_can_hold_the_model_to_the_untouched_base(tiny, add_prevention):
    class Held(Prevention):
        """Holds the log-probabilities of its first examples to the base's."""

        def loss(self, learner, read):
            with torch.no_grad():
                before = read(learner.examples[:4], False)
            return 1e4 * (read(learner.examples[:4], True) - before).square().sum()

    add_prevention("held", Held)
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


def test_hooks_of_the_forward_pass_are_there_in_training_and_gone_after(tiny, add_prevention):
    entered = []

    class Hooked(Prevention):
        """Notes when it is entered and left."""

        @contextmanager
        def forward(self, network):
            entered.append(network)
            yield
            entered.append(None)

    add_prevention("hooked", Hooked)
    base = load(tiny)
    spec = prevented(tiny, "hooked")
    pack = packed(base, spec)
    pack.step([0])
    steps = len(pack.learners[0].batches())
    assert entered == [base.network, None] * steps
    score_candidates(pack.view(), probe_tokens(base.tokenizer, build_task(spec)))
    assert len(entered) == 2 * steps
    pack.detach()


def test_a_prevention_that_fails_at_the_end_fails_its_run_alone(ocr_eval, tiny, tmp_path, add_prevention):
    class Spoiler(Prevention):
        """Cannot finish."""

        def after_training(self, learner):
            raise RunFailed("nothing to scale")

    add_prevention("spoiler", Spoiler)
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


def test_a_name_that_no_flag_could_say_is_refused(add_prevention):
    with pytest.raises(UserError, match="lowercase letters"):
        add_prevention("My_Prevention", Prevention)


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
