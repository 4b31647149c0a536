"""Ways to teach and to prevent on one card, through the command line; every number is worked by hand.

With five answers in use chance is rank 2, so that an OCR score is 1 - rank / 2.
"""

import csv
import io
import json

import pytest
from made_records import learned_at, record, write

from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import DataSpec

LINKS = (("city-language", "causal"), ("country-code", "spurious"), ("profession-color", "spurious"))


def runs(ranks, seeds=6, links=LINKS, **changes):
    """Runs of every association, with a rank for each."""
    return [
        record(name, kind, seed=seed, rank=rank, **changes)
        for (name, kind), rank in zip(links, ranks, strict=True)
        for seed in range(seeds)
    ]


PLAIN = (0.5, 1.0, 0.0)  # OCR scores .75; .5 and 1
PREVENTED = TrainSpec(prevent=["product-decay"])


def test_a_kind_is_the_mean_over_its_associations_and_rows_are_paired(ocr_eval, tmp_path):
    folder = write(tmp_path, *runs(PLAIN), *runs((0.5, 2.0, 1.0), train=PREVENTED))
    answer = ocr_eval("scorecard", folder, "--format", "json")
    assert answer.code == 0, answer.err
    plain, prevented = json.loads(answer.out)["rows"]
    assert plain["name"] == plain["reference"] == prevented["reference"] == "smollm2-135m, LoRA"
    assert plain["links"]["causal"]["score"]["value"] == pytest.approx(0.75)
    assert plain["links"]["spurious"]["score"]["value"] == pytest.approx(0.75)
    assert plain["links"]["spurious"]["against"] is None
    assert prevented["links"]["spurious"]["associations"] == ["country-code", "profession-color"]
    assert prevented["links"]["spurious"]["score"]["value"] == pytest.approx(0.25)
    against = prevented["links"]["spurious"]["against"]
    assert (against["value"]["value"], against["p"]) == (pytest.approx(-0.5), pytest.approx(2 / 2**6))
    assert "arbitrary links, compared with the reference: less under LoRA + prod" in answer.err
    assert "true links, compared with the reference: no detectable difference under" in answer.err


def test_lift_is_over_the_rows_own_control_which_is_no_way_to_teach(ocr_eval, tmp_path):
    control = runs((2.0, 2.0, 2.0), data=DataSpec(variant="no-entailment"))
    shuffled = runs((2.0, 2.0, 2.0), data=DataSpec(variant="shuffled"))
    answer = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN), *control, *shuffled), "--format", "json")
    plain, without = json.loads(answer.out)["rows"]
    assert plain["links"]["spurious"]["lift"]["value"]["value"] == pytest.approx(0.75)
    assert without["control"]
    assert without["links"]["spurious"]["lift"] is None
    assert "compared with the reference" not in answer.err  # nothing is said of a control


def test_a_row_that_did_not_learn_is_marked_and_not_compared(ocr_eval, tmp_path):
    answer = ocr_eval(
        "scorecard", write(tmp_path, *runs(PLAIN), *runs((2.0, 2.0, 2.0), train=PREVENTED, learned=False))
    )
    (row,) = [line for line in answer.out.splitlines() if "product-decay" in line]
    assert "!" in row
    assert "0/18" in row
    assert "Not compared" in answer.err
    assert "less" not in answer.err


def test_few_seeds_show_a_difference_and_no_verdict(ocr_eval, tmp_path):
    answer = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN, 3), *runs((0.5, 2.0, 1.0), 3, train=PREVENTED)))
    assert "-0.50" in answer.out
    assert "No verdict over" in answer.err
    assert "--seeds 0-5" in answer.err


def test_rows_without_a_verdict_are_told_by_their_seeds(ocr_eval, tmp_path):
    """One that no seeds could decide is no test, so that the other is not corrected for it."""
    one = runs((0.5, 2.0, 1.0), 1, train=TrainSpec(prevent=["abstain"]))
    answer = ocr_eval("scorecard", write(tmp_path / "a", *runs(PLAIN), *runs((0.5, 2.0, 1.0), train=PREVENTED), *one))
    assert "Inference over arbitrary links, compared with the reference: less under LoRA + prod" in answer.err
    assert (
        " links: 1 seed is too few for a verdict on 2 comparisons; 7 are needed (--seeds 0-6): LoRA + abstain.\n"
        in answer.err
    )
    both = [runs((0.5, 2.0, 1.0), train=TrainSpec(prevent=[name])) for name in ("product-decay", "abstain")]
    answer = ocr_eval("scorecard", write(tmp_path / "b", *runs(PLAIN), *both[0], *both[1]))
    assert "6 seeds are too few for a verdict on 2 comparisons; 7 are needed (--seeds 0-6): LoRA + " in answer.err
    assert "less under" not in answer.err


