"""Which runs share a row or a control, what rows are called, and filters over them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import CONTROL, record

from ocr_eval.analysis.table import build_table
from ocr_eval.common.errors import UserError
from ocr_eval.records.rows import group_rows
from ocr_eval.records.select import ROW_KEYS, parse_condition, row_keys, select, settings_of
from ocr_eval.report.tables import to_csv, to_markdown
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import DataSpec

REAL, NONE, SHUFFLED = DataSpec(), DataSpec(m_train=0), DataSpec(variant="shuffled")
LORA, FULL = TrainSpec(), TrainSpec(method="full", lr=1e-5, batch_size=8)


def test_a_row_names_settings_that_most_rows_do_not_have():
    """Two rows name what differs; of more, those that have the value of most do not, and the note says which."""
    usual = TrainSpec(lr=2e-3, targets=("q_proj",))
    others = [
        usual.model_copy(update=changed)
        for changed in ({"lr": 1e-3}, {"targets": ("k_proj",)}, {"prevent": ("early-stop",)}, {"rank": 4})
    ]
    names = {train: row.setting for train in (usual, *others) for row in group_rows([record(train=train)])}
    assert set(names.values()) == {"LoRA", "LoRA + early-stop"}, "a row alone names nothing"
    two = build_table([record(train=usual), record(train=others[0])], "first-token")
    assert [row.setting for row in two.rows] == ["LoRA, lr=0.001", "LoRA, lr=0.002"]
    assert "Unless" not in to_markdown(two)
    rows = build_table([record(train=train) for train in (usual, *others)], "first-token").rows
    assert [row.setting for row in rows] == [
        *("LoRA", "LoRA, lr=0.001", "LoRA, rank=4", "LoRA, targets=k_proj", "LoRA + early-stop"),
    ]
    note = to_markdown(build_table([record(train=train) for train in (usual, *others)], "first-token"))
    assert "Unless a row says otherwise: lr=0.002, rank=16, targets=q_proj." in note


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


def rows(*records, **options) -> list[str]:
    """The names of a table's rows, in their order."""
    return [row.setting for row in build_table(records, "first-token", **options).rows]


def test_rows_are_called_by_method_and_control_and_lora_comes_first():
    runs = [record(data=data, train=train) for data in (SHUFFLED, NONE, CONTROL, REAL) for train in (FULL, LORA)]
    assert rows(*runs, record(train=TrainSpec(method="qlora"))) == [
        "LoRA",
        "QLoRA",
        "full fine-tuning",
        "LoRA, control: no entailments",
        "full fine-tuning, control: no entailments",
        "LoRA, no train subjects",
        "full fine-tuning, no train subjects",
        "LoRA, control: shuffled",
        "full fine-tuning, control: shuffled",
    ]


def test_a_method_is_named_with_the_settings_that_are_not_its_defaults():
    runs = [record(train=TrainSpec(method=method)) for method in ("memit", "memit:lam=20", "steering")]
    assert rows(*runs) == ["steering", "MEMIT", "MEMIT:lam=20"]


def test_a_prevention_is_named_with_the_settings_that_are_not_its_defaults():
    given = ["abstain:people=4:answer=unknown", "abstain:people=9:answer=unknown", "product-decay:strength=0.1"]
    older = "abstain:people=4"  # of a version without the other setting: not the same runs
    runs = [record(train=TrainSpec(prevent=[prevent])) for prevent in (*given, older, "a-plugin:a=1")]
    assert sorted(rows(*runs)) == [
        "LoRA + a-plugin:a=1",
        "LoRA + abstain",
        "LoRA + abstain:people=4",
        "LoRA + abstain:people=9",
        "LoRA + product-decay:strength=0.1",
    ]


