"""What a table says in sentences: the finding, lift, and what to change where nothing is learned."""

import json
import re

import pytest
from made_records import CONTROL, answers, record
from msgspec.structs import replace

from ocr_eval.analysis.finding import finding, remedy
from ocr_eval.analysis.table import build_table
from ocr_eval.records.record import Record
from ocr_eval.report.tables import to_json, to_markdown
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import SCORINGS, DataSpec


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.0, 1.0, 2.0], "after epoch 2: lower --lr (now 0.001)"),
        ([3.0, 2.0, 1.5], "raise --epochs (now 16) or --lr"),
        ([3.0], "raise --epochs"),
        ([3.0, 2.0, 1.99], "stopped falling at 2: try another --lr"),
    ],
)
def test_what_was_not_learned_says_what_to_change(losses, said):
    assert said in remedy(losses, TrainSpec(lr=1e-3))


@pytest.mark.parametrize(("method", "its_own"), [("rome", "clamp"), ("memit", "layers"), ("in-context", "no settings")])
def test_what_is_taught_at_once_has_no_rate_to_change(method, its_own):
    runs = [record(train=TrainSpec(method=method), learned=False)]
    table = build_table(runs, "first-token")
    for text in (remedy([3.0], runs[0].train), to_markdown(table), finding(table)):
        assert its_own in text
        assert "--epochs" not in text
        assert "--lr" not in text
    both = to_markdown(build_table([*runs, record(learned=False)], "first-token"))
    assert "--epochs" in both
    assert its_own in both


def said(records, **options) -> str:
    return finding(build_table(records, "first-token", **options))


def seeds(association="city-language", kind="causal", count=3, **changes) -> list[Record]:
    return [record(association, kind, seed=seed, **changes) for seed in range(count)]


def test_the_finding_in_one_sentence():
    sentence = said([*seeds(rank=0.1), *seeds("country-code", "spurious", rank=1.0)])
    assert "city-language (a true link) it generalized, or knew it before: the held-out answer ranks 0.10" in sentence
    assert "country-code (an arbitrary link) it hallucinated" in sentence
    assert sentence.count("no control to compare with") == 2
    assert sentence.count("corrected p 0.001;") == 2
    assert "it did not clearly hallucinate" in said(seeds("country-code", "spurious", rank=2.0))
    assert "city-language-cf (a false link) it hallucinated" in said(seeds("city-language-cf", "counterfactual"))


def test_what_some_runs_did_not_learn_is_no_conclusion():
    assert "what was taught was not learned, so there is no conclusion (train" in said(seeds(learned=False))
    some = said([*seeds(rank=0.1), record(seed=3, rank=1.9, learned=False)])
    assert "what was taught was not learned in 1 of 4 runs, so there is no conclusion (train" in some


def test_one_seed_gives_no_verdict_and_does_not_count():
    """Its permutation p is 1/120; a second training of the same data adds no seed."""
    alone = [record("country-code", "spurious", rank=0.0)]
    for runs in (alone, [*alone, record("country-code", "spurious", rank=0.0, train_seed=1)]):
        table = build_table(runs, "first-token")
        (cell,) = table.rows[0].cells.values()
        assert (cell.p_holm, cell.inferred) == (None, False)
        assert cell.p == pytest.approx(1 / 120)
        assert "One seed has no interval and no verdict" in to_markdown(table)
        assert finding(table) == (
            "on country-code (an arbitrary link) no verdict from one seed: the held-out answer ranks 0.00, null 2.00 "
            "(OCR score +1.00; no control to compare with)."
        )
    both = [*alone, *seeds("sport-music", "spurious", rank=0.0)]
    cells = build_table(both, "first-token").rows[0].cells
    assert cells["sport-music"].p_holm == cells["sport-music"].p, "corrected for one cell, not for two"
    assert "* inferred: p at most 0.05." in to_markdown(build_table(both, "first-token"))
    assert said([*both, *seeds("sport-music", "spurious", model="b", rank=2.0)]) == (
        "Inference is shown in 1 of 2 cells over arbitrary links (p at most 0.05 after Holm). There is no control to "
        "compare with. Without a verdict: 1 with one seed (OCR score +1.00)."
    )
    assert said([record(model=model, rank=rank) for model, rank in (("a", 0.0), ("b", 1.0))]) == (
        "No conclusion. Without a verdict: 2 with one seed (OCR score +0.50 to +1.00)."
    )