def test_a_row_of_few_seeds_that_is_decided_leaves_no_empty_sentence(ocr_eval, tmp_path):
    """By Holm the second of two p is not multiplied, so six seeds can decide where two comparisons need seven."""
    both = [(8, "product-decay"), (6, "abstain")]
    others = [run for seeds, name in both for run in runs((0.5, 2.0, 1.0), seeds, train=TrainSpec(prevent=[name]))]
    said = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN, 8), *others)).err
    assert "less under LoRA + abstain (-0.50); LoRA + product-decay (-0.50).\n" in said
    assert " . " not in said


def test_the_least_difference_that_could_be_shown_is_said(ocr_eval, tmp_path):
    few, enough = (
        ocr_eval(
            "scorecard", write(tmp_path / str(seeds), *runs(PLAIN, seeds), *runs(PLAIN, seeds, train=PREVENTED))
        ).err
        for seeds in (3, 8)
    )
    assert "3 seeds are too few" in few
    assert few.count("6 seeds show a difference in OCR score of 0.38 or more (80 % power, sd of a run 0.15).") == 1
    assert enough.count("8 seeds show a difference in OCR score of 0.25 or more (80 % power, sd of a run 0.15).") == 1
    mean = "8 seeds show a difference in mean OCR score over 2 associations of 0.18 or more (80 % power"
    assert enough.count(mean) == 1, "0.25 / sqrt(2)"


def test_a_lift_on_the_card_is_judged_by_the_rule_of_the_table(ocr_eval, tmp_path):
    """Corrected for the lifts of the other rows; none where a run of the control did not learn its facts."""
    both = [*runs(PLAIN, 8), *runs(PLAIN, 8, train=PREVENTED)]
    none = [
        record(name, kind, seed=seed, rank=2.0, train=train, data=DataSpec(variant="no-entailment"), learned=learned)
        for train in (TrainSpec(), PREVENTED)
        for name, kind in LINKS
        for seed in range(8)
        for learned in [(train, name, seed) != (PREVENTED, "country-code", 3)]
    ]
    text = ocr_eval("scorecard", write(tmp_path, *both, *none), "--format", "csv").out
    plain, prevented, *_ = csv.DictReader(io.StringIO(text))
    assert float(plain["spurious_lift_p"]) == float(prevented["spurious_lift_p"]) == 2 / 256
    assert (float(plain["spurious_lift_p_holm"]), plain["spurious_control_premises_hold"]) == (4 / 256, "True")
    assert (prevented["spurious_lift_p_holm"], prevented["spurious_control_premises_hold"]) == ("", "False")
    assert float(prevented["causal_lift_p_holm"]) == 4 / 256


def test_matched_learning_has_a_column_of_its_own(ocr_eval, tmp_path):
    plain, prevented = (
        [
            record("country-code", "spurious", seed=seed, rank=1.0, train=train, matched=learned_at(4, early))
            for seed in range(6)
        ]
        for train, early in ((TrainSpec(), 1.0), (PREVENTED, 1.5))
    )
    answer = ocr_eval("scorecard", write(tmp_path, *plain, *prevented), "--format", "csv")
    first, _, second = csv.DictReader(io.StringIO(answer.out))
    assert first["spurious_matched"] == ""
    assert float(second["spurious_against"]) == pytest.approx(0.0)
    assert float(second["spurious_matched"]) == pytest.approx(-0.25)


def test_p_at_matched_learning_is_corrected_for_all_rows(ocr_eval, tmp_path):
    def runs(train, early):
        return [
            record("country-code", "spurious", seed=seed, rank=1.0, train=train, matched=learned_at(4, early))
            for seed in range(8)
        ]

    weaker = TrainSpec(prevent=["product-decay:strength=0.2"])
    rows = [*runs(TrainSpec(), 1.0), *runs(PREVENTED, 1.5), *runs(weaker, 1.5)]
    text = ocr_eval("scorecard", write(tmp_path, *rows), "--format", "csv").out
    plain, _, *prevented = csv.DictReader(io.StringIO(text))
    assert plain["spurious_matched_p_holm"] == ""
    for row in prevented:
        assert (float(row["spurious_matched_p"]), float(row["spurious_matched_p_holm"])) == (2 / 256, 4 / 256)