def test_a_setting_is_named_only_where_rows_differ_in_it():
    fast = TrainSpec(lr=1e-3)
    assert rows(record(), record(train=fast), record(train=FULL)) == [
        "LoRA, lr=0.0001",
        "LoRA, lr=0.001",
        "full fine-tuning",
    ]
    # A control at another rate than the real runs is no control of theirs, and says so.
    assert rows(record(), record(train=fast, data=NONE)) == [
        "LoRA, lr=0.0001",
        "LoRA, no train subjects, lr=0.001",
    ]
    assert rows(record(), record(data=DataSpec(m_train=1)), record(data=NONE)) == [
        "LoRA, m_train=1",
        "LoRA, m_train=4",
        "LoRA, no train subjects",
    ]
    few = TrainSpec(targets=("3.self_attn.v_proj", "1.mlp.up_proj", "4.self_attn.v_proj", "7.self_attn.v_proj"))
    assert rows(record(), record(train=few))[0] == (
        "LoRA, targets=3-4.self_attn.v_proj+7.self_attn.v_proj+1.mlp.up_proj"
    )
    # Code that differs between methods is not told: no number is compared by it.
    assert rows(record(), record(train=FULL, code="def")) == ["LoRA", "full fine-tuning"]
    assert rows(record(), record(train=FULL), by=("model", "method")) == ["", ""]
    assert rows(record(), record(data=NONE), by=("model", "m_train")) == ["LoRA", "LoRA"]
    assert rows(record(), record(model="other", train=FULL), by=("epochs",)) == [
        "other, full fine-tuning",
        "smollm2-135m, LoRA",
    ]


@settings(deadline=None)  # the first example pays for imports, and a machine may be busy
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["lora", "qlora", "full"]),
            st.sampled_from([1e-4, 1e-3]),
            st.sampled_from(
                [
                    ("real", 0),
                    ("real", 2),
                    ("real", 4),
                    ("shuffled", 2),
                    ("shuffled", 4),
                    ("no-fact", 4),
                    ("regrouped", 4),
                ]
            ),
            st.sampled_from(["bfloat16", "float32"]),
            st.sampled_from(["sdpa", "eager"]),
            st.sampled_from(["abc", "def"]),
            st.sampled_from(["", "one", "two"]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sets(st.sampled_from([*ROW_KEYS]), max_size=3),
)
def test_no_two_rows_have_one_name(runs, by):
    records = [
        record(
            model=model,
            train=TrainSpec(method=method, lr=lr),
            data=DataSpec(variant=variant, m_train=m_train),
            dtype=dtype,
            attention=attention,
            code=code,
            association_digest=digest,
        )
        for model, method, lr, (variant, m_train), dtype, attention, code, digest in runs
    ]
    told_apart = [key for key in ROW_KEYS if key != "seed"]
    for group in group_rows(records, tuple(sorted(by))).values():
        assert len({tuple(settings[key] for key in told_apart) for settings in map(settings_of, group)}) == 1
        assert len({each.association_digest for each in group}) == 1


def test_revisions_of_one_model_are_rows_of_their_own():
    identities = [f"hub:a-long-organization/a-long-name@step{step}" for step in (1000, 143000)]
    table = build_table([record(seed=i, base_identity=each) for i, each in enumerate(identities)], "first-token", {})
    assert [cell.seeds for row in table.rows for cell in row.cells.values()] == [1, 1]
    assert [identity in row.setting for identity, row in zip(identities, table.rows, strict=True)] == [True, True]


def test_two_associations_of_one_name_are_never_averaged():
    runs = [record("mine", seed=0, association_digest="aaa"), record("mine", seed=1, association_digest="bbb")]
    other = [record("theirs", seed=seed, association_digest="ccc") for seed in (0, 1)]
    elsewhere = [record("mine", model="another", association_digest="ddd")]  # a row of its own in any case
    table = build_table([*runs, *other, *elsewhere], "first-token", {})
    cells = {(row.setting, name): cell.seeds for row in table.rows for name, cell in row.cells.items()}
    assert cells == {
        ("LoRA", "theirs"): 2,
        ("LoRA, mine as of aaa", "mine"): 1,
        ("LoRA, mine as of bbb", "mine"): 1,
        ("LoRA", "mine"): 1,
    }


