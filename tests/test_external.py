"""Training by someone else's loop on exported data: scored by the manifest, kept as a run, read by every command."""

import json
import shutil

import pytest
from conftest import one_line, tiny_run
from msgspec.structs import asdict
from stock_peft import train

import ocr_eval as api
from ocr_eval.cli.app import run
from ocr_eval.records.record import read_record

SIZE = ("--n", 3, "--m-train", 2, "--m-test", 3)


def export(to, *arguments):
    words = ["data", "export", "country-code", "-o", to, "--format", "prompt-completion", *(arguments or SIZE)]
    assert run([str(word) for word in words]) == 0
    return to


@pytest.fixture(scope="module")
def made(model_files, tmp_path_factory):
    """Exports of two seeds, an adapter trained on each, one merged into its base, and their runs in ``results``."""
    root, base = tmp_path_factory.mktemp("elsewhere"), model_files["llama"].with_suffix("")
    for seed in (0, 1):
        data = export(root / f"data{seed}", *SIZE, "--seed", seed)
        adapter = train(base, data / "prompt-completion.jsonl", root / f"mine{seed}")
        words = ["score", "--data", data, "--adapter", adapter, "--model", model_files["llama"], "--quiet"]
        assert run([*map(str, words), "--name", "my-sft", "-o", str(root / "results")]) == 0
    train(base, root / "data0/prompt-completion.jsonl", root / "merged", merged=True)
    return root


@pytest.fixture
def score(ocr_eval, made, tiny):
    def call(*more, data="data0", adapter="mine0", **environment):
        words = ("--data", made / data, "--adapter", made / adapter, "--model", tiny, "--quiet")
        return ocr_eval("score", *words, *more, **environment)

    return call


def only_record(folder):
    (path,) = folder.glob("runs/*/*/external/*/result.json")
    return path.parent, read_record(path)


def test_an_adapter_of_stock_peft_has_the_scores_that_the_api_gives_it(score, made, tiny):
    answer = score("--json")
    spec = tiny_run(tiny, "country-code")  # the very data that was exported, said in another way
    expected = api.score_run(spec, made / "mine0", device="cpu")
    found = json.loads(answer.out)
    assert found == {each: {name: asdict(s) for name, s in of.items()} for each, of in expected.items()}
    assert found["first-token"]["train_fact"]["top1"] == found["first-token"]["test_fact"]["top1"] == 1.0
    assert found["first-token"]["test_entailment"]["probes"] == 9


def test_the_record_holds_what_is_known_and_nothing_else(made, tiny):
    path = min((made / "results").glob("runs/tiny-llama/country-code/external/seed0-*/result.json"))
    told, record = json.loads(path.read_text()), read_record(path)
    assert told["train"] == {"method": "external:my-sft"}
    assert (told["train_loss"], list(told["seconds"]), told["matched"], told["measures"]) == (None, ["score"], None, {})
    assert record.base == api.score_run(tiny_run(tiny, "country-code"), device="cpu"), "the base, untouched"
    assert record.final == api.score_run(tiny_run(tiny, "country-code"), made / "mine0", device="cpu")
    assert record.premises_hold
    lines = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"], line["train_seconds"]) for line in lines] == [
        (0, None, 0.0),
        (1, None, None),
    ]
    probes = [json.loads(line)["epoch"] for line in (path.parent / "probes.jsonl").read_text().splitlines()]
    assert probes.count(0) == probes.count(1) == 30


def test_no_setting_of_its_training_is_made_up(made):
    frame = api.records_frame(api.read_records(made / "results"))
    assert set(frame.method) == {"external:my-sft"}
    assert frame[["lr", "epochs", "rank", "prevent", "train_seed", "train_loss"]].isna().all(axis=None)
    assert set(frame.m_train) == {2}
    epochs = api.epochs_frame(made / "results")
    assert epochs.train_seconds.isna().tolist() == [False, True] * 2


