"""Which records of a folder count in a table, and what is said of those that cannot."""

import pytest
from made_records import learned_at, record, write
from msgspec.structs import replace


def test_a_damaged_record_is_named_left_out_and_exit_1(ocr_eval, tmp_path):
    write(tmp_path, *(record(seed=seed) for seed in (0, 1, 2)))
    whole = ocr_eval("table", tmp_path)
    assert whole.code == 0
    assert "|       3 |" in whole.out
    damaged = sorted(tmp_path.glob("**/result.json"))
    damaged[0].write_text(damaged[0].read_text()[:200])
    damaged[1].write_text(damaged[1].read_text().replace('"schema_version": 1', '"schema_version": 99'))
    answer = ocr_eval("table", tmp_path)
    assert answer.code == 1
    assert "|       1 |" in answer.out
    assert str(damaged[0]) in answer.err
    assert "schema version 99" in answer.err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (('"mean_rank": 0.5', '"mean_rank": 0.1'), "states mean rank 0.1, but the ranks give 0.5"),
        (('"mean_rank": 0.5', '"mean_rank": "good"'), "Expected `float`, got `str`"),
        (('"seed":', '"sead":'), "seed"),
        (("[[0.0, 1.0,", "[[0.0,"), "rows of equal length"),
        (("[[0.0, 1.0,", "[[0.0, null,"), "edited by hand"),
        (('"top1": 0.75', '"top1": 0.9'), "states top-1 0.9, but the ranks give 0.75"),
        (('"mrr": 0.8', '"mrr": 0.7'), "states mrr"),
        (('"ocr_score": 0.75', '"ocr_score": 0.85'), "states OCR score 0.85, but the ranks give 0.75"),
        (('"target": [0,', f'"target": [{10**30},'), "not numbers in rows"),
        (('"top1": 1.0', '"top1": 7.5'), "test_fact has a top-1 of 7.5"),
        (('{"train": 1.0, ', "{"), "seconds are missing or negative"),
        (('{"train": 1.0, ', '{"train": -1.0, '), "seconds are missing or negative"),
        (('"subject": ["s1-0", "s1-1"', '"subject": ["s1-0", "s1-0"'), "asks about someone twice"),
    ],
)
def test_a_record_edited_by_hand_is_named(ocr_eval, tmp_path, edit, says):
    write(tmp_path, record(seed=0), record(seed=1))
    edited = tmp_path / "run1/result.json"
    edited.write_text(edited.read_text().replace(*edit))
    answer = ocr_eval("table", tmp_path)
    assert answer.code == 1
    assert says in answer.err
    assert str(edited) in answer.err
    assert "|       1 |" in answer.out


def test_runs_of_a_seed_that_ask_about_different_people_are_one_line(ocr_eval, tmp_path):
    runs = record(), record(run="another", train_seed=1)
    held = {name: replace(each, subject=each.subject[::-1]) for name, each in runs[1].held_out.items()}
    write(tmp_path, runs[0], replace(runs[1], held_out=held))
    for command in ("table", "scorecard", "figures"):
        answer = ocr_eval(command, tmp_path)
        assert answer.code == 2
        assert "Runs of seed 0 ask about different people" in answer.err.splitlines()[-1]


def test_a_copied_run_counts_once(ocr_eval, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(record().to_json())
        (tmp_path / name / "status.json").write_text("{}")
    assert "|       1 |" in ocr_eval("table", tmp_path / "here", tmp_path / "there").out


def test_a_run_without_its_status_does_not_count(ocr_eval, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text(record().to_json())
    assert "No finished run" in ocr_eval("table", tmp_path).err


def test_a_finished_run_without_its_record_is_named(ocr_eval, tmp_path):
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / "whole/result.json").write_text(record().to_json())
    answer = ocr_eval("table", tmp_path)
    assert answer.code == 1
    assert f"{tmp_path / 'lost'} is marked as finished, but has no result.json. Skipped." in answer.err


def test_a_table_of_the_moment_when_all_was_learned(ocr_eval, tmp_path):
    early = [record(seed=seed, rank=0.5, matched=learned_at(4, 1.5, seed=seed), results_version=1) for seed in range(2)]
    folder = write(tmp_path, *early, record(seed=2, rank=0.5, results_version=1))
    answer = ocr_eval("table", folder, "--when-learned", "--short", "--metric", "mean-rank")
    assert answer.code == 0, answer.err
    assert "1.50" in answer.out
    assert "each run at the first epoch at which all premises held" in answer.out
    assert "published" not in answer.out
    assert "Omitted because not all of their premises ever held: 1 of 3 runs." in answer.err
    assert "0.50" in ocr_eval("table", folder, "--short", "--metric", "mean-rank").out
    assert ocr_eval("table", folder, "--when-learned", "--metric", "known.kept").code == 2
    assert ocr_eval("table", write(tmp_path / "none", record(results_version=1)), "--when-learned").code == 2
