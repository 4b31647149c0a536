"""Figures of runs, made through the command line and looked at by their content."""

import math
import re
from itertools import combinations

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from made_records import HOSTILE, record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_report import write_run

from ocr_eval.analysis.candidate_heat import heat_of
from ocr_eval.analysis.scorecard import build_scorecard
from ocr_eval.analysis.table import build_table
from ocr_eval.api import draw_figures
from ocr_eval.data.pairs import quantities
from ocr_eval.data.task import Quantity
from ocr_eval.records.find import find_runs
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.report.chart import Curve
from ocr_eval.report.figures import fonts
from ocr_eval.report.figures.card import card_figure
from ocr_eval.report.figures.curves import curve_figure, efficiency_figure
from ocr_eval.report.figures.gallery import gallery
from ocr_eval.report.figures.heatmaps import heatmap_figure
from ocr_eval.report.figures.layers import layer_figures
from ocr_eval.report.figures.rows import in_words, seeds_by_row
from ocr_eval.report.figures.scores import scatter_figure, score_figure
from ocr_eval.report.figures.style import save
from ocr_eval.scoring.ranks import Score
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.published import published_mean_ranks
from ocr_eval.specs.run import DataSpec

KINDS = (("city-language", "causal"), ("sport-music", "spurious"))


@pytest.fixture
def runs(ocr_eval, tiny, tmp_path):
    for assoc in ("city-language", "country-code"):
        for seed in (0, 1):
            run = ["finetune", "--model", tiny, "--assoc", assoc, "-o", tmp_path, "--seed", seed, "--epochs", 2]
            assert ocr_eval(*run, "--n", 3, "--m-test", 2, "--quiet").code == 0
    return tmp_path


def test_figures_are_written_and_are_the_same_every_time(ocr_eval, runs):
    first = ocr_eval("figures", runs)
    assert first.code == 0, first.err
    names = sorted(p.name for p in (runs / "figures").iterdir())
    kinds = ("curves-tiny-llama-lora", "generalization-hallucination", "heatmap-tiny-llama-lora", "scores")
    assert names == [f"{n}.{e}" for n in kinds for e in ("pdf", "png", "svg")]
    before = {p.name: p.read_bytes() for p in (runs / "figures").iterdir()}
    assert ocr_eval("figures", runs).out == first.out
    assert {p.name: p.read_bytes() for p in (runs / "figures").iterdir()} == before


def test_a_damaged_file_is_named_and_the_rest_is_drawn(ocr_eval, tmp_path):
    for i in range(3):
        write_run(tmp_path / f"run-{i}", record(model=f"model-{i}"))
    (tmp_path / "run-0/probes.jsonl").write_text("{")
    (tmp_path / "run-1/metrics.jsonl").unlink()
    answer = ocr_eval("figures", tmp_path)
    assert answer.code == 1
    assert "run-0/probes.jsonl" in answer.err
    assert "run-1/metrics.jsonl is missing. Skipped." in answer.err
    of_rows = {path.stem for path in (tmp_path / "figures").iterdir()} - {"scores"}
    assert of_rows == {
        *(f"curves-model-{i}-lora" for i in (0, 2)),
        *(f"heatmap-model-{i}-lora" for i in (1, 2)),
    }
    with pytest.warns(UserWarning, match=r"run-1/metrics.jsonl is missing. Skipped.") as warned:
        assert set(draw_figures(tmp_path)) == {"scores", *of_rows}
    assert {each.filename for each in warned} == {__file__}


def test_scores_show_every_association_and_no_published_row():
    table = build_table([record(), record("sport-music", "spurious")], "first-token", published_mean_ranks())
    figure = score_figure(table)
    axes = figure.axes[0]
    named = [label.get_text() for label in axes.get_xticklabels()]
    assert named == ["city-language\ntrue link", "sport-music\narbitrary link"]
    assert legend_of(figure) == ["smollm2-135m, LoRA (1 seed)"]