def test_every_command_takes_its_runs(ocr_eval, made, tiny, tmp_path):
    """Beside runs of ours on the same people, two seeds a row."""
    results = tmp_path / "results"
    shutil.copytree(made / "results", results)
    sweep = ("--models", tiny, "--assocs", "country-code", "--seeds", "0,1", *SIZE, "--epochs", 2, "--quiet")
    assert ocr_eval("sweep", *sweep, "-o", results).code == 0
    table = ocr_eval("table", results)
    assert table.code == 0
    rows = [[part.strip() for part in line.split("|")[1:4]] for line in table.out.splitlines() if line[:1] == "|"]
    assert ["tiny-llama", "external:my-sft", "2"] in rows
    assert "unknown" not in table.out
    by_rate = ocr_eval("table", results, "--by", "method,lr", "--format", "csv")
    assert "external:my-sft,unknown," in by_rate.out
    for words in (
        ("figures", results, "-o", tmp_path / "figures"),
        ("figures", results, "--text"),
        ("scorecard", results),
        ("table", results, "--components"),
        ("report", results, "-o", tmp_path / "report.html"),
        ("compare", "method=external:my-sft", "method=lora", results),
    ):
        answer = ocr_eval(*words)
        assert answer.code == 0, (words, answer.err)
        assert "my-sft" in answer.out or words[0] in ("figures", "report", "compare"), words
    assert (tmp_path / "figures/curves-tiny-llama-external-my-sft.png").is_file()


@pytest.mark.parametrize(("most", "code", "gate"), [(0.2, 0, "passed"), (-0.2, 1, "failed")])
def test_a_gate_of_two_seeds_is_the_lower_bound(ocr_eval, made, most, code, gate):
    """Of runs against themselves, whose difference is 0."""
    words = ("compare", made / "results", made / "results", "--fail-above", most)
    answer = ocr_eval(*words, "--json")
    assert (answer.code, json.loads(answer.out)["gate"]) == (code, gate)
    answer = ocr_eval(*words)
    assert (answer.code, answer.out.splitlines()[-1]) == (code, f"Gate: {gate}.")


def test_a_gate_of_one_seed_is_undecided(ocr_eval, made):
    words = ("compare", "seed=0", "seed=0", made / "results", "--json")
    answer = ocr_eval(*words, "--fail-above", 0.2)
    assert (answer.code, json.loads(answer.out)["gate"]) == (1, "undecided")
    assert "gate" not in json.loads(ocr_eval(*words).out)
    one_line(ocr_eval(*words, "--fail-above", "nan"), "--fail-above nan")


def test_a_run_of_training_elsewhere_is_not_repeated_from_its_folder(ocr_eval, made):
    folder = min((made / "results").glob("runs/*/*/external/seed0-*"))
    one_line(ocr_eval("score", folder), "trained elsewhere", "--data")
    one_line(ocr_eval("finetune", "--config", folder / "config.yaml"), "trained elsewhere")


