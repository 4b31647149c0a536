import re
from collections import Counter

import pytest
from conftest import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.data.task import build_task
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.names import FIRST_NAMES, LAST_NAMES, MAX_PEOPLE, people
from ocr_eval.specs.published import published_associations
from ocr_eval.specs.run import make_run_spec

ASSOCIATIONS = ["city-language", "city-language-cf", "country-code", "profession-color", "sport-music"]


def published(assoc="city-language", seed=0, **data):
    return make_run_spec(load_model_spec("smollm2-135m"), load_association(assoc), data, {}, seed)


def pairs_of(task):
    """The answers of each group: to its fact, and to its entailment."""
    facts, entailments = (
        {p.unit: p.answer for p in task.probes_of(quantity)} for quantity in ("test_fact", "test_entailment")
    )
    return {group: (fact, entailments[group]) for group, fact in facts.items()}


def test_all_five_associations_are_shipped():
    assert sorted(published_associations()) == ASSOCIATIONS
    assert set(ASSOCIATIONS) < set(shipped_names("templates"))


@pytest.mark.parametrize("name", ASSOCIATIONS)
def test_a_shipped_association_has_twenty_pairs_and_paraphrases(name):
    association = load_association(name)
    assert association.name == name
    assert len(association.pairs) == 20
    assert len(association.fact.templates) == len(association.entailment.templates) == 4


def test_the_counterfactual_is_one_cycle_through_the_true_pairs():
    true, false = dict(load_association("city-language").pairs), dict(load_association("city-language-cf").pairs)
    assert list(true) == list(false)
    assert sorted(true.values()) == sorted(false.values())
    city_of = {language: city for city, language in true.items()}
    city, length = "Tokyo", 0
    while length == 0 or city != "Tokyo":
        city, length = city_of[false[city]], length + 1
    assert length == 20


def test_published_protocol_counts():
    task = build_task(published())
    assert len(task.train) == 100 + 20  # a fact each, an entailment for four of each group
    counts = {"train_fact": 20, "train_entailment": 20, "test_fact": 80, "test_entailment": 80}
    assert Counter(probe.quantity for probe in task.probes) == counts
    assert len({probe.subject for probe in task.probes}) == 100
    assert {len(probe.candidates) for probe in task.probes} == {10}


@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(0, 5), st.integers(1, 6), st.sampled_from(ASSOCIATIONS))
@settings(max_examples=30, deadline=None)
def test_rules_that_hold_for_every_dataset(seed, n, m_train, m_test, assoc):
    candidates = "ten" if n <= 10 else "in-use"
    spec = published(assoc, seed, n=n, m_train=m_train, m_test=m_test, candidates=candidates)
    task = build_task(spec)
    pairs, truth = pairs_of(task), dict(load_association(assoc).pairs)
    assert len(pairs) == n
    assert all(truth[fact] == entailment for fact, entailment in pairs.values())
    assert len({probe.subject for probe in task.probes}) == n * (m_train + m_test)
    facts, taught = ({e.subject: e.answer for e in task.train if e.role == role} for role in ("fact", "entailment"))
    for probe in task.probes:
        assert facts[probe.subject] == pairs[probe.unit][0]
        assert (probe.subject in taught) == probe.quantity.startswith("train")
        assert probe.answer in probe.candidates[:n]
        assert (probe.in_use, len(probe.candidates)) == (n, max(n, 10))
        assert not probe.prompt.endswith(" ")
    for name, answer in taught.items():
        assert answer == truth[facts[name]]
    assert build_task(spec) == task


def test_no_held_out_entailment_is_trained_on():
    task = build_task(published())
    test_subjects = {probe.subject for probe in task.probes_of("test_entailment")}
    assert len(test_subjects) == 80
    assert not [e for e in task.train if e.role == "entailment" and e.subject in test_subjects]


@pytest.mark.parametrize(("n", "m_train"), [(5, 4), (5, 2), (5, 7), (3, 2), (4, 6), (20, 4), (5, 5)])
def test_the_shuffled_control_teaches_no_group_more_of_one_answer_than_of_another(n, m_train):
    data = {"n": n, "m_train": m_train, "m_test": 2, "candidates": "all"}
    real = build_task(published(**data))
    shuffled = build_task(published(**data, variant="shuffled"))
    assert shuffled.probes == real.probes
    taught = [[e for e in task.train if e.role == "entailment"] for task in (real, shuffled)]
    assert Counter(e.answer for e in taught[0]) == Counter(e.answer for e in taught[1])
    entailed = {group: entailment for group, (_, entailment) in pairs_of(real).items()}
    of_groups = {group: Counter(e.answer for e in taught[1] if e.unit == group) for group in entailed}
    for answers in of_groups.values():
        assert max(answers.values()) - min(answers.get(c, 0) for c in entailed.values()) <= 1
    right = sum(answers[entailed[group]] for group, answers in of_groups.items())
    assert right == m_train, "as often as chance would have it"