def test_a_legend_of_long_labels_stays_inside_its_figure():
    settings = [
        {"train": TrainSpec(lr=lr, batch_size=size, method=method), "data": DataSpec(m_train=m)}
        for lr, size, method, m in ((1e-3, 8, "lora", 4), (2.5e-5, 16, "full", 1), (2e-3, 32, "qlora", 2))
    ]
    long = {"model": "a-model-with-a-name-of-sixty-three-characters-as-long-as-they-get"}
    records = [record(*kind, **setting) for kind in KINDS for setting in settings]
    records += [record(*kind, **setting, **long) for kind in KINDS for setting in settings]
    figures = [
        score_figure(build_table(records, "first-token", published_mean_ranks())),
        scatter_figure(records, "first-token"),
    ]
    for figure in figures:
        FigureCanvasAgg(figure).draw()
        box, whole = figure.legends[0].get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1


def test_curves_are_drawn_in_the_terminal_too(ocr_eval, tmp_path):
    for i, (name, kind) in enumerate(KINDS):
        write_run(tmp_path / f"run-{i}", record(name, kind))
    (tmp_path / "run-1/metrics.jsonl").unlink()
    asked = (Quantity("taught", "premise"), Quantity("held_out", "finding"))
    final = {s: dict(zip(("taught", "held_out"), of.values(), strict=True)) for s, of in record().final.items()}
    write_run(tmp_path / "two", record("known", model="two", quantities=asked, base=final, final=final))
    answer = ocr_eval("figures", tmp_path, "--text")
    assert answer.code == 1
    assert "run-1/metrics.jsonl is missing" in answer.err
    assert answer.out.startswith("smollm2-135m, LoRA: mean rank")
    assert "city-language: mean rank" in answer.out
    assert "sport-music" not in answer.out
    assert "smollm2-135m, LoRA: mean rank of held-out entailments by epoch" in answer.out
    assert "two, LoRA: mean rank of held-out facts by epoch" in answer.out
    assert not (tmp_path / "figures").exists()
    assert "--to has no effect" in ocr_eval("figures", tmp_path, "--text", "--to", tmp_path / "there").err


def scored(epoch, rank):
    """A line of metrics of an epoch that was scored, its null a rank above."""
    score = Score(probes=9, mean_rank=rank, null_rank=rank + 1, ocr_score=0.5, top1=0.5, mrr=0.5, margin=0.5, ties=0)
    names = (quantity.name for quantity in quantities(DataSpec()))
    return MetricsLine(epoch=epoch, scores={"first-token": dict.fromkeys(names, score)})


def curves_figure(*runs):
    """The panel of runs of one association."""
    return curve_figure([Curve.of(runs, "first-token")], "first-token")


def curves_of(figure) -> dict[str, list[list[float]]]:
    """The points of each line in a figure's first axes, by its label."""
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}


def bands_of(figure) -> list[list[list[float]]]:
    """The corners of each band in a figure's first axes, without repetition."""
    return [np.unique(band.get_paths()[0].vertices, axis=0).tolist() for band in figure.axes[0].collections[:-1]]


def test_curves_show_the_finding_what_was_taught_and_the_null_averaged_over_seeds():
    runs = [
        (record(), [scored(0, 2.0), MetricsLine(epoch=1, train_loss=1.0), scored(2, 1.0)]),
        (record(seed=1), [scored(0, 4.0), MetricsLine(epoch=1, train_loss=1.0), scored(2, 2.0)]),
    ]
    figure = curves_figure(*runs)
    drawn = curves_of(figure)
    assert set(drawn) == {"what was taught", "held-out entailments", "null of held-out", "chance"}
    assert drawn["what was taught"] == drawn["held-out entailments"] == [[0, 3.0], [2, 1.5]]
    assert drawn["null of held-out"] == [[0, 4.0], [2, 2.5]]
    assert "2 seeds" in figure.axes[0].get_title()
    assert bands_of(figure) == [[[0, 2.0], [0, 4.0], [2, 1.0], [2, 2.0]]] * 2


