"""Preventions that change what is taught, or for how long: replay, abstain, early-stop."""

import json
from dataclasses import replace

import pytest
from conftest import prevented, tiny_run

from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import PREVENTIONS
from ocr_eval.data.task import Example, build_task
from ocr_eval.methods.prevention import Prevention, preventions_of, task_of_run
from ocr_eval.records.find import find_runs
from ocr_eval.records.metrics import read_metrics
from ocr_eval.specs.association import load_association
from ocr_eval.specs.names import people


def test_what_is_taught_may_change_and_what_is_asked_may_not(tiny, add_prevention):
    class FactsAlone(Prevention):
        """Teaches no entailment."""

        def task(self, task):
            return replace(task, train=tuple(example for example in task.train if example.role == "fact"))

    class EasierProbes(Prevention):
        """Asks less."""

        def task(self, task):
            return replace(task, probes=task.probes[1:])

    add_prevention("facts-alone", FactsAlone)
    add_prevention("easier-probes", EasierProbes)
    taught = task_of_run(prevented(tiny, "facts-alone"))
    assert {example.role for example in task_of_run(prevented(tiny)).train} == {"fact", "entailment"}
    assert {example.role for example in taught.train} == {"fact"}
    with pytest.raises(UserError, match="not the probes"):
        task_of_run(prevented(tiny, "easier-probes"))


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