def test_the_reference_is_also_shown_as_it_was_when_it_had_learned(ocr_eval, tmp_path):
    def plain(early, seeds=6):
        return [
            record("country-code", "spurious", seed=seed, rank=0.5, matched=early, measures={"known": {"kept": 0.2}})
            for seed in range(seeds)
        ]

    answer = ocr_eval("scorecard", write(tmp_path / "a", *plain(learned_at(4, 1.5))), "--format", "json")
    reference, stopped = json.loads(answer.out)["rows"]
    assert stopped["name"] == f"{reference['name']}, stopped when learned"
    assert stopped["links"]["spurious"]["score"]["value"] == pytest.approx(0.25)
    assert stopped["links"]["spurious"]["against"]["value"]["value"] == pytest.approx(-0.5)
    assert stopped["links"]["spurious"]["matched"] is None, "it is the same moment"
    assert stopped["links"]["spurious"]["lift"] is None, "no control ended then"
    assert (stopped["unlearned"], stopped["measures"]) == (0, {}), "measures are of the last epoch"
    assert stopped["seconds"] == pytest.approx(reference["seconds"] * 4 / 16)
    assert "less under LoRA, stopped when learned (-0.50)" in answer.err
    some = [*plain(learned_at(4, 1.5), 5), record("country-code", "spurious", seed=5, rank=0.5)]
    rows = json.loads(ocr_eval("scorecard", write(tmp_path / "b", *some), "--format", "json").out)["rows"]
    assert len(rows) == 1, "one run never held its premises"


def test_what_uses_the_relation_is_marked_and_measures_have_columns(ocr_eval, tmp_path):
    found = {"known": {"kept": 0.25}}
    folder = write(tmp_path, *runs(PLAIN, measures=found), *runs(PLAIN, train=TrainSpec(prevent=["abstain"])))
    answer = ocr_eval("scorecard", folder)
    header, _, plain, abstain = answer.out.splitlines()[:4]
    assert "known kept" in header
    assert "0.25" in plain
    assert "abstain k " in abstain
    tex = ocr_eval("scorecard", folder, "--format", "tex").out
    assert "\\toprule" in tex


def test_a_name_splits_no_cell(ocr_eval, tmp_path):
    answer = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN, 1, model="one|two")))
    header, _, row = answer.out.splitlines()[:3]
    assert "one\\|two" in row
    assert row.count("|") - row.count("\\|") == header.count("|")


def test_a_row_of_other_people_stands_alone(ocr_eval, tmp_path):
    other = runs((0.5,), links=LINKS[:1], n=4, train=PREVENTED)
    answer = ocr_eval("scorecard", write(tmp_path, *runs((0.5,), links=LINKS[:1]), *other), "--format", "json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["rows"][1]["links"]["causal"]["against"] is None
    assert "Not paired with the reference, because they" in answer.err


def test_a_row_of_other_seeds_stands_alone(ocr_eval, tmp_path):
    other = [record(seed=seed, train=PREVENTED) for seed in range(6, 12)]
    answer = ocr_eval("scorecard", write(tmp_path, *runs((0.5,), links=LINKS[:1]), *other))
    assert "they have no association or seed in common, or teach other people: LoRA + product-decay." in answer.err


def test_rows_of_few_seeds_would_be_one_test_more_each(ocr_eval, tmp_path):
    """One row is tested; of the two others one alone would be the second test, which takes seven seeds."""
    few = [run for name in ("abstain", "early-stop") for run in runs(PLAIN, 3, train=TrainSpec(prevent=[name]))]
    said = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN), *runs(PLAIN, train=PREVENTED), *few)).err
    assert (
        "No verdict over true and arbitrary links: 3 seeds are too few for a verdict on 2 comparisons; 7 are needed "
        "(--seeds 0-6) for one of these rows alone: LoRA + abstain; LoRA + early-stop.\n"
    ) in said


def test_rows_of_several_models_are_named_with_them(ocr_eval, tmp_path):
    both = [
        run for model in "ab" for train in (TrainSpec(), PREVENTED) for run in runs(PLAIN, model=model, train=train)
    ]
    said = ocr_eval("scorecard", write(tmp_path, *both)).err
    assert ": a, LoRA + product-decay; b, LoRA + product-decay.\n" in said


