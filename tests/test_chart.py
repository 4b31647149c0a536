"""Learning curves in a terminal: what is drawn where, and what a stream can show."""

import io

import pytest
from made_records import record

from ocr_eval.report.chart import Curve, charts

FALLING = Curve(record(), 1, {"test_entailment": {0: 4.0, 1: 2.0, 2: 0.0}}, {0: 4.0, 1: 3.0, 2: 3.0}, 1.0)
STEADY = Curve(record("country-code"), 1, {"test_entailment": {0: 2.0, 2: 2.0}}, {0: 2.5, 2: 2.5}, 0.25)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def marks(text, mark):
    """Where a mark stands in a chart: columns right of the frame, rows above it."""
    rows = [line.partition("│")[2] for line in text.partition("└")[0].splitlines() if "│" in line]
    return {(x, len(rows) - 1 - i) for i, row in enumerate(rows) for x, there in enumerate(row) if there == mark}


def test_marks_stand_at_their_epoch_and_rank():
    text = charts([FALLING], stream("utf-8"))
    assert marks(text, "●") == {(0, 12), (30, 6), (59, 0)}
    assert marks(text, "○") == {(30, 9), (59, 9)}  # the first lies below the mark of the rank
    assert "● city-language: mean rank 0.00   ○ its null 3.00   OCR score +1.00" in text
    assert max(map(len, text.splitlines())) <= 76


def test_two_curves_share_a_chart_and_each_has_marks_of_its_own():
    two, three = charts([FALLING, STEADY], stream("utf-8")), charts([FALLING, STEADY, STEADY], stream("utf-8"))
    assert marks(two, "■") == {(0, 6), (59, 6)}
    assert (two.count("└"), three.count("└")) == (1, 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_cannot_encode_the_marks_gets_ascii(encoding):
    text = charts([FALLING, STEADY], stream(encoding))
    assert text.isascii()
    assert "X country-code: mean rank 2.00" in text


def test_colour_is_for_terminals_and_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in charts([FALLING], Terminal())
    assert "\x1b[" not in charts([FALLING], stream("utf-8"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in charts([FALLING], Terminal())


def test_a_run_ends_with_its_curve_and_says_the_time_left(ocr_eval, tiny, tmp_path):
    run = ("finetune", "--model", tiny, "--assoc", "city-language", "-o", tmp_path, "--n", 3, "--m-test", 2)
    first = ocr_eval(*run)
    assert "city-language: mean rank" in first.out
    said = [line.endswith(" left") for line in first.err.splitlines() if " epoch " in line]
    assert said == [False, True, True, False]
    again = ocr_eval(*run)
    assert "city-language: mean rank" in again.out
    next(tmp_path.glob("runs/**/metrics.jsonl")).unlink()
    without = ocr_eval(*run)
    assert (without.code, "city-language: mean rank" in without.out) == (0, False)
    assert "metrics.jsonl is missing" in without.err
    assert "mean rank 0" not in ocr_eval(*run, "--quiet").out.replace("held-out mean rank", "")