def test_what_was_known_before_is_no_generalization():
    real, none = (seeds(count=6, rank=rank) for rank in (0.1, 0.1))
    known = [replace(run, data=CONTROL) for run in none]
    assert "it inferred, and did not clearly generalize" in said([*real, *known])
    taught = seeds(count=6, rank=2.0, data=CONTROL)
    assert "it generalized: " in said([*real, *taught])
    assert "+0.95 over no entailments, p 0.031" in said([*real, *taught])
    few = said([*real[:3], *taught[:3]])
    assert "it inferred: " in few
    assert "no verdict from 3 seeds (a lift takes 6)" in few


LIFTED = ("country-code", "profession-color", "sport-music", "other")


def lifted(count: int, unlearned: tuple[str, ...] = (), names=LIFTED) -> list[Record]:
    """Associations of 0.5 with a control of 0; one run of the control has not learned its facts where said so."""
    real = [run for name in names for run in seeds(name, "spurious", count, rank=1.0)]
    return real + [
        record(name, "spurious", seed, rank=2.0, data=CONTROL, learned=seed > 0 or name not in unlearned)
        for name in names
        for seed in range(count)
    ]


def test_every_number_of_seeds_that_is_too_few_for_a_lift_is_named():
    few = [*lifted(3, names=LIFTED[:1]), *lifted(5, names=LIFTED[1:2])]
    caption = to_markdown(build_table(few, "first-token", metric="lift"))
    assert "3 seeds are too few for a verdict on 2 comparisons" in caption
    assert "5 seeds are too few for a verdict on 2 comparisons" in caption


def test_a_lift_is_corrected_for_all_lifts_of_the_table():
    """Six seeds have a p of 2/64 at least and of 4 x 2/64 after Holm; eight have 4 x 2/256."""
    few, enough = (build_table(lifted(count), "first-token", metric="lift") for count in (6, 8))
    assert "hallucinated" not in finding(few)
    assert "country-code (an arbitrary link) it inferred: " in finding(few)
    assert "+0.50 over no entailments, no verdict from 6 seeds (4 lifts take 8)" in finding(few)
    assert "6 seeds are too few for a verdict on 4 comparisons; 8 are needed" in to_markdown(few)
    assert "]*" not in to_markdown(few)
    assert finding(enough).count("it hallucinated: ") == 4
    assert "+0.50 over no entailments, corrected p 0.031)" in finding(enough)
    assert to_markdown(enough).count("]*") == 4
    assert "* differs from its control: p at most 0.05 by sign flips over seeds, corrected for 4 lifts" in to_markdown(
        enough
    )
    for table, p in ((few, 8 / 64), (enough, 8 / 256)):
        cells = [cell for cell in json.loads(to_json(table))["cells"] if cell["lift"] is not None]
        assert [cell["lift_p_holm"] for cell in cells] == [p] * 4
        assert [cell["control_premises_hold"] for cell in cells] == [True] * 4
    alone = said([run for run in lifted(6) if run.association == "other"])
    assert "it hallucinated: " in alone
    assert "+0.50 over no entailments, p 0.031" in alone
    one = said([*lifted(6, names=LIFTED[:1]), *lifted(1, names=LIFTED[1:])])
    assert "+0.50 over no entailments, p 0.031" in one, "lifts from too few seeds are no tests"


def test_a_control_that_did_not_learn_its_facts_gives_no_verdict():
    """Its lift is shown, and the others are corrected for it all the same."""
    table = build_table(lifted(8, unlearned=("country-code",)), "first-token", metric="lift")
    forgot, *others = (cell.lift for cell in table.rows[0].cells.values())
    assert (forgot.control_unlearned, forgot.control_runs, forgot.p_holm, forgot.sign) == (1, 8, None, None)
    assert {(lift.p_holm, lift.sign) for lift in others} == {(8 / 256, 1)}
    text = to_markdown(table)
    assert "| +0.50 [+0.50, +0.50] ! |" in re.sub(" +", " ", text)
    assert "! a run, or one of its control, did not learn what it was taught" in text
    others = build_table(lifted(8, unlearned=("country-code",)), "first-token")
    assert others.rows[0].cells["country-code"].inferred, "what was inferred needs no control"
    sentence = finding(table)
    assert "country-code (an arbitrary link) it inferred: " in sentence
    assert "+0.50 over no entailments, no verdict as 1 of 8 control runs did not learn the facts" in sentence
    assert sentence.count("it hallucinated: ") == 3
    (cell, *_) = json.loads(to_json(table))["cells"]
    assert (cell["lift"], cell["lift_p"], cell["lift_p_holm"]) == (0.5, round(2 / 256, 6), None)
    assert cell["control_premises_hold"] is False
    apart = seeds("country-code", "spurious", 8, rank=1.0)
    beyond = [record("country-code", "spurious", 9, rank=2.0, data=CONTROL, learned=False)]
    held = build_table([*apart, *seeds("country-code", "spurious", 8, rank=2.0, data=CONTROL), *beyond], "first-token")
    assert held.rows[0].cells["country-code"].lift.sign == 1, "only seeds that are compared count"


