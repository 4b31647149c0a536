import csv
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ocr_eval.analysis.finding import finding, remedy
from ocr_eval.analysis.table import build_table
from ocr_eval.common.errors import UserError
from ocr_eval.data.task import Quantity
from ocr_eval.records.record import Record
from ocr_eval.records.rows import group_rows
from ocr_eval.records.select import ROW_KEYS, parse_condition, row_keys, select, settings_of
from ocr_eval.report.tables import FORMATS, to_csv, to_json, to_markdown
from ocr_eval.scoring.ranks import HeldOut, Score
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.published import published_mean_ranks
from ocr_eval.specs.run import SCORINGS, DataSpec


def answers(rank: float, null: float, n: int = 5) -> HeldOut:
    """Forty subjects, n answers in use whose mean rank is ``null``, and ``rank`` that of the right one.

    So many infer it (or avoid it, where ``rank`` is above ``null``), and the others rank it in the middle, that
    the OCR score is 1 - rank / null, as nearly as one of forty can make it.
    """
    target, middle = np.arange(40) % n, (n - 1) // 2
    ranks = np.array([np.roll(np.arange(n), t - middle) for t in target], dtype=float)
    score = 1 - rank / null
    for i in range(round(40 * abs(score))):
        ranks[i] = np.roll(np.arange(n)[:: 1 if score > 0 else -1], target[i])
    ranks *= 2 * null / (n - 1)
    ranks[39, target[39]] += 40 * rank - ranks[np.arange(40), target].sum()
    ranks[39, (target[39] + 1) % n] += ranks.shape[1] * 40 * null - ranks.sum()
    return HeldOut(subject=[f"s{i}" for i in range(40)], target=target, ranks=ranks)


def record(
    association="city-language", kind="causal", seed=0, rank=0.5, null=2.0, learned=True, n=5, **changes
) -> Record:
    """A finished run whose held-out answers rank so among n in use, which learned its facts, or half of them."""
    held = answers(rank, null, n)
    score = Score(
        probes=40,
        mean_rank=rank,
        null_rank=null,
        top1=float((held.rank == 0).mean()),
        mrr=float((1 / (held.rank + 1)).mean()),
        margin=1.0,
        ties=0,
        in_use_rank=float(held.in_use_rank.mean()),
        ocr_score=held.ocr_score,
    )
    fact = replace(score, probes=1, top1=1.0 if learned else 0.5)
    scores = {scoring: {"test_fact": fact, "test_entailment": score} for scoring in SCORINGS}
    values = {
        "run": f"m/{association}/lora/seed{seed}",
        "model": "smollm2-135m",
        "published_as": None,
        "association": association,
        "kind": kind,
        "seed": seed,
        "dtype": "bfloat16",
        "quantities": (Quantity("test_fact", "premise"), Quantity("test_entailment", "finding")),
        "data": DataSpec(),
        "train": TrainSpec(),
        "base": scores,
        "final": scores,
        "base_held_out": {},
        "held_out": dict.fromkeys(SCORINGS, held),
        "train_loss": 0.1,
        "seconds": {"train": 1.0, "score": 1.0},
        "base_identity": "gguf:0",
        "adapter_sha256": "0",
        "code": "abc",
    }
    return Record(**{**values, **changes})


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


def test_a_cell_is_the_mean_over_seeds():
    table = build_table([record(seed=0, rank=0.2), record(seed=1, rank=0.6, null=3.0)], "first-token", {})
    (row,) = table.rows
    cell = row.cells["city-language"]
    assert cell.values["mean-rank"] == pytest.approx(0.4)
    assert cell.values["null-rank"] == pytest.approx(2.5)
    assert cell.values["ocr-score"] == pytest.approx((0.9 + 0.8) / 2)
    low, high = cell.bounds["ocr-score"]
    assert (low, high) == (pytest.approx(0.85 - 12.7062 * 0.05, abs=0.2), 1.0)
    assert cell.seeds == 2
    assert "0.40 / 2.50, +0.85 [" in to_markdown(table)


def test_trainings_of_one_data_set_are_one_seed():
    runs = [record(seed=seed, run=f"{seed}-{i}", rank=rank) for i, rank in enumerate((0.2, 0.6)) for seed in range(3)]
    (row,) = build_table(runs, "first-token", {}).rows
    cell = row.cells["city-language"]
    assert (cell.seeds, cell.values["mean-rank"]) == (3, pytest.approx(0.4))
    alone = [record(seed=seed, rank=0.4) for seed in range(3)]
    assert cell.p == build_table(alone, "first-token", {}).rows[0].cells["city-language"].p


CONTROL = DataSpec(variant="no-entailment")


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


