"""Runs -> one self-contained HTML page."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ocr_eval import __version__
from ocr_eval.analysis.beliefs import Total
from ocr_eval.analysis.finding import finding
from ocr_eval.analysis.scorecard import verdict
from ocr_eval.analysis.table import Table, build_table
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_json, whole
from ocr_eval.common.messages import in_a_row
from ocr_eval.records.find import FinishedRun, Found
from ocr_eval.records.rows import RowKey
from ocr_eval.report.figures.card import card_figure
from ocr_eval.report.figures.gallery import card_of, overall_figures, row_figures, runs_by_row
from ocr_eval.report.figures.layers import MEASURES as BY_LAYER
from ocr_eval.report.figures.layers import layer_figures
from ocr_eval.report.figures.rows import in_words, seeds_by_row
from ocr_eval.report.figures.style import draw
from ocr_eval.report.payload import pack, progress_of, run_payload
from ocr_eval.report.scorecard import MEASURES as ON_CARD
from ocr_eval.report.scorecard import cells, note
from ocr_eval.report.tables import context, templates, unlearned
from ocr_eval.specs.published import published_mean_ranks
from ocr_eval.specs.run import Scoring

#: Most figures of single rows in the page's gallery and under 'Inside'; each run's own are in its section.
ROW_FIGURES = 12
#: Pixels per inch of a figure, so that its small print is as large as that of the page.
PIXELS = 112
#: Most settings or models that the finding names.
MOST_NAMED = 6
#: Measures that the page shows, which must be read from records.
MEASURES = (*ON_CARD, *BY_LAYER)
#: Most runs with a section, and most complaints printed, so that a browser can open the page.
MOST_RUNS, MOST_COMPLAINTS = 500, 100


@dataclass(frozen=True)
class Section:
    """A run on the page.

    Attributes:
        cells: the run's row in the list of runs.
        sort_by: the value that each column sorts by.
        unlearned: the premises that it did not learn, in words; empty if it learned all.
        data: the packed content that the browser unpacks on demand.
    """

    number: int
    cells: tuple[str, ...]
    sort_by: tuple[str | float, ...]
    unlearned: str
    data: str

    @property
    def group(self) -> str:
        """The heading that it is listed under: model and association."""
        return f"{self.cells[1]}, {self.cells[0]}"


#: Title and text of the figures of all runs, and the text of those of a row.
_OVERALL = {
    "scores": (
        "OCR score by association",
        "0: none was inferred, 1: always. Bars are 95 % intervals over seeds. The table has the numbers.",
    ),
    "generalization-hallucination": (
        "Generalization against hallucination",
        "Up is wanted, to the right is not. Bars are 95 % intervals over seeds; small marks are seeds.",
    ),
    "sample-efficiency": ("Sample efficiency", "OCR score by m_train, with 95 % intervals."),
    "scorecard": (
        "Wanted against unwanted inference",
        "Above, up is wanted, to the right is not. Below, each setting minus the reference of its model, paired by "
        "seed, the least unwanted first. Bars are 95 % intervals; hollow marks did not learn what they were taught.",
    ),
}
_OF_ROWS = {
    "curves": "Mean rank over epochs: of the finding, of what was taught, the null of the finding, and chance.",
    "heatmap": "Mean probability of each candidate for the test subjects of each group; the right one is framed.",
}

#: Most unwarranted beliefs shown per run, and their columns.
BELIEFS = 50
_SHOWN = ("subject", "column", "believed", "probability", "untouched", "predicted", "said", "truth")

RUN_COLUMNS = ("association", "model", "setting", "seed", "mean rank", "null rank", "OCR score", "learned")
_NUMBERS = ("seed", "mean rank", "null rank", "OCR score")


def build_page(found: Found, scoring: Scoring, token: str | None = None, made: str = "") -> tuple[str, list[UserError]]:
    """The page of all runs, and a complaint for each of their files that cannot be read.

    Args:
        token: the state that a served page shows; it reloads when the state changes.
        made: date and command, for the footer.
    """
    complaints = list(found.complaints)
    sections = []
    rows = runs_by_row(found.runs)
    for number, (key_setting, run) in enumerate(islice(_in_order(rows), MOST_RUNS)):
        content, more = run_payload(run, scoring)
        complaints += more
        sections.append(_section(number, key_setting, run, scoring, pack(content)))
    css, js = (files("ocr_eval.report").joinpath(f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    of_rows = row_figures(rows, scoring, lambda _: None)  # the sections complain about the same files
    table = build_table(found.records, scoring, published_mean_ranks()) if found.runs else None
    overall = overall_figures(found.records, table) if table else ()
    card = card_of(found.records, table) if table else []
    of_card = card_figure(card, scoring, seeds_by_row(found.records))
    inside = [
        (f"{title}: {key.name}", text, drawn)
        for key, of in rows.items()
        for title, text, drawn in layer_figures([run.record for run in of])
    ]
    text = (
        templates()
        .get_template("page.html.j2")
        .render(
            css=Markup(css),
            js=Markup(js),
            policy=_policy(css, js, served=token is not None),
            token=token,
            version=__version__,
            scoring=scoring,
            counts=_counts(found),
            finding=finding(table) if table else "",
            about=_about(table) if table else "",
            **(context(table) if table else {"table": None}),
            card=(verdict(card), *cells(card)) if card else None,
            card_note=note(card),
            card_picture=_picture(*_OVERALL["scorecard"], of_card) if of_card else None,
            pictures=[_picture(*_OVERALL[name], figure) for name, figure in overall],
            of_rows=[
                _picture(f"{kind.capitalize()}: {in_words(row)}", _OF_ROWS[kind], figure)
                for kind, row, figure in islice(of_rows, ROW_FIGURES)
            ],
            inside=[_picture(title, text, drawn()) for title, text, drawn in inside[:ROW_FIGURES]],
            more_inside=len(inside) - ROW_FIGURES,
            row_figures=ROW_FIGURES if next(of_rows, None) else None,
            run_columns=RUN_COLUMNS,
            numbers=_NUMBERS,
            sections=sections,
            groups=[
                (name, [section for section in sections if section.group == name])
                for name in dict.fromkeys(section.group for section in sections)
            ],
            made=made,
            models=sorted({record.model for record in found.records}),
            beliefs=list(_beliefs(found.runs, complaints)),
            belief_columns=_SHOWN,
            own_facts=sorted({r.association for r in found.records if r.structure == "facts"}),
            without_section=len(found.runs) - len(sections),
            going_on=[progress for folder in found.unfinished if (progress := progress_of(folder))],
            complaints=[str(complaint) for complaint in complaints[:MOST_COMPLAINTS]],
            more_complaints=max(0, len(complaints) - MOST_COMPLAINTS),
        )
    )
    return text, complaints


def _beliefs(runs: Sequence[FinishedRun], complaints: list[UserError]) -> Iterator[dict[str, Any]]:
    """What each run believes about values that its table lacks: a sentence per column, and unwarranted beliefs."""
    for run in runs:
        path = run.folder / "beliefs/beliefs.json"
        if not path.is_file():
            continue
        try:
            with whole(path):
                content = read_json(path)
                said = [Total(**each).in_words() for each in content["totals"]]
                unwarranted = list(content["unwarranted"])
        except UserError as error:
            complaints.append(error)
            continue
        rows = [["" if each[key] is None else str(each[key]) for key in _SHOWN] for each in unwarranted[:BELIEFS]]
        yield {"run": run.record.run, "totals": said, "rows": rows, "unwarranted": len(unwarranted)}


def _in_order(rows: Mapping[RowKey, Sequence[FinishedRun]]) -> Iterator[tuple[str, FinishedRun]]:
    for key, of in rows.items():
        for run in sorted(of, key=lambda run: (run.record.association, run.record.seed, run.record.training_seed)):
            yield key.setting, run


def _section(number: int, setting: str, run: FinishedRun, scoring: Scoring, data: str) -> Section:
    record = run.record
    score = record.finding(scoring)
    learned = "yes" if record.premises_hold else "NO"
    numbers = (score.mean_rank, score.null_rank, record.held_out[scoring].ocr_score)
    return Section(
        number,
        cells=(
            *(record.association, record.model, setting, record.seeds),
            *(f"{numbers[0]:.2f}", f"{numbers[1]:.2f}", f"{numbers[2]:+.2f}", learned),
        ),
        sort_by=(record.association, record.model, setting, record.seed, *numbers, learned),
        unlearned=unlearned(record),
        data=data,
    )


def _counts(found: Found) -> str:
    def several(count: int, what: str) -> str:
        return f"{count} {what}{'' if count == 1 else 's'}"

    models, associations = ({getattr(r, key) for r in found.records} for key in ("model", "association"))
    runs, of_models = several(len(found.runs), "run"), several(len(models), "model")
    return f"{runs} of {of_models} on {several(len(associations), 'association')}"


def _about(table: Table) -> str:
    """The models of the finding with their settings, or with the number of settings if there are many."""
    settings: dict[str, list[str]] = {}
    for row in table.rows:
        if any(cell.method and not cell.control for cell in row.cells.values()):
            settings.setdefault(", ".join(row.labels), []).append(row.setting)
    short = sum(map(len, settings.values())) <= MOST_NAMED
    named = [
        f"{model} ({'; '.join(of) if short or len(of) == 1 else f'{len(of)} settings'})"
        for model, of in list(settings.items())[:MOST_NAMED]
    ]
    if len(settings) > len(named):
        named.append(f"{len(settings) - len(named)} more")
    return in_a_row(named)


def _picture(title: str, text: str, figure: Figure) -> tuple[str, str, int, str]:
    """A figure for the page: title, text, width in pixels, and the drawing as base64."""
    width = round(figure.get_figwidth() * PIXELS)
    return title, text, width, base64.b64encode(draw(figure, "svg", title)).decode()


def _policy(css: str, js: str, served: bool) -> str:
    """A content security policy that allows only the page's own style and script."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    connect = "'self'" if served else "'none'"
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