def test_what_was_taught_is_the_mean_of_its_quantities_and_its_band_reaches_over_them():
    line = scored(0, 1.0)
    worse = Score(probes=9, mean_rank=4.0, null_rank=4.0, ocr_score=0.0, top1=0.0, mrr=0.2, margin=0.0, ties=0)
    line.scores["first-token"]["train_entailment"] = worse
    first, second = (record(seed=seed, quantities=quantities(DataSpec())) for seed in (0, 1))
    figure = curves_figure((first, [line]), (second, [scored(0, 1.0)]))
    assert curves_of(figure)["what was taught"] == [[0, pytest.approx(1.5)]]
    assert bands_of(figure)[0] == [[0, 1.0], [0, 4.0]]


def test_curves_have_only_the_epochs_at_which_all_seeds_were_scored():
    often, seldom = [scored(e, 1.0) for e in range(5)], [scored(e, 3.0) for e in (0, 2, 4)]
    figure = curves_figure((record(), often), (record(seed=1), seldom))
    assert curves_of(figure)["held-out entailments"] == [[0, 2.0], [2, 2.0], [4, 2.0]]


@pytest.mark.parametrize(
    ("data", "chance"),
    [
        (DataSpec(n=3, candidates="ten"), 4.5),
        (DataSpec(n=3, candidates="in-use"), 1.0),
        (DataSpec(n=12, candidates="ten"), 5.5),
        (DataSpec(n=3, candidates="all"), None),
    ],
)
def test_chance_is_the_mean_rank_among_all_candidates(data, chance):
    drawn = curves_of(curves_figure((record(data=data), [scored(0, 1.0), scored(1, 0.5)])))
    assert [y for _, y in drawn.get("chance", [])] == ([] if chance is None else [chance, chance])


def test_ticks_of_epochs_and_of_subjects_are_whole():
    short = curves_figure((record(), [scored(0, 1.0), scored(1, 0.5)]))
    few = efficiency_figure([record(data=DataSpec(m_train=m)) for m in (0, 1)], "first-token")
    assert [[tick for tick in f.axes[0].get_xticks() if 0 <= tick <= 1] for f in (short, few)] == [[0, 1], [0, 1]]


def test_no_text_is_cut():
    lines = [probe(group, [0.2, 0.3, 0.5]) for group in (0, 1)]
    lines = [{**line, "candidates": ["Amharic", "Portuguese", "z" * 20]} for line in lines]
    lines = [{**line, "answer": line["candidates"][line["group"]]} for line in lines]
    metrics = [scored(0, 1.0), scored(1, 0.5)]
    for figure in (
        heatmap_figure({"city-language, seed 0": heat_of(lines, "first-token", quantities(DataSpec()))}, "first-token"),
        *(
            curve_figure([Curve.of([(record(name), metrics)], "first-token") for name in names], "first-token")
            for names in (["city-language"], ["city-language", "sport-music"])
        ),
    ):
        FigureCanvasAgg(figure).draw()
        texts = [text for text in figure.findobj(Text) if re.search("[a-z]", text.get_text())]
        boxes = [text.get_window_extent() for text in texts]
        cut = [
            text.get_text()
            for text, box in zip(texts, boxes, strict=True)
            if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1
        ]
        assert cut == []


def test_rows_whose_names_make_one_file_name_keep_their_figures(tmp_path):
    for model in ("a_b", "a-b"):
        write_run(tmp_path / model, record(model=model))
    names = [name for name, _ in gallery(find_runs(tmp_path).runs, "first-token", lambda error: None)]
    assert len(names) == len(set(names))
    assert sum(name.startswith("curves") for name in names) == 2


def test_curves_by_layer_count_seeds_and_not_runs():
    measures = {"weight-change": {"layers": {"frobenius": [1.0, 2.0]}}}
    runs = [record(seed=seed, train_seed=train, measures=measures) for seed in (0, 1) for train in (2, 3)]
    ((_, _, drawn),) = layer_figures(runs)
    assert drawn().axes[0].get_title() == "city-language (2 seeds)"


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no probes"):
        heat_of([], "first-token", quantities(DataSpec()))
    assert scatter_figure([record()], "first-token") is None
    assert efficiency_figure([record(), record(seed=1)], "first-token") is None