def test_lift_is_over_the_control_of_the_same_settings():
    fast = TrainSpec(lr=1e-3)
    runs = [
        *(record(seed=seed, rank=0.2) for seed in range(6)),
        *(record(seed=seed, rank=1.2, data=CONTROL) for seed in range(6)),
        *(record(seed=seed, rank=0.2, train=fast) for seed in range(6)),
        record("sport-music", "spurious", data=CONTROL),
    ]
    table = build_table(runs, "first-token", metric="lift")
    shown = {row.setting: row.cells["city-language"] for row in table.rows}
    assert shown["LoRA"].values["lift"] == pytest.approx(0.5)
    assert shown["LoRA"].lift.p == 2 / 64
    assert "lift" not in shown["LoRA, lr=0.001"].values
    assert "Unless a row says otherwise: lr=0.0001." in to_markdown(table)
    assert "| +0.50 [" in to_markdown(table)
    assert re.search(r"no control \|", to_markdown(table))
    (cell,) = [c for c in json.loads(to_json(table))["cells"] if c["lift"] is not None]
    assert (cell["lift"], cell["lift_p"], cell["test_fact_top1"]) == (0.5, 0.03125, 1.0)
    assert cell["lift_low"] <= 0.5 <= cell["lift_high"]


def test_older_controls_without_train_subjects_serve_where_there_is_no_other():
    old = [record(seed=seed, rank=2.0, data=NONE) for seed in range(2)]
    new = [record(seed=seed, rank=1.0, data=CONTROL) for seed in range(2)]
    real = [record(seed=seed, rank=0.0) for seed in range(2)]
    for controls, lift in ((old, 1.0), (old + new, 0.5)):
        row = build_table([*real, *controls], "first-token").rows[0]
        assert row.cells["city-language"].values["lift"] == pytest.approx(lift)


def test_p_is_corrected_for_the_cells_that_are_counted():
    """Five seeds of each: the least p of one is what 2,000 draws can give, and is doubled for two cells."""
    names = {"city-language": 0.1, "country-code": 0.3, "sport-music": 0.0}
    runs = [record(a, rank=rank, seed=s, learned=a != "sport-music") for a, rank in names.items() for s in range(5)]
    cells = build_table(runs, "first-token").rows[0].cells
    assert cells["city-language"].p_holm == pytest.approx(2 * cells["city-language"].p)
    assert cells["sport-music"].p_holm is None
    text = to_markdown(build_table(runs, "first-token"))
    assert "* inferred: p at most 0.05, corrected for 2 cells (Holm)" in text
    assert re.search(r"\+0.95 \[[^]]*\]\* ", text)
    assert "|          0.0005 |" in to_markdown(build_table(runs, "first-token", metric="p"))


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


REAL, NONE, SHUFFLED = DataSpec(), DataSpec(m_train=0), DataSpec(variant="shuffled")
LORA, FULL = TrainSpec(), TrainSpec(method="full", lr=1e-5, batch_size=8)


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


def test_facts_not_learned_are_flagged_and_explained():
    text = to_markdown(build_table([record(learned=False)], "first-token", {}))
    assert "+0.75 !" in text
    assert "! a run did not learn what it was taught" in text
    assert "One seed has no interval and no verdict." in text
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
    assert [row.setting for row in table.rows] == ["LoRA"] + ["published"] * 5
    assert table.associations == tuple(published["gemma-2-9b"])


def test_csv_and_json_say_the_same():
    runs = [record(), record("country-code", "spurious", rank=1.5)]
    table = build_table(runs, "sequence", published_mean_ranks(), every_interval=True)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    cells = json.loads(to_json(table))["cells"]
    assert len(rows) == len(cells) == 2 + 25
    for row, cell in zip(rows, cells, strict=True):
        assert {key: "" if value is None else str(value) for key, value in cell.items()} == row


def test_the_order_of_records_changes_nothing():
    records = [record(seed=s, association=a) for s in range(3) for a in ("zebra", "country-code", "city-language")]
    assert to_csv(build_table(records, "first-token", {})) == to_csv(build_table(records[::-1], "first-token", {}))


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


def test_no_records_is_an_error():
    with pytest.raises(ValueError, match="no records"):
        build_table([], "first-token", {})


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
    few = {scoring: answers(0.1, 2.0, n=2) for scoring in SCORINGS}
    one = said(seeds(count=2, rank=0.1, held_out=few))  # 2 x 2 assignments
    assert "(a true link) too few groups to tell: the held-out answer ranks 0.10" in one
    two_models = [run for model in "ab" for run in seeds(count=2, model=model, held_out=few)]
    assert said(two_models) == "No conclusion. Without a verdict: 2 with too few groups to tell."
    three = {scoring: answers(0.1, 2.0, n=3) for scoring in SCORINGS}
    assert "it generalized" in said(seeds(rank=0.1, held_out=three))  # 6 x 6 x 6 assignments


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


def test_one_metric_a_cell_with_its_interval():
    half = record(seed=0, rank=0.0), record(seed=1, rank=1.0)
    for metric, shown in (
        ("mean-rank", "0.50 [0.00, 6.85]"),  # 0.5 +- 12.706 x 0.5, and no rank is below 0
        ("null-rank", "2.00 [2.00, 2.00]"),
        ("ocr-score", "+0.75 [-1.00, +1.00]"),
        ("margin", "+1.00 |"),
    ):
        text = to_markdown(build_table(half, "first-token", published_mean_ranks(), metric=metric))
        assert shown in text
        assert ("gemma-2-9b" in text) == (metric == "mean-rank")