def test_the_same_adapter_scored_again_is_the_same_run(score, made, tmp_path):
    shutil.copytree(made / "results", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    answer = score("--name", "my-sft", "-o", tmp_path / "out")
    assert answer.code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")} == before
    assert score("--name", "other", "-o", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").rglob("result.json"))) == len(before) + 1


def test_a_merged_model_is_scored_as_its_adapter_is(ocr_eval, made, tiny, tmp_path):
    """Over its base, with epoch 0, or by itself, whose base is not known: then there is no epoch 0."""
    words = ("score", "--data", made / "data0", "--name", "merged", "--quiet")
    over = ocr_eval(*words, "--adapter", made / "merged", "--model", tiny, "-o", tmp_path / "over")
    alone = ocr_eval(*words, "--model", made / "merged", "-o", tmp_path / "alone")
    assert over.code == alone.code == 0, over.err + alone.err
    adapter = api.score_run(tiny_run(tiny, "country-code"), made / "mine0", device="cpu")["sequence"]["test_entailment"]
    for place, model, epochs in (("over", "tiny-llama", [0, 1]), ("alone", "merged", [1])):
        folder, record = only_record(tmp_path / place)
        assert record.model == model
        assert record.final["sequence"]["test_entailment"].mean_rank == adapter.mean_rank
        assert record.final["sequence"]["test_entailment"].margin == pytest.approx(adapter.margin, abs=1e-3)
        assert bool(record.base) == bool(record.base_identity) == (0 in epochs)
        assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == epochs
        assert ocr_eval("report", tmp_path / place, "-o", tmp_path / "page.html").code == 0
        assert ocr_eval("figures", tmp_path / place, "--text").code == 0


@pytest.mark.parametrize(
    ("flag", "value", "there"),
    [
        ("--seed", 1, "which states 0"),
        ("--n", 4, "which states 3"),
        ("--m-test", 16, "which states 3"),
        ("--candidates", "all", "which states ten"),
    ],
)
def test_a_flag_that_contradicts_the_manifest_is_an_error(score, flag, value, there):
    one_line(score(flag, value), f"{flag} {value}", "manifest.json", there)


def test_flags_that_agree_with_the_manifest_change_nothing(score):
    assert score("--m-test", 3, "--assoc", "country-code", "--json").out == score("--json").out


def test_a_variable_or_association_that_contradicts_is_an_error_too(score):
    one_line(score("--assoc", "city-language"), "--assoc city-language", "country-code")
    one_line(score(OCR_EVAL_M_TRAIN="4"), "--m-train 4", "which states 2")


def test_an_adapter_of_another_base_is_refused(score, made, model_files, tmp_path):
    file = made / "data0/prompt-completion.jsonl"
    adapter = train(model_files["olmo"].with_suffix(""), file, tmp_path / "foreign", epochs=1)
    answer = score("--name", "x", "-o", tmp_path / "out", adapter=adapter)
    assert (answer.code, answer.out) == (2, "")
    assert "not those of an adapter over tiny-llama" in answer.err
    assert not (tmp_path / "out/runs").exists()


def change(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema_version": 1, '), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
        (lambda folder: change(folder, schema_version=2), "schema version 2"),
        (lambda folder: change(folder, seed="0"), "'seed'"),
        (lambda folder: change(folder, size=3), "unknown key 'size'"),
        (lambda folder: change(folder, seed=1), "other people"),
        (lambda folder: change(folder, data={"n": 21, "m_train": 2, "m_test": 3}), "n = 21"),
        (lambda folder: change(folder, association={"name": "x"}), "association"),
        (lambda folder: (folder / "prompt-completion.jsonl").write_text("{}\n"), "prompt-completion.jsonl"),
    ],
    ids=["gone", "cut", "a list", "newer", "type", "key", "other people", "too many", "association", "training set"],
)
def test_a_manifest_that_cannot_be_trusted_is_one_line(score, made, tmp_path, spoil, said):
    shutil.copytree(made / "data0", tmp_path / "data")
    spoil(tmp_path / "data")
    one_line(score(data=tmp_path / "data"), said)


def test_the_manifest_is_enough_where_the_training_set_is_elsewhere(score, made, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(made / "data0/manifest.json", tmp_path / "data")
    assert score("--json", data=tmp_path / "data").out == score("--json").out


def test_every_format_of_an_export_has_the_same_manifest(ocr_eval, made, tmp_path):
    before = (made / "data0/manifest.json").read_bytes()
    assert ocr_eval("data", "export", "country-code", "-o", tmp_path, *SIZE).code == 0
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_table_of_facts_is_exported_and_scored(ocr_eval, model_files, tiny, tmp_path):
    rows = [f"{'rbg'[i % 3] * 3}{i} Berg,{'rbg'[i % 3]}eam,{'mint rust teal'.split()[i % 3]}" for i in range(18)]
    (tmp_path / "staff.csv").write_text("\n".join(["name,team,badge", *rows]))
    own = ("--facts", tmp_path / "staff.csv", "--hold-out", "30%", "-f", "prompt-completion", "-o", tmp_path / "data")
    assert ocr_eval("data", "export", *own).code == 0
    adapter = train(
        model_files["llama"].with_suffix(""), tmp_path / "data/prompt-completion.jsonl", tmp_path / "mine", epochs=1
    )
    words = (
        "--data",
        tmp_path / "data",
        "--adapter",
        adapter,
        "--model",
        tiny,
        "--name",
        "own",
        "-o",
        tmp_path / "out",
    )
    answer = ocr_eval("score", *words, "--quiet")
    assert answer.code == 0, answer.err
    assert only_record(tmp_path / "out")[1].structure == "facts"
    one_line(ocr_eval("data", "export", "country-code", *own), "--facts")


def test_flags_without_effect_are_refused(ocr_eval, score, made, tiny, tmp_path):
    one_line(score("-o", tmp_path / "out"), "--output-dir", "--name")
    one_line(ocr_eval("score", "--assoc", "country-code", "--model", tiny, "--name", "x"), "--name", "--data")
    one_line(ocr_eval("score", "--data", made / "data0", "--name", "x", "-o", tmp_path), "smollm2-135m is untouched")
    one_line(score("--name", "My SFT"), "--name 'My SFT'")
    assert not (tmp_path / "out").exists()
    assert score(OCR_EVAL_OUTPUT_DIR=str(tmp_path / "out")).code == 0, "a variable serves other commands, too"
    assert not (tmp_path / "out").exists()