def points_of(figure) -> set[tuple[tuple[float, float], bool]]:
    """Every marker that stands alone in a figure's first axes: its place, and whether it is hollow."""
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1]
    return {(tuple(line.get_xydata()[0].round(6).tolist()), line.get_markerfacecolor() == "white") for line in lines}


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_generalization_stands_against_hallucination():
    runs = [record(rank=0.2), record("country-code", "spurious", rank=1.5)]
    controls = [record("country-code", "spurious", rank=0.0, data=DataSpec(variant="shuffled"))]
    controls += [record(name, kind, rank=1.0, data=DataSpec(m_train=0)) for name, kind in KINDS]
    assert points_of(scatter_figure([*runs, *controls], "first-token")) == {((0.25, 0.9), False)}


def test_what_did_not_learn_its_facts_is_hollow_and_the_legend_says_so():
    def figures(learned):
        runs = [record(rank=0.2), record("country-code", "spurious", rank=1.5, learned=learned)]
        sizes = [record(rank=2.0 - m / 4, data=DataSpec(m_train=m), learned=learned or m == 0) for m in (0, 4)]
        return [
            score_figure(build_table(runs, "first-token")),
            scatter_figure(runs, "first-token"),
            efficiency_figure(sizes, "first-token"),
        ]

    hollow = "hollow: a run did not learn what it was taught"
    for figure in figures(learned=True):
        assert not any(is_hollow for _, is_hollow in points_of(figure))
        assert hollow not in legend_of(figure)
    scores, scatter, efficiency = figures(learned=False)
    assert all(hollow in legend_of(figure) for figure in (scores, scatter, efficiency))
    assert points_of(scores) == {((0, 0.9), False), ((1, 0.25), True)}
    assert points_of(scatter) == {((0.25, 0.9), True)}
    assert points_of(efficiency) == {((4, 0.5), True)}


def marks_of(figure) -> dict[str, tuple[float, float]]:
    """Place of the large marks in a figure's first axes, in inches, by their colour and marker."""
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    large = [line for line in axes.get_lines() if len(line.get_xdata()) == 1 and line.get_markersize() > 6]
    places = [axes.transData.transform(line.get_xydata()[0]) / figure.dpi for line in large]
    return {f"{line.get_color()} {line.get_marker()}": tuple(at) for line, at in zip(large, places, strict=True)}


CROWD = [TrainSpec(), *(TrainSpec(prevent=[f"product-decay:strength={s}"]) for s in (0.1, 0.2, 0.3))]


def test_no_mark_hides_another_and_moved_marks_are_joined_to_their_place():
    runs = [record(*kind, seed=seed, train=train, rank=0.0) for train in CROWD for kind in KINDS for seed in (0, 1)]
    for figure in (
        card_figure(build_scorecard(runs, "first-token"), "first-token"),
        scatter_figure(runs, "first-token"),
    ):
        marks, axes = marks_of(figure), figure.axes[0]
        assert len(marks) == 4
        assert min(math.dist(a, b) for a, b in combinations(marks.values(), 2)) > 0.125
        leads = [
            line.get_xydata() for line in axes.get_lines() if line.get_color() == "black" and line.get_zorder() == 4
        ]
        assert [lead[1].tolist() for lead in leads] == [[1.0, 1.0]] * 3
        assert all(x < 1 and y == 1 for (x, y), _ in map(list, leads)), "beside, and never above the maximum"
        assert "moved sideways" in axes.get_xlabel()
    alone = scatter_figure([record(*kind) for kind in KINDS], "first-token")
    assert "moved sideways" not in alone.axes[0].get_xlabel()


@pytest.mark.parametrize("learned", [True, False])
def test_only_rows_that_learned_have_intervals_on_the_plane(learned):
    prevented = TrainSpec(prevent=["abstain"])
    runs = [record(*kind, seed=seed, rank=seed / 2) for kind in KINDS for seed in (0, 1)]
    runs += [record(*kind, seed=seed, train=prevented, learned=learned) for kind in KINDS for seed in (0, 1)]
    figure = card_figure(build_scorecard(runs, "first-token"), "first-token")
    bars = [line for line in figure.axes[0].get_lines() if line.get_alpha() is not None and line.get_alpha() < 1]
    assert len({line.get_color() for line in bars}) == 1 + learned