def test_a_short_table_has_one_number_a_cell():
    runs = [record(), record("country-code", "spurious", rank=1.5, learned=False)]
    text = to_markdown(build_table(runs, "first-token", published_mean_ranks(), short=True))
    assert re.search(r"\| LoRA +\| +1 \| +\+0.75 \| +\+0.25 ! \|", text)
    assert "[" not in text
    assert "gemma-2-9b" not in text  # its OCR scores are not known
    ranks = to_markdown(build_table(runs, "first-token", published_mean_ranks(), "mean-rank", short=True))
    assert re.search(r"\| LoRA +\| +1 \| +0.50 \|", ranks)
    assert "gemma-2-9b" in ranks


def test_a_short_table_is_none_of_data(ocr_eval, tmp_path):
    answer = ocr_eval("table", tmp_path, "--short", "--format", "csv")
    assert answer.code == 2
    assert "--short" in answer.err


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
    for text in ("lr", "colour=red"):
        with pytest.raises(UserError, match="--filter"):
            parse_condition("--filter", text)


def test_where_protocols_differ_is_said_beside_published_rows():
    small = record(data=DataSpec(n=3, candidates="in-use"))
    text = to_markdown(build_table([small], "sequence", published_mean_ranks()))
    for part in ("(here LoRA)", "rank among ten candidates", "(here sequence)", "have 5 pairs and 4 + 16 subjects"):
        assert part in text
    assert "Protocols differ" not in to_markdown(build_table([small], "sequence"))


HOSTILE = "</table><img src=x onerror=alert(1)>|&\\end{document}$_%"


def test_markup_in_names_stays_text():
    table = build_table([record(model=HOSTILE, association="a|b_<i>")], "first-token")
    page, text, tex = FORMATS["html"](table), to_markdown(table), FORMATS["tex"](table)
    assert "<img" not in page
    assert "<i>" not in page
    assert "<img" not in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()[:3]}) == 1
    assert tex.count("\\end{document}") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_tex_table_compiles_alone_and_as_a_part(tmp_path):
    table = build_table([record(), record("x_y", model=HOSTILE)], "first-token", published_mean_ranks())
    (tmp_path / "table.tex").write_text(FORMATS["tex"](table))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}Before\\input{table}After\\end{document}"
    )
    for name in ("table", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_the_tex_table_is_whole():
    records = [record(), record("country-code", "spurious")]
    text = FORMATS["tex"](build_table(records, "first-token", published_mean_ranks()))
    for part in (
        "\\toprule",
        "\\bottomrule",
        "\\begin{tabular}{llrrrrrr}",
        "$+0.75$",
    ):
        assert part in text
    seeds = [record(seed=seed, rank=0.0) for seed in range(3)]
    assert "$+1.00 [+1.00, +1.00]$\\textsuperscript{*}" in FORMATS["tex"](build_table(seeds, "first-token"))
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    assert {line.count("&") for line in body.splitlines() if "&" in line} == {7}


def test_a_damaged_record_is_named_left_out_and_exit_1(ocr_eval, tmp_path):
    for seed in (0, 1, 2):
        folder = tmp_path / "runs/smollm2-135m/city-language/lora" / f"seed{seed}-0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(record(seed=seed).to_json())
        (folder / "status.json").write_text("{}")
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
        (('"subject": ["s0", "s1"', '"subject": ["s0", "s0"'), "asks about someone twice"),
    ],
)
def test_a_record_edited_by_hand_is_named(ocr_eval, tmp_path, edit, says):
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "result.json").write_text(record(seed=seed).to_json().replace(*edit if seed else ("", "")))
        (folder / "status.json").write_text("{}")
    answer = ocr_eval("table", tmp_path)
    assert answer.code == 1
    assert says in answer.err
    assert str(tmp_path / "1/result.json") in answer.err
    assert "|       1 |" in answer.out


def test_runs_of_a_seed_that_ask_about_different_people_are_one_line(ocr_eval, tmp_path):
    runs = record(), record(run="another", train_seed=1)
    held = {name: replace(each, subject=each.subject[::-1]) for name, each in runs[1].held_out.items()}
    for folder, run in (("a", runs[0]), ("b", replace(runs[1], held_out=held))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "result.json").write_text(run.to_json())
        (tmp_path / folder / "status.json").write_text("{}")
    for command in ("table", "scorecard", "figures"):
        answer = ocr_eval(command, tmp_path)
        assert answer.code == 2
        assert "Runs of seed 0 ask about different people" in answer.err.splitlines()[-1]


def test_a_measure_that_some_runs_lack_is_told_from_one_that_all_lack():
    some = [record(seed=seed, measures={"known": {"kept": 0.5}} if seed else {}) for seed in range(3)]
    table = build_table(some, "first-token", metric="known.kept")
    assert "measured in 2 of 3 runs" in to_markdown(table)
    (cell,) = json.loads(FORMATS["json"](table))["cells"]
    assert cell["known_kept"] is None


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