def test_the_no_entailment_control_drops_entailments_and_nothing_else():
    real, control = build_task(published()), build_task(published(variant="no-entailment"))
    assert control.probes == real.probes
    assert control.train == tuple(e for e in real.train if e.role == "fact")
    assert len(control.train) == 100
    premises = [[q.name for q in task.quantities if q.role == "premise"] for task in (real, control)]
    assert set(premises[0]) - set(premises[1]) == {"train_entailment"}


def test_the_no_fact_variant_teaches_the_train_entailments_of_the_real_one():
    real, alone = build_task(published()), build_task(published(variant="no-fact"))
    assert alone.probes == real.probes
    assert alone.train == tuple(e for e in real.train if e.role == "entailment")
    assert len(alone.train) == 20
    assert [q.name for q in alone.quantities if q.role == "premise"] == ["train_entailment"]


def test_the_regrouped_variant_gives_everyone_the_fact_of_another_group_and_keeps_the_pairs():
    before, after = (build_task(published(variant=variant)) for variant in ("no-entailment", "regrouped"))
    had, has = ({e.prompt: e.answer for e in task.train} for task in (before, after))
    assert had.keys() == has.keys()
    moved = {(had[prompt], has[prompt]) for prompt in had}
    assert len(moved) == len(dict(moved)) == 5, "a group moves as a whole"
    assert all(old != new for old, new in moved)
    entails = dict(pairs_of(before).values())
    facts, entailments = (
        {p.subject: p.answer for p in after.probes if p.quantity.endswith(name)} for name in ("_fact", "_entailment")
    )
    assert {p.prompt: p.answer for p in after.probes if p.quantity.endswith("_fact")} == has
    assert entailments == {subject: entails[fact] for subject, fact in facts.items()}


def test_the_shuffled_control_is_another_for_every_seed():
    taught = {tuple(e.answer for e in build_task(published(variant="shuffled", seed=seed)).train) for seed in range(20)}
    assert len(taught) == 20


@pytest.mark.parametrize(("candidates", "count"), [("in-use", 5), ("ten", 10), ("all", 20)])
def test_candidates(candidates, count):
    task = build_task(published(candidates=candidates))
    for probe in task.probes_of("test_entailment"):
        assert len(probe.candidates) == count
        assert probe.in_use == 5
        assert list(probe.candidates[:5]) == [entailment for _, entailment in pairs_of(task).values()]


def test_test_subjects_are_the_same_people_whatever_m_train_is():
    def held_out(**data):
        return [(probe.subject, probe.unit) for probe in build_task(published(**data)).probes_of("test_entailment")]

    assert held_out(m_train=0) == held_out(m_train=4) == held_out(variant="shuffled")


def test_several_templates_train_every_statement_in_each():
    task = build_task(published(templates=(0, 2)))
    assert len(task.train) == 2 * 120
    assert {e.prompt for e in task.train} >= {p.prompt for p in task.probes if p.quantity.startswith("train")}


def test_seeds_draw_different_pairs_names_and_groups():
    first, second = build_task(published(seed=0)), build_task(published(seed=1))
    assert pairs_of(first) != pairs_of(second)
    assert {probe.subject for probe in first.probes} != {probe.subject for probe in second.probes}


def test_names_are_distinct_to_the_last_and_one_more_is_an_error():
    assert len(set(people("x", MAX_PEOPLE))) == MAX_PEOPLE
    with pytest.raises(UserError, match="more than"):
        people("x", MAX_PEOPLE + 1)


def test_no_name_is_an_answer():
    words = {
        word.lower()
        for name in shipped_names("templates")
        for pair in getattr(load_association(name), "pairs", ())
        for answer in pair
        for word in answer.split()
    }
    assert not words & {name.lower() for name in [*FIRST_NAMES, *LAST_NAMES]}
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in [*FIRST_NAMES, *LAST_NAMES])


@given(st.text(max_size=20), st.integers(0, 200))
def test_a_permutation_is_one_and_is_repeatable(stream, n):
    order = streams.permutation(stream, n)
    assert sorted(order) == list(range(n))
    assert order == streams.permutation(stream, n)


def test_draws_are_frozen():
    """These values must never change: they decide every published data set."""
    assert streams.permutation("0/data", 8) == [2, 7, 4, 0, 5, 1, 3, 6]
    assert people("0/data/people", 2) == ["Terri Rodriguez", "Shannon Murray"]


def test_too_many_pairs_or_people_is_an_error(tiny):
    with pytest.raises(UserError, match="n = 21 is more than the 20 pairs"):
        tiny_run(tiny, n=21)
    with pytest.raises(UserError, match="names"):
        tiny_run(tiny, m_test=MAX_PEOPLE)
