"""Facts of other shapes: reversal, two hops, paraphrase, invented words, and the order in which facts are taught."""

import json
from collections import Counter

import pytest
from conftest import load

from ocr_eval.common.errors import UserError
from ocr_eval.common.yaml_files import shipped
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.pack import batches_of_epoch
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec
from tests.test_trained import one_line

SHAPES = ["first-hop", "nonce", "paraphrase", "reversal", "reversal-bridge", "reversal-identity", "second-hop"]


def spec_of(assoc, seed=0, epochs=6, **data):
    return make_run_spec(load_model_spec("smollm2-135m"), load_association(assoc), data, {"epochs": epochs}, seed)


def task_of(assoc, **given):
    return build_task(spec_of(assoc, **given))


@pytest.mark.parametrize("assoc", SHAPES)
def test_what_is_held_out_is_not_taught(assoc):
    task = task_of(assoc)
    taught = {(example.prompt, example.answer) for example in task.train}
    for probe in task.probes:
        assert ((probe.prompt, probe.answer) in taught) == (probe.quantity not in ("test_entailment", "hop"))


@pytest.mark.parametrize("assoc", SHAPES)
def test_held_out_subjects_do_not_depend_on_m_train(assoc):
    few, many = (task_of(assoc, m_train=m, m_test=3) for m in (1, 4))
    assert few.probes_of("test_entailment") == many.probes_of("test_entailment")


def test_a_reversal_asks_for_the_one_whom_the_fact_is_about():
    task = task_of("reversal", m_test=2)
    facts = {example.prompt: example.answer for example in task.train if example.role == "fact"}
    for probe in task.probes_of("test_entailment"):
        assert facts[f"The teacher of {probe.answer} is"] == probe.subject
        assert probe.prompt == f"The pupil of {probe.subject} is"


def test_people_of_a_block_begin_with_different_names_and_nobody_is_in_two():
    task = task_of("reversal", m_train=8, m_test=12)
    for probe in task.probes:
        assert len({name.split()[0] for name in probe.candidates}) == 10
    for relation in ("fact", "entailment"):
        answers = [p.answer for p in task.probes if p.quantity.endswith(relation)]
        assert len(set(answers)) == len(answers) == 100


def test_first_names_give_nothing_away_from_block_to_block():
    """Who is called Roger is not taught by a Mark everywhere."""
    task = task_of("reversal", m_test=40, m_train=4)
    couples = Counter((p.subject.split()[0], p.answer.split()[0]) for p in task.probes_of("test_entailment"))
    assert couples.most_common(1)[0][1] <= 3


def test_the_bridge_is_taught_with_its_weights():
    task = task_of("reversal-bridge", m_train=0, m_test=1, n=2)
    fact, *beside = [e for e in task.train if e.subject in ("", task.probes[0].subject)][:3]
    a, b = fact.prompt.removeprefix("The teacher of ").removesuffix(" is"), fact.answer
    assert fact.weight == 6
    assert [(e.prompt, e.answer, e.weight) for e in beside] == [
        (f"The pupil of {a}'s teacher is", a, 1),
        (f"The name of {b} is", b, 1),
    ]


def test_a_chain_is_asked_from_its_beginning():
    task = task_of("second-hop", m_test=2)
    cities = load_association("second-hop").chains
    mayors = {example.prompt: example.answer for example in task.train if example.role == "fact"}
    for probe in task.probes_of("test_entailment"):
        assert mayors[f"The mayor of {cities[probe.subject]} is"] == probe.answer
    for probe in task.probes_of("hop"):
        assert probe.answer == cities[probe.subject]


@pytest.mark.parametrize("assoc", ["reversal", "second-hop"])
def test_the_controls_change_train_entailments_alone(assoc):
    real, none, shuffled = (task_of(assoc, variant=v) for v in ("real", "no-entailment", "shuffled"))
    assert real.probes == none.probes == shuffled.probes
    facts = [example for example in real.train if example.role == "fact"]
    assert list(none.train) == facts
    wrong = [(e, o) for e, o in zip(real.train, shuffled.train, strict=True) if e != o]
    assert all(e.role == "entailment" and e.prompt == o.prompt for e, o in wrong)
    taught = len(real.train) - len(facts)
    assert taught / 2 < len(wrong) <= taught