def test_several_rows_say_of_how_many_cells_there_is_a_control():
    more = [replace(run, model="b") for run in lifted(8, unlearned=("other",)) if run.data == DataSpec()]
    assert said([*lifted(8, unlearned=("other",)), *more]) == (
        "Inference is shown in 8 of 8 cells over arbitrary links (p at most 0.05 after Holm). Teaching entailments "
        "adds +0.50 over arbitrary links; 3 of 4 lifts are significant: in 1 a control run did not learn its "
        "facts."
    )
    assert said([*lifted(6), *seeds("z", "causal", 6), *seeds("z", "causal", 6, model="b")]) == (
        "Inference is shown in 2 of 2 cells over true links and in 4 of 4 cells over arbitrary links (p at most 0.05 "
        "after Holm). Teaching entailments adds +0.50 over arbitrary links; none of 4 lifts is significant: 4 "
        "have too few seeds."
    )


def test_too_few_groups_are_no_finding_either_way():
    def of(n, count):
        runs = seeds(count=count, rank=0.1)
        held = [dict.fromkeys(SCORINGS, answers(0.1, 2.0, n, run.seed)) for run in runs]
        return [replace(run, held_out=each) for run, each in zip(runs, held, strict=True)]

    one = said(of(2, 2))  # 2 x 2 assignments
    assert "(a true link) too few groups to tell: the held-out answer ranks 0.10" in one
    two_models = [replace(run, model=model) for model in "ab" for run in of(2, 2)]
    assert said(two_models) == "No conclusion. Without a verdict: 2 with too few groups to tell."
    assert "it generalized" in said(of(3, 3))  # 6 x 6 x 6 assignments


def test_associations_of_one_kind_are_judged_each_for_itself():
    sentence = said([*seeds("a", "spurious", rank=0.0), *seeds("b", "spurious", rank=2.0)])
    assert "on a (an arbitrary link) it hallucinated" in sentence
    assert "on b (an arbitrary link) it did not clearly hallucinate" in sentence


def test_the_finding_of_several_rows_counts_cells_and_leaves_controls_out():
    shuffled = DataSpec(variant="shuffled")
    runs = [
        *(
            run
            for model in "ab"
            for kind, link in (("x", "causal"), ("y", "spurious"))
            for run in seeds(kind, link, model=model)
        ),
        *seeds("y", "spurious", model="c", rank=2.0),
        *seeds("y", "spurious", model="d", rank=0.0, learned=False),
        *seeds("y", "spurious", model="a", data=shuffled, rank=2.0),
    ]
    assert said(runs) == (
        "Inference is shown in 2 of 2 cells over true links and in 2 of 3 cells over arbitrary links (p at most 0.05 "
        "after Holm). There is no control to compare with. Without a verdict: 1 with runs that did not learn what they "
        "were taught."
    )
    unlearned = [record("y", "spurious", model=model, rank=0.0, learned=False) for model in "ab"]
    assert said([*seeds(), *unlearned]).endswith(
        "There is no control to compare with. Without a verdict: 2 with runs that did not learn what they were taught."
    )
    only = [*seeds(), *seeds(data=shuffled, rank=2.0)]
    assert "it generalized, or knew it before: the held-out answer ranks 0.50" in said(only)


def test_a_star_and_an_interval_that_can_disagree_are_explained():
    """Seeds of 0.25, 0.5 and 0.75: t(2) = 3.46, of which the one-sided p is 0.04 and the two-sided 0.07."""
    runs = [record(seed=seed, rank=2 * (1 - score)) for seed, score in enumerate((0.25, 0.5, 0.75))]
    text = to_markdown(build_table(runs, "first-token"))
    assert re.search(r"\[-0\.1\d, \+1\.00\]\*", text)
    assert text.count("a starred cell's interval may reach below zero") == 1
    assert "starred" not in to_markdown(build_table(runs, "first-token", short=True)), "it has no interval"
    assert "starred" not in to_markdown(build_table(seeds(rank=2.0), "first-token")), "it has no star"