def test_rows_of_two_results_versions_are_apart_and_one_line_says_so():
    runs = [record(seed=seed, results_version=version) for version in (1, 2) for seed in (0, 1)]
    controls = [record(seed=seed, results_version=1, data=CONTROL) for seed in (0, 1)]
    table = build_table([*runs, *controls], "first-token")
    assert [row.setting for row in table.rows][:2] == ["LoRA, results=1", "LoRA, results=2"]
    assert [row.cells["city-language"].lift is None for row in table.rows] == [False, True, True]
    text = to_markdown(table)
    assert "Results versions differ between rows: 1 (smollm2-135m, LoRA, results=1; smollm2-135m, LoRA, control" in text
    assert "2 (smollm2-135m, LoRA, results=2). Numbers changed in between" in text
    assert "Results versions" not in to_markdown(build_table(runs[:2], "first-token"))


def test_rows_of_two_precisions_are_apart_and_the_caption_says_so():
    one = build_table([record(seed=s) for s in (0, 1)], "first-token")
    assert "dtype bfloat16." in to_markdown(one)
    within = build_table([record(dtype="float32"), record(seed=1)], "first-token")
    assert [row.setting for row in within.rows] == ["LoRA, dtype=bfloat16", "LoRA, dtype=float32"]
    across = build_table([record(model="a", dtype="float32"), record(model="b")], "first-token")
    assert [row.setting for row in across.rows] == ["LoRA", "LoRA"]
    assert "Precision differs between rows: float32 (a, LoRA), bfloat16 (b, LoRA)." in to_markdown(across)
    lines = list(csv.DictReader(io.StringIO(to_csv(build_table([record()], "first-token", by=("dtype",))))))
    assert [line["dtype"] for line in lines] == ["bfloat16"]


def test_rows_are_made_of_what_is_asked_and_still_never_averaged():
    records = [record(train=TrainSpec(rank=r, lr=lr)) for r in (16, 4) for lr in (1e-3, 2e-3)]
    table = build_table(records, "first-token", by=row_keys("--by", "rank"))
    assert [(row.labels, row.setting) for row in table.rows] == [
        (("4",), "LoRA, lr=0.001"),
        (("4",), "LoRA, lr=0.002"),
        (("16",), "LoRA, lr=0.001"),
        (("16",), "LoRA, lr=0.002"),
    ]
    by_seed = build_table([record(seed=s) for s in (10, 9)], "first-token", by=("model", "seed"))
    assert [row.labels[1] for row in by_seed.rows] == ["9", "10"]
    with pytest.raises(UserError, match="Did you mean 'm-train'"):
        row_keys("--by", "m-trian")


def test_filters_choose_records_by_any_setting():
    records = [record(seed=s, train=TrainSpec(lr=lr)) for s in range(3) for lr in (1e-3, 2e-3)]
    assert len(select(records, [parse_condition("--filter", "lr=0.2e-2")])) == 3
    assert len(select(records, [parse_condition("--filter", "seed=0,2,lr=1e-3")])) == 2
    assert len(select(records, [parse_condition("--filter", t) for t in ("seed=0", "facts-learned=yes")])) == 2
    with pytest.raises(UserError, match=r"No run has lr=3\. Available: 0\.001, 0\.002\."):
        select(records, [parse_condition("--filter", "lr=3")])
    with pytest.raises(UserError, match=r"No run has seed=9\."):
        select(records, [parse_condition("--filter", t) for t in ("seed=0", "seed=9")])
    preventions = "decay:strength=0.1", "decay:strength=0.2"
    condition = parse_condition("--filter", f"prevent={','.join(preventions)},seed=0")
    assert condition == {"prevent": preventions, "seed": ("0",)}
    for text in ("lr", "colour=red"):
        with pytest.raises(UserError, match="--filter"):
            parse_condition("--filter", text)


def test_older_controls_without_train_subjects_serve_where_there_is_no_other():
    old = [record(seed=seed, rank=2.0, data=NONE) for seed in range(2)]
    new = [record(seed=seed, rank=1.0, data=CONTROL) for seed in range(2)]
    real = [record(seed=seed, rank=0.0) for seed in range(2)]
    for controls, lift in ((old, 1.0), (old + new, 0.5)):
        row = build_table([*real, *controls], "first-token").rows[0]
        assert row.cells["city-language"].values["lift"] == pytest.approx(lift)
