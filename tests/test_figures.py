"""Figures of runs, made through the command line and looked at by their content."""

import pytest
from test_table import record

from ocr_eval.figures import curve_figure, score_figure
from ocr_eval.published import published_mean_ranks
from ocr_eval.table import Table, build_table


@pytest.fixture
def runs(ocr_eval, tiny, tmp_path):
    for assoc in ("city-language", "country-code"):
        for seed in (0, 1):
            run = ["finetune", "--model", tiny, "--assoc", assoc, "-o", tmp_path, "--seed", seed, "--epochs", 2]
            assert ocr_eval(*run, "--n", 3, "--m-test", 2, "--quiet").code == 0
    return tmp_path


def test_figures_are_written_and_are_the_same_every_time(ocr_eval, runs):
    first = ocr_eval("figures", "-o", runs)
    assert first.code == 0, first.err
    names = sorted(p.name for p in (runs / "figures").iterdir())
    assert names == [f"{n}.{e}" for n in ("curves-tiny-llama-lora", "scores") for e in ("pdf", "png", "svg")]
    before = {p.name: p.read_bytes() for p in (runs / "figures").iterdir()}
    assert ocr_eval("figures", "-o", runs).out == first.out
    assert {p.name: p.read_bytes() for p in (runs / "figures").iterdir()} == before


def test_scores_show_every_association_and_no_published_row():
    table = build_table([record(), record("sport-music", "spurious")], "first-token", published_mean_ranks())
    axes = score_figure(table).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["city-language", "sport-music"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["smollm2-135m, lora"]


def test_curves_show_the_four_quantities_and_the_null_averaged_over_seeds():
    def line(epoch, rank):
        score = {"mean_rank": rank, "null_rank": 2.0}
        names = ("train_fact", "train_entailment", "test_fact", "test_entailment")
        return {"epoch": epoch, "scores": {"first-token": dict.fromkeys(names, score)}}

    skipped = {"epoch": 1, "train_loss": 1.0}
    figure = curve_figure(
        [(record(), [line(0, 2.0), skipped, line(2, 1.0)]), (record(seed=1), [line(0, 4.0)])], "first-token"
    )
    (axes,) = figure.axes
    drawn = {artist.get_label(): list(artist.get_ydata()) for artist in axes.get_lines()}
    assert set(drawn) == {
        "train facts",
        "test facts",
        "train entailments",
        "held-out entailments",
        "null of held-out",
    }
    assert drawn["held-out entailments"] == [3.0, 1.0]
    assert "2 seeds" in axes.get_title()


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no runs"):
        curve_figure([], "first-token")
    with pytest.raises(ValueError, match="no runs"):
        score_figure(Table("first-token", (), ()))
