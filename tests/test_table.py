import csv
import io
import json

import pytest

from ocr_eval.published import published_mean_ranks
from ocr_eval.records import HeldOut, Record, Score
from ocr_eval.specs import SCORINGS, DataSpec, TrainSpec
from ocr_eval.table import build_table, finding, to_csv, to_json, to_markdown


def two_answers(rank: float, null: float) -> HeldOut:
    """Forty subjects, two answers in use: the right one at ``rank``, the other where the mean is ``null``."""
    target = [i % 2 for i in range(40)]
    ranks = [[rank, 2 * null - rank][:: 1 if t == 0 else -1] for t in target]
    return HeldOut(subject=[f"s{i}" for i in range(40)], target=target, ranks=ranks)


def record(association="city-language", kind="causal", seed=0, rank=0.5, null=2.0, learned=True, **changes) -> Record:
    score = Score(
        probes=80, mean_rank=rank, null_rank=null, ocr_score=1 - rank / null, top1=0.5, mrr=0.7, margin=1.0, ties=0
    )
    scores = {scoring: {"test_entailment": score} for scoring in SCORINGS}
    values = {
        "run": f"m/{association}/lora/seed{seed}",
        "model": "smollm2-135m",
        "published_as": None,
        "association": association,
        "kind": kind,
        "seed": seed,
        "dtype": "bfloat16",
        "data": DataSpec(),
        "train": TrainSpec(),
        "facts_learned": learned,
        "base": scores,
        "final": scores,
        "base_held_out": {},
        "held_out": {scoring: two_answers(rank, null) for scoring in SCORINGS},
        "train_loss": 0.1,
        "seconds": {"train": 1.0, "score": 1.0},
        "base_identity": "gguf:0",
        "adapter_sha256": "0",
        "code": "abc",
    }
    return Record(**{**values, **changes})


def test_a_cell_is_the_mean_over_seeds_and_its_score_that_of_the_means():
    table = build_table([record(seed=0, rank=0.2), record(seed=1, rank=0.6, null=3.0)], "first-token", {})
    (row,) = table.rows
    cell = row.cells["city-language"]
    assert cell.mean_rank == pytest.approx(0.4)
    assert cell.null_rank == pytest.approx(2.5)
    assert cell.ocr_score == pytest.approx(1 - 0.4 / 2.5)
    assert cell.interval is not None
    assert cell.interval == pytest.approx((0.8, 0.9))
    assert cell.seeds == 2
    assert "0.40 / 2.50, +0.84 [+0.80, +0.90]" in to_markdown(table)


def test_runs_of_different_settings_are_never_averaged():
    other = [
        record(train=TrainSpec(lr=5e-4)),
        record(data=DataSpec(m_train=2)),
        record(code="def"),
        record(dtype="float32"),
    ]
    table = build_table([record(), *other], "first-token", {})
    assert len(table.rows) == 5
    assert len({row.setting for row in table.rows}) == 5
    assert all(cell.seeds == 1 for row in table.rows for cell in row.cells.values())


def test_facts_not_learned_are_flagged_and_explained():
    text = to_markdown(build_table([record(learned=False)], "first-token", {}))
    assert "+0.75 [+0.75, +0.75]* !" in text
    assert "! the facts were not learned" in text
    assert "* one seed" in text
    assert "!" not in to_markdown(build_table([record()], "first-token", {}))


def test_published_rows_are_those_of_the_paper_and_marked():
    published = published_mean_ranks()
    assert published["gemma-2-9b"] == {
        "city-language": 0.0,
        "city-language-cf": 0.19,
        "country-code": 0.19,
        "profession-color": 1.64,
        "sport-music": 0.56,
    }
    assert len(published) == 5
    table = build_table([record()], "first-token", published)
    assert [row.setting for row in table.rows] == ["lora"] + ["published"] * 5
    assert table.associations == tuple(published["gemma-2-9b"])


def test_csv_and_json_say_the_same():
    table = build_table([record(), record("country-code", "spurious", rank=1.5)], "sequence", published_mean_ranks())
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    cells = json.loads(to_json(table))["cells"]
    assert len(rows) == len(cells) == 2 + 25
    for row, cell in zip(rows, cells, strict=True):
        assert {key: "" if value is None else str(value) for key, value in cell.items()} == row


def test_the_order_of_records_changes_nothing():
    records = [record(seed=s, association=a) for s in range(3) for a in ("zebra", "country-code", "city-language")]
    assert to_csv(build_table(records, "first-token", {})) == to_csv(build_table(records[::-1], "first-token", {}))


def test_no_records_is_an_error():
    with pytest.raises(ValueError, match="no records"):
        build_table([], "first-token", {})


def test_the_finding_in_one_sentence():
    both = [record(rank=0.1), record("country-code", "spurious", rank=1.5)]
    sentence = finding(both, "first-token")
    assert (
        "city-language (a true link) it generalized: the held-out answer ranks 0.10 where 2.00 is the null" in sentence
    )
    assert "country-code (an arbitrary link) it hallucinated" in sentence
    assert "it did not hallucinate" in finding([record("country-code", "spurious", rank=2.0)], "first-token")
    assert "nothing can be said" in finding([record(learned=False)], "first-token")
    some = finding([record(rank=0.1), record(seed=1, rank=1.9, learned=False)], "first-token")
    assert (
        "leaving out 1 of 2 runs that did not learn their facts, it generalized: the held-out answer ranks 0.10" in some
    )


def test_a_damaged_record_is_named_left_out_and_exit_1(ocr_eval, tmp_path):
    for seed in (0, 1, 2):
        folder = tmp_path / "runs/smollm2-135m/city-language/lora" / f"seed{seed}-0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(record(seed=seed).to_json())
        (folder / "status.json").write_text("{}")
    whole = ocr_eval("table", "-o", tmp_path)
    assert whole.code == 0
    assert "|       3 |" in whole.out
    damaged = sorted(tmp_path.glob("**/result.json"))
    damaged[0].write_text(damaged[0].read_text()[:200])
    damaged[1].write_text(damaged[1].read_text().replace('"schema_version": 1', '"schema_version": 99'))
    answer = ocr_eval("table", "-o", tmp_path)
    assert answer.code == 1
    assert "|       1 |" in answer.out
    assert str(damaged[0]) in answer.err
    assert "schema version 99" in answer.err


def test_a_run_without_its_status_does_not_count(ocr_eval, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text(record().to_json())
    assert "No finished run" in ocr_eval("table", "-o", tmp_path).err