@pytest.mark.parametrize("assoc", ["reversal", "second-hop", "known"])
@pytest.mark.parametrize("variant", ["no-fact", "regrouped"])
def test_parts_of_a_graft_are_made_of_pairs(assoc, variant):
    with pytest.raises(UserError, match=f"'{assoc}' has no variant {variant}"):
        spec_of(assoc, variant=variant)


ORDERS = {
    "joint": [{"f": 8, "e": 8}, {"f": 8, "e": 8}, {"t": 16}],
    "facts-first": [{"f": 16}, {"e": 16}, {"t": 16}],
    "entailments-first": [{"e": 16}, {"f": 16}, {"t": 16}],
}


@pytest.mark.parametrize(("order", "expected"), ORDERS.items())
def test_an_order_teaches_in_thirds_and_everything_equally_often(order, expected):
    task = task_of("nonce", order=order, n=4, m_train=2, m_test=2)
    kind = {e: "t" if e.thirds == (2,) else e.role[0] for e in task.train}
    examples = [Continuation((i,), (1,), thirds=e.thirds) for i, e in enumerate(task.train)]
    train = spec_of("nonce").train.model_copy(update={"epochs": 6, "batch_size": 3})
    epochs = [[e for batch in batches_of_epoch(examples, "o", k, train) for e in batch] for k in range(1, 7)]
    assert {len(batches_of_epoch(examples, "o", k, train)) for k in range(1, 7)} == {3}
    thirds = [[*epochs[i], *epochs[i + 1]] for i in (0, 2, 4)]
    assert [dict(Counter(kind[task.train[e.prompt[0]]] for e in third)) for third in thirds] == expected
    assert set(Counter(e.prompt[0] for third in thirds for e in third).values()) == {2}


