"""Two runs, sweeps or conditions against each other, through the command line."""

import json
import shutil

import pytest
from made_records import learned_at, record, write

from ocr_eval.analysis.compare import contrast, gate, left_out, verdict
from ocr_eval.common.errors import UserError
from ocr_eval.records.metrics import MetricsLine, metrics_text
from ocr_eval.specs.model import TrainSpec


def rated(lr, rank, **changes):
    return record(train=TrainSpec(lr=lr), rank=rank, **changes)


def test_two_folders_paired_by_seed_and_subject(ocr_eval, tmp_path):
    a = write(tmp_path / "a", *(rated(1e-3, 0.5, seed=s) for s in range(6)))
    b = write(tmp_path / "b", *(rated(2e-3, 1.0, seed=s) for s in range(6)))
    answer = ocr_eval("compare", a, b, "--json")
    assert answer.code == 0, answer.err
    (found,) = json.loads(answer.out)["contrasts"]
    assert (found["paired"]["subjects"], found["paired"]["seeds"]) == (240, 6)
    assert found["a"]["value"] == pytest.approx(0.75)
    assert found["paired"]["value"]["value"] == pytest.approx(0.25)
    lines = ocr_eval("compare", a, b).out.strip().splitlines()
    assert lines[-1] == "A is above B on city-language (+0.25)."
    alike = ocr_eval("compare", a, a).out.strip().splitlines()
    assert alike[-1] == "A is not shown to differ from B on city-language."
    few = ocr_eval("compare", a, b, "--filter", "seed=0,1,2")
    assert "No verdict on city-language: 3 seeds" in few.out
    assert "--seeds 0-5" in few.out


def test_where_matched_learning_says_otherwise_the_verdict_says_so(ocr_eval, tmp_path):
    def side(lr, rank, early, **changes):
        return [rated(lr, rank, seed=s, matched=learned_at(8, early), **changes) for s in range(6)]

    slow, fast = side(1e-3, 0.5, 1.5), side(2e-3, 1.0, 1.0)
    a, b = write(tmp_path / "a", *slow), write(tmp_path / "b", *fast)
    answer = ocr_eval("compare", a, b)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert "-0.25" in answer.out.splitlines()[2]
    assert answer.out.strip().splitlines()[-1] == (
        "A is above B on city-language (+0.25). At matched learning A is below B on city-language (-0.25)."
    )
    (found,) = json.loads(ocr_eval("compare", a, b, "--json").out)["contrasts"]
    assert found["matched"]["value"]["value"] == pytest.approx(-0.25)
    alike = verdict(contrast(side(1e-3, 0.5, 0.5), fast, "first-token"))
    assert "matched" not in alike
    forgot = verdict(contrast(side(1e-3, 0.5, 0.5, learned=False), fast, "first-token"))
    assert "not comparable on city-language" in forgot
    assert forgot.endswith("At matched learning A is above B on city-language (+0.25).")
    (one_never,) = contrast([*slow[1:], rated(1e-3, 0.5)], fast, "first-token")
    assert one_never.matched is None


def test_matched_learning_of_records_from_before_is_read_from_their_metrics(ocr_eval, tmp_path):
    a, b = write(tmp_path / "a", rated(1e-3, 0.5)), write(tmp_path / "b", rated(2e-3, 1.0, matched=learned_at(8, 1.0)))
    unknown = ocr_eval("compare", a, b)
    assert unknown.code == 0
    assert "run0/metrics.jsonl is missing" in unknown.err
    forgotten, early, last = (rated(1e-3, rank, learned=rank < 2) for rank in (2.0, 1.5, 0.5))
    of_epoch = {0: early, 7: forgotten, 9: early, last.train.epochs: last}
    lines = [
        MetricsLine(epoch=epoch, scores=(run := of_epoch.get(epoch)) and run.final, held_out=run and run.held_out)
        for epoch in range(last.train.epochs + 1)
    ]
    (a / "run0/metrics.jsonl").write_text(metrics_text(lines))
    answer = ocr_eval("compare", a, b, "--json")
    assert answer.err == ""
    (found,) = json.loads(answer.out)["contrasts"]
    assert (found["paired"]["value"]["value"], found["matched"]["value"]["value"]) == pytest.approx((0.25, -0.25))


def test_both_sides_and_their_difference_are_of_the_same_subjects():
    many = [rated(1e-3, 0.1, seed=0), rated(1e-3, 1.9, seed=1)]
    (found,) = contrast(many, [rated(2e-3, 0.1, seed=0)], "first-token")
    assert (found.a.value, found.b.value, found.paired.value.value) == pytest.approx((0.95, 0.95, 0.0))


def test_a_single_run_can_be_a_side(ocr_eval, tmp_path):
    a = write(tmp_path / "a", rated(1e-3, 0.5), rated(1e-3, 0.5, seed=1))
    assert json.loads(ocr_eval("compare", a / "run0", a, "--json").out)["contrasts"][0]["paired"]["seeds"] == 1