def test_rows_of_a_card_are_named_in_words():
    runs = [record(*kind, seed=seed, train=train) for train in CROWD for kind in KINDS for seed in (0, 1)]
    runs += [record(*kind, train=TrainSpec(prevent=["abstain"]), learned=False) for kind in KINDS]
    card = build_scorecard(runs, "first-token")
    figure = card_figure(card, "first-token", seeds_by_row(runs))
    assert [hollow for _, hollow in points_of(figure)].count(True) == 1
    named = [" ".join(label.get_text().split()) for label in figure.axes[1].get_yticklabels()]
    assert named[0] == "LoRA (2 seeds, reference)"
    assert "LoRA + abstain (1 seed, knows the relation)" in named
    assert "LoRA + product decay: strength 0.1 (2 seeds)" in named
    assert [axes.get_title() for axes in figure.axes[1:]] == ["true links", "arbitrary links"]
    assert "LoRA (reference)" in [
        label.get_text() for label in card_figure(card, "first-token").axes[1].get_yticklabels()
    ]
    assert card_figure([], "first-token") is None


def test_a_row_looks_alike_in_all_figures():
    runs = [record(*kind, seed=seed, train=train) for train in CROWD for kind in KINDS for seed in (0, 1)]
    runs += [record(*kind, model="another", data=DataSpec(variant="shuffled")) for kind in KINDS]
    seen = []
    for figure in (score_figure(build_table(runs, "first-token")), scatter_figure(runs, "first-token")):
        lines = [line for line in figure.axes[0].get_lines() if "smollm2-135m, LoRA" in line.get_label()]
        seen.append({line.get_label(): (line.get_color(), line.get_marker()) for line in lines})
    assert seen[0] == seen[1]
    assert len(set(seen[0].values())) == 4
    card = card_figure(build_scorecard(runs, "first-token"), "first-token", seeds_by_row(runs))
    assert {f"{color} {marker}" for color, marker in seen[0].values()} <= marks_of(card).keys()
    alone = scatter_figure([run for run in runs if not run.train.prevent], "first-token")
    (line,) = [line for line in alone.axes[0].get_lines() if "smollm2-135m, LoRA" in line.get_label()]
    assert seen[0]["smollm2-135m, LoRA (2 seeds)"] == (line.get_color(), line.get_marker())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "m, LoRA + abstain:people=4:answer=unknown, lr=0.001",
            "m, LoRA + abstain: people 4, answer unknown, lr=0.001",
        ),
        ("m, graft:at_epoch=2 + mine.own:a=1", "m, graft: at epoch 2 + mine.own: a 1"),
        ("org/m:7b, LoRA", "org/m:7b, LoRA"),
        ("m-1, LoRA + gradient-routing, targets=q+k", "m-1, LoRA + gradient routing, targets=q+k"),
    ],
)
def test_settings_of_methods_and_preventions_are_told_in_words(name, words):
    assert in_words(name) == words


def test_every_row_of_a_legend_has_a_marker_of_its_own_and_the_rest_are_counted():
    rows = [record(name, kind, train=TrainSpec(lr=i / 1000)) for i in range(1, 15) for name, kind in KINDS]
    sizes = [record(train=TrainSpec(lr=i / 1000), data=DataSpec(m_train=m)) for i in range(1, 15) for m in (0, 4)]
    for figure in (
        score_figure(build_table(rows, "first-token")),
        scatter_figure(rows, "first-token"),
        efficiency_figure(sizes, "first-token"),
    ):
        lines = [line for line in figure.axes[0].get_lines() if "LoRA, lr=" in line.get_label()]
        assert len({line.get_marker() for line in lines}) == len(lines) == 12
        assert "and 2 more" in legend_of(figure)