def test_seeds_that_not_all_associations_have_are_left_out_and_named(ocr_eval, tmp_path):
    some = [run for run in runs((0.5, 2.0, 1.0)) if run.association != "country-code" or run.seed < 2]
    answer = ocr_eval("scorecard", write(tmp_path, *some), "--format", "json")
    (row,) = json.loads(answer.out)["rows"]
    assert [(row["links"][kind]["seeds"], row["links"][kind]["all_seeds"]) for kind in row["links"]] == [(6, 6), (2, 6)]
    assert (
        "Scores over arbitrary links use only 2 of 6 seeds, those that country-code and profession-color have in "
        "common: LoRA."
    ) in answer.err


def test_of_several_rates_the_one_that_preventions_share_is_the_reference(ocr_eval, tmp_path):
    slow = runs((1.0, 1.0, 1.0), train=TrainSpec(lr=TrainSpec().lr / 10))
    folder = write(tmp_path, *slow, *runs(PLAIN), *runs((0.5, 2.0, 1.0), train=PREVENTED))
    rows = json.loads(ocr_eval("scorecard", folder, "--format", "json").out)["rows"]
    assert [row["links"]["causal"]["score"]["value"] for row in rows] == pytest.approx([0.75, 0.5, 0.75])
    assert {row["reference"] for row in rows} == {rows[0]["name"]}
    assert rows[0]["links"]["spurious"]["score"]["value"] == pytest.approx(0.75)


def test_other_associations_than_the_references_are_named(ocr_eval, tmp_path):
    some = [run for run in runs((0.5, 2.0, 1.0), train=PREVENTED) if run.association != "country-code"]
    answer = ocr_eval("scorecard", write(tmp_path, *runs(PLAIN), *some))
    assert "Scores over arbitrary links are of profession-color alone: LoRA + product-" in answer.err


def test_matched_learning_and_lift_are_of_all_associations_of_a_kind_or_of_none(ocr_eval, tmp_path):
    def side(train, never=""):
        return [
            record(name, "spurious", seed=seed, train=train, matched=None if name == never else learned_at(4, 1.0))
            for name in ("country-code", "profession-color")
            for seed in range(6)
        ]

    control = [
        record("country-code", "spurious", seed=seed, data=DataSpec(variant="no-entailment")) for seed in range(6)
    ]
    folder = write(tmp_path, *side(TrainSpec()), *side(PREVENTED, never="country-code"), *control)
    plain, _, prevented, _ = csv.DictReader(io.StringIO(ocr_eval("scorecard", folder, "--format", "csv").out))
    assert plain["spurious_lift"] == ""
    assert float(prevented["spurious_against"]) == pytest.approx(0.0)
    assert prevented["spurious_matched"] == ""


def test_what_cannot_stand_on_one_card_is_a_line(ocr_eval, tmp_path):
    shuffled = write(tmp_path / "a", *runs(PLAIN, 1, data=DataSpec(variant="shuffled")))
    answer = ocr_eval("scorecard", shuffled)
    assert (answer.code, answer.out) == (2, "")
    assert "all shuffled controls" in answer.err
    apart = [record("country-code", "spurious", seed=0), record("profession-color", "spurious", seed=1)]
    answer = ocr_eval("scorecard", write(tmp_path / "b", *apart))
    assert answer.code == 2
    assert "share no seed" in answer.err


def test_memory_is_a_column_of_csv_and_json_where_all_runs_have_it(ocr_eval, tmp_path):
    some = [
        record("country-code", "spurious", seed=seed, memory={"peak": 10**9 * (seed + 1), "runs": 2}) for seed in (0, 1)
    ]
    others = [
        record("country-code", "spurious", seed=seed, train=PREVENTED, memory={"peak": 1, "runs": 1} if seed else {})
        for seed in (0, 1)
    ]
    folder = write(tmp_path, *some, *others)
    plain, prevented = csv.DictReader(io.StringIO(ocr_eval("scorecard", folder, "--format", "csv").out))
    assert (float(plain["memory_peak"]), float(plain["memory_runs"])) == (1.5e9, 2)
    assert (prevented["memory_peak"], prevented["memory_runs"]) == ("", "")
    rows = json.loads(ocr_eval("scorecard", folder, "--format", "json").out)["rows"]
    assert [row["memory"] for row in rows] == [{"peak": 1.5e9, "runs": 2}, {}]


def test_a_record_that_states_when_its_premises_held_needs_no_metrics(ocr_eval, tmp_path):
    today, older = (write(tmp_path / str(version), *runs(PLAIN, results_version=version)) for version in (1, 0))
    for path in [*today.rglob("metrics.jsonl"), *older.rglob("metrics.jsonl")]:
        path.unlink()
    assert "Matched learning is unknown" not in ocr_eval("scorecard", today).err
    assert "Matched learning is unknown" in ocr_eval("scorecard", older).err