def test_conditions_choose_within_one_folder(ocr_eval, tmp_path):
    write(tmp_path, *(rated(lr, rank, seed=s) for lr, rank in ((1e-3, 1.5), (2e-3, 0.5)) for s in range(6)))
    answer = ocr_eval("compare", "lr=1e-3", "lr=2e-3", tmp_path)
    assert answer.out.strip().splitlines()[-1] == "A is below B on city-language (-0.50)."
    narrow = ocr_eval("compare", "lr=1e-3", "lr=2e-3", tmp_path, "--filter", "seed=0", "--json")
    assert json.loads(narrow.out)["contrasts"][0]["paired"]["seeds"] == 1
    wrong = ocr_eval("compare", "lr=3", "lr=2e-3", tmp_path)
    assert wrong.code == 2
    assert "Available: 0.001, 0.002." in wrong.err


def test_sweeps_are_matched_by_model_and_by_what_varies():
    a = [rated(1e-3, 0.5, model=m) for m in ("m1", "m2")]
    b = [rated(2e-3, 1.0, model=m) for m in ("m1", "m2")]
    assert [each.name for each in contrast(a, b, "first-token")] == ["city-language (m1)", "city-language (m2)"]
    ranks = {r: TrainSpec(rank=r) for r in (4, 8, 16)}
    a = [record(train=ranks[r], dtype="float32") for r in (4, 8)]
    b = [record(train=ranks[r]) for r in (16, 8, 4)]
    assert [each.unit for each in contrast(a, b, "first-token")] == ["rank=4", "rank=8"]


def test_what_cannot_be_matched_is_refused():
    mixed = [rated(lr, 0.5) for lr in (1e-3, 2e-3)]
    with pytest.raises(UserError, match="what to compare: the first side has smollm2-135m, LoRA"):
        contrast(mixed, [rated(5e-3, 0.5)], "first-token")
    with pytest.raises(UserError, match="nothing in common"):
        contrast([record()], [record("sport-music", "spurious")], "first-token")
    with pytest.raises(UserError, match="the same seed"):
        contrast([record()], [record(seed=1)], "first-token")


def test_runs_that_did_not_learn_decide_nothing():
    sentence = verdict(contrast([record(rank=0.1)], [record(learned=False)], "first-token"))
    assert sentence == "A is not comparable on city-language, where a run did not learn what it was taught."


def test_runs_that_did_not_learn_count_in_the_correction_of_the_others():
    """Six seeds give p 1/32, which is no verdict after a correction for two, whichever of them learned."""

    def side(lr, rank, learned):
        other = {"association": "country-code", "kind": "spurious", "learned": learned}
        return [rated(lr, rank, seed=s, **more) for s in range(6) for more in ({}, other)]

    assert verdict(contrast(side(1e-3, 0.5, True), side(2e-3, 1.0, False), "first-token")) == (
        "A is not comparable on country-code, where a run did not learn what it was taught. "
        "No verdict on city-language: 6 seeds are too few for a verdict on 2 comparisons; 7 are needed (--seeds 0-6)."
    )


def test_other_content_of_an_association_is_said():
    sentence = verdict(contrast([record(rank=0.1)], [record(association_digest="other")], "first-token"))
    assert "The sides also differ in the content of the association." in sentence


def test_a_gate_passes_only_where_the_difference_is_known_to_be_small():
    sides = ([rated(1e-3, rank, seed=s) for s, rank in enumerate(ranks)] for ranks in ((0.5, 1.5), (1.0, 1.0)))
    assert gate(contrast(*sides, "first-token"), 0.1) == "undecided"


def test_a_gate_over_several_associations_is_corrected_for_them():
    """Three seeds, whose interval is 4.3 standard errors wide on each side, and 6.2 if there are two associations."""

    def side(rank, *names):
        return [rated(1e-3, rank(s), association=name, kind="spurious", seed=s) for name in names for s in range(3)]

    one, two = (
        contrast(side(lambda s: 0.2 * s, *names), side(lambda s: 2.0, *names), "first-token")
        for names in (["country-code"], ["country-code", "sport-music"])
    )
    value, low = one[0].paired.value.value, one[0].paired.value.low
    assert gate(one, low - 0.01) == "failed"
    assert gate(two, low - 0.01) == "undecided"
    assert gate(two, value - 6.20 / 4.30 * (value - low) - 0.01) == "failed"
    assert gate(two, value - 6.20 / 4.30 * (value - low) + 0.01) == "undecided"


def test_what_only_one_side_has_is_named(ocr_eval, tmp_path):
    a = write(tmp_path / "a", rated(1e-3, 0.5), rated(1e-3, 0.5, association="country-code", kind="spurious"))
    b = write(tmp_path / "b", rated(2e-3, 1.0), rated(2e-3, 1.0, association="sport-music", kind="spurious"))
    said = "Not compared, because only one side has it: country-code; sport-music."
    assert ocr_eval("compare", a, b).out.splitlines()[-1].endswith(said)
    assert json.loads(ocr_eval("compare", a, b, "--json").out)["verdict"].endswith(said)
    ranks = [[record(train=TrainSpec(rank=r)) for r in of] for of in ((4, 8), (8, 16))]
    assert left_out(*ranks).endswith("has it: city-language (rank=4); city-language (rank=16).")
    assert left_out(ranks[0], ranks[0]) == ""