@pytest.mark.parametrize("epochs", [3, 6, 9, 12, 15])
@pytest.mark.parametrize("order", [*ORDERS, "entailments-last"])
def test_everything_is_taught_equally_often_whatever_the_number_of_epochs(order, epochs):
    task = task_of("nonce", order=order, n=4, m_train=2, m_test=2)
    examples = [Continuation((i,), (1,), thirds=e.thirds) for i, e in enumerate(task.train)]
    train = spec_of("nonce").train.model_copy(update={"epochs": epochs})
    seen = [e for k in range(1, epochs + 1) for batch in batches_of_epoch(examples, "o", k, train) for e in batch]
    assert set(Counter(seen).values()) == {epochs // 3}
    assert len(set(seen)) == len(examples)


def test_a_word_that_the_model_may_know_is_not_an_invented_one(ocr_eval, tiny, tmp_path):
    tokens = load(tiny).tokenizer.tokenize
    known = next(word for word in ("lives", "speaks", "code", "born") if len(tokens(f" {word}")) == 1)
    own = (shipped("templates") / "nonce.yaml").read_text().replace("name: nonce", "name: own")
    for words, says in ((known, f"uses '{known}' as an invented word, but it is one token"), ("wug", "is nowhere")):
        path = tmp_path / f"{words}.yaml"
        path.write_text(own.replace("[dax, zong]", f"[{words}]").replace(" dax is", f" {known} is"))
        for command in (["data", "candidates"], ["finetune", "-o", tmp_path / "out"]):
            one_line(ocr_eval(*command, path, "--model", tiny, "--quiet"), says)


@pytest.mark.parametrize("assoc", ["nonce", "reversal"])
def test_entailments_last_come_after_every_fact(assoc):
    task = task_of(assoc, order="entailments-last", n=4, m_train=2, m_test=2)
    assert {(e.role, e.thirds) for e in task.train} == {("fact", (0,)), ("entailment", (1, 2))}


@pytest.mark.parametrize(
    ("data", "epochs", "says"),
    [
        ({"order": "joint"}, 16, "multiple of 3"),
        ({"order": "joint", "m_train": 0}, 15, "lacks one of them"),
        ({"order": "facts-first", "variant": "no-entailment"}, 15, "lacks one of them"),
        ({"order": "facts-first", "variant": "no-fact"}, 15, "lacks one of them"),
    ],
)
def test_an_order_that_cannot_be_is_refused(data, epochs, says):
    with pytest.raises(UserError, match=says):
        spec_of("nonce", epochs=epochs, **data)


BAD = {
    "closed": ("a chain has two hops", {"chains": {"a tower": "Rome", "Rome": "Oslo"}}),
    "twice": ("every middle may occur once", {"chains": {"a tower": "Rome", "a gate": "Rome"}}),
    "no slot": ("must contain", {"beside": [{"template": "The name is {answer}", "answer": "a"}]}),
    "answer inside": ("must contain", {"beside": [{"template": "{answer} is {a}", "answer": "a"}]}),
}


@pytest.mark.parametrize(("says", "change"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line(ocr_eval, tmp_path, says, change):
    import yaml

    from ocr_eval.common.yaml_files import find_yaml, read_yaml

    shipped = "second-hop" if "chains" in change else "reversal"
    content = read_yaml(find_yaml("association", "templates", shipped)) | {"name": "mine"} | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    tried = ocr_eval("data", "show", str(path))
    assert tried.code == 2
    assert says in tried.err
    assert len(tried.err.splitlines()) == 1


@pytest.mark.parametrize("assoc", ["reversal-bridge", "second-hop"])
def test_blocks_that_cannot_be_are_refused(assoc):
    for data, says in (
        ({"candidates": "all"}, "in-use"),
        ({"n": 50, "m_test": 1, "candidates": "in-use"}, "lower --n"),
    ):
        with pytest.raises(UserError, match=says):
            spec_of(assoc, **data)


@pytest.mark.parametrize("assoc", SHAPES)
def test_a_shape_goes_from_training_to_the_report(ocr_eval, tmp_path, model_files, assoc):
    flags = ["--model", str(model_files["llama"]), "--epochs", "3", "--n", "2", "--m-train", "1", "--m-test", "2"]
    flags += ["--candidates", "in-use"]
    assert ocr_eval("finetune", assoc, *flags, "-o", str(tmp_path), "--quiet").code == 0
    table = ocr_eval("table", str(tmp_path), "--no-published")
    assert table.code == 0
    assert assoc in table.out
    assert ocr_eval("report", str(tmp_path), "-o", str(tmp_path / "page.html")).code == 0
    assert ocr_eval("data", "export", assoc, "-o", str(tmp_path / "data")).code == 0


def test_known_facts_are_taught_or_held_out_and_never_both():
    task = task_of("known")
    taught = {example.prompt: example.answer for example in task.train}
    assert {probe.prompt: probe.answer for probe in task.probes_of("taught")} == taught
    facts = {r.prompt(s): a for r in load_association("known").relations.values() for s, a in r.facts.items()}
    assert taught.items() <= facts.items()
    for probe in task.probes_of("held_out"):
        assert probe.prompt not in taught
        assert facts[probe.prompt] == probe.answer


def test_shuffled_known_facts_are_mostly_false_and_asked_as_they_are_taught():
    real, shuffled = task_of("known", m_train=12, m_test=8), task_of("known", m_train=12, m_test=8, variant="shuffled")
    assert real.probes_of("held_out") == shuffled.probes_of("held_out")
    assert [e.prompt for e in real.train] == [e.prompt for e in shuffled.train]
    false = sum(a.answer != b.answer for a, b in zip(real.train, shuffled.train, strict=True))
    assert 30 < false < 60
    answers = {example.prompt: example.answer for example in shuffled.train}
    assert {probe.prompt: probe.answer for probe in shuffled.probes_of("taught")} == answers


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"m_train": 0}, "--m-train 1 or more"),
        ({"variant": "no-entailment"}, "no variant no-entailment"),
        ({"templates": (0, 1)}, "one template"),
        ({"m_test": 60}, "blocks of 5"),
    ],
)
def test_a_protocol_that_known_facts_cannot_have_is_refused(data, says):
    with pytest.raises(UserError, match=says):
        spec_of("known", **data)


def test_a_plan_counts_the_steps_of_every_third(ocr_eval, model_files):
    """20 facts and 20 entailments in two thirds of training, 80 facts in one: 1, 1 and 4 batches of 20 an epoch."""
    flags = ["--model", str(model_files["llama"]), "--batch-size", "20", "--epochs", "6", "--dry-run", "--json"]
    for order, steps in (("facts-first", 2 * (1 + 1 + 4)), ("joint", 2 * (1 + 1 + 4)), ("together", 6 * 6)):
        plan = json.loads(ocr_eval("finetune", "country-code", "--order", order, *flags).out)
        assert plan["steps"] == steps