def test_the_efficiency_curve_has_a_point_for_each_m_train():
    runs = [record(seed=s, data=DataSpec(m_train=m), rank=2.0 - m / 4) for m in (0, 1, 4) for s in (0, 1)]
    figure = efficiency_figure([*runs, record("sport-music", "spurious")], "first-token")
    line = figure.axes[0].get_lines()[0]
    assert line.get_label() == "city-language: smollm2-135m, LoRA"
    assert list(line.get_xdata()) == [0, 1, 4]
    assert list(line.get_ydata()) == pytest.approx([0, 1 / 8, 1 / 2])


def test_an_efficiency_curve_joins_runs_that_differ_in_m_train_alone():
    def run(m_train, lr):
        return record(data=DataSpec(m_train=m_train), train=TrainSpec(lr=lr), rank=2.0 - m_train / 4)

    assert efficiency_figure([run(0, 1e-3), run(4, 2e-3)], "first-token") is None
    figure = efficiency_figure([run(0, 1e-3), run(4, 1e-3), run(4, 2e-3), run(8, 4e-3)], "first-token")
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    found = {name: xs for name, xs in lines.items() if name.startswith("city-language")}
    assert found == {"city-language: smollm2-135m, LoRA, lr=0.001": [0, 4]}


def probe(group, logprobs, epoch=1, quantity="test_entailment"):
    answer = ["x", "y"][group] if quantity == "test_entailment" else ["Paris", "Rome"][group]
    shared = {"candidates": ["x", "y", "z"], "in_use": 2, "logprobs": {"first-token": list(np.log(logprobs))}}
    return {"epoch": epoch, "group": group, "quantity": quantity, "answer": answer, **shared}


def test_hand_worked_heat():
    lines = [
        probe(0, [0.5, 0.25, 0.25], epoch=0),
        probe(0, [0.2, 0.1, 0.1]),
        probe(0, [0.1, 0.1, 0.0001]),
        probe(1, [0.1, 0.3, 0.1]),
        probe(0, [1, 1, 1], quantity="test_fact"),
        probe(1, [1, 1, 1], quantity="test_fact"),
    ]
    heat = heat_of(lines, "first-token", quantities(DataSpec()))
    assert (heat.groups, heat.candidates, heat.in_use, heat.target) == (("Paris", "Rome"), ("x", "y", "z"), 2, (0, 1))
    assert heat.probability[0] == pytest.approx([0.5, 0.375, 0.125], abs=1e-3)
    assert heat.probability[1] == pytest.approx([0.2, 0.6, 0.2])


def font_of(characters: str, path):
    """A font with squares for these characters alone."""
    pen = TTGlyphPen(None)
    for i, at in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
        (pen.lineTo if i else pen.moveTo)(at)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(char):X}" for char in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(char): name for char, name in zip(characters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular", "psName": path.stem})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.mark.parametrize("installed", [True, False])
def test_names_in_other_scripts_are_drawn_in_installed_fonts_or_one_line_asks_for_one(
    ocr_eval, tmp_path, monkeypatch, recwarn, installed
):
    made = [font_of("東京", tmp_path / "Hanfont.ttf"), font_of("서울", tmp_path / "Hangulfont.ttf")]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(
        fonts, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), *made[: 2 if installed else 1]]
    )
    monkeypatch.setattr(fonts, "_warned", False)
    fonts._fonts.cache_clear()
    for name in ("東京 in 서울", "서울"):
        write_run(tmp_path / f"runs/{len(name)}", record(name))
    answer = ocr_eval("figures", tmp_path / "runs", "-o", tmp_path)
    assert (answer.code, list(recwarn)) == (0, [])
    assert answer.err.count("\n") == answer.err.count("HANGUL SYLLABLE SEO") == (not installed)
    drawing = (tmp_path / "scores.svg").read_text()
    assert ("Hanfont-" in drawing, "Hangulfont-" in drawing) == (True, installed)


def test_markup_and_formulas_in_names_are_drawn_as_they_are(tmp_path):
    hostile = record(model=HOSTILE + "$x^{", association="$\\frac{")
    paths = save(score_figure(build_table([hostile], "first-token")), tmp_path, "scores")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".svg"]
    assert "<img" not in paths[2].read_text()