def test_a_damaged_record_stops_a_comparison(ocr_eval, tmp_path):
    a = write(tmp_path / "a", record(), record(seed=1))
    (a / "run0/result.json").write_text("{")
    answer = ocr_eval("compare", a, a)
    assert answer.code == 2
    assert "run0/result.json is not a valid record" in answer.err


def test_ranks_of_matched_learning_that_are_not_the_run_s_are_one_line(ocr_eval, tmp_path):
    a = write(tmp_path / "a", rated(1e-3, 0.5, matched=learned_at(8, 0.5, n=4)))
    answer = ocr_eval("compare", a, a)
    assert answer.code == 2
    assert "matched.first-token" in answer.err


def test_groups_that_do_not_pair_are_one_line(ocr_eval, tmp_path):
    a = write(tmp_path / "a", record())
    b = write(tmp_path / "b", record(n=4))
    answer = ocr_eval("compare", a, b)
    assert answer.code == 2
    assert "5 answers in use and 4" in answer.err


def test_sides_of_two_results_versions_are_said_to_differ():
    sentence = verdict(contrast([record(rank=0.1, results_version=1)], [record(results_version=2)], "first-token"))
    assert "results version (1 against 2)" in sentence


def test_a_side_of_two_results_versions_says_why_it_does_not_pair(ocr_eval, tmp_path):
    both = [
        rated(lr, rank, seed=s, results_version=v)
        for lr, rank in ((1e-3, 0.5), (2e-3, 1.0))
        for s in range(6)
        for v in (1, 2)
    ]
    answer = ocr_eval("compare", "lr=1e-3", "lr=2e-3", write(tmp_path, *both))
    assert answer.code == 2
    assert "Runs of results versions 1 and 2 are never averaged, because numbers changed in between" in answer.err
    assert "--filter results=2" in answer.err
    one = ocr_eval("compare", "lr=1e-3", "lr=2e-3", tmp_path, "--filter", "results=2")
    assert one.out.strip().splitlines()[-1] == "A is above B on city-language (+0.25)."
    with pytest.raises(UserError) as settings:
        contrast([rated(1e-3, 0.5), rated(2e-3, 0.5)], [rated(5e-3, 0.5)], "first-token")
    assert "results versions" not in str(settings.value)


def test_comparisons_of_too_few_seeds_are_not_corrected_for():
    def side(lr, rank):
        few = [rated(lr, rank, association="country-code", kind="spurious", seed=s) for s in range(3)]
        return [*few, *(rated(lr, rank, seed=s) for s in range(6))]

    sentence = verdict(contrast(side(1e-3, 0.5), side(2e-3, 1.0), "first-token"))
    assert sentence.startswith("A is above B on city-language (+0.25). No verdict on country-code: 3 seeds are too few")


def test_sides_of_two_precisions_are_said_to_differ():
    sentence = verdict(contrast([record(rank=0.1, dtype="float32")], [record(dtype="bfloat16")], "first-token"))
    assert "float32 against bfloat16" in sentence
    assert "precision" not in verdict(contrast([record(rank=0.1)], [record()], "first-token"))


def test_one_run_in_two_folders_counts_once_and_a_line_says_where_they_differ(ocr_eval, tmp_path):
    a = write(tmp_path / "a", *(rated(1e-3, 0.5, seed=s) for s in range(3)))
    b = shutil.copytree(a, tmp_path / "b")
    alone = ocr_eval("table", a)
    alike = ocr_eval("table", a, b)
    assert (alike.code, alike.out, alike.err) == (0, alone.out, alone.err)
    for i in (1, 2):
        other = rated(1e-3, 0.9, seed=i).to_json()
        stated = json.loads((a / f"run{i}/result.json").read_text())["run"]
        (b / f"run{i}/result.json").write_text(json.dumps({**json.loads(other), "run": stated}))
    for command in ("table", "scorecard", "figures"):
        answer = ocr_eval(command, a, b, *(["-o", tmp_path / "figures"] if command == "figures" else []))
        (line,) = [line for line in answer.err.splitlines() if "the same run" in line]
        assert answer.code == (command == "figures"), "these runs have no curves"
        assert f"{b / 'run1'} holds the same run as {a / 'run1'}" in line
        assert "different numbers; 1 more like this. Skipped." in line
    assert ocr_eval("table", a, b).out == alone.out
    refused = ocr_eval("compare", "lr=1e-3", "lr=1e-3", a, b)
    assert refused.code == 2
    assert "the same run" in refused.err
    assert "so nothing is compared" in refused.err
