"""``table``, ``figures``, ``scorecard``, ``compare`` and ``report``: results of finished runs."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import expanded, option
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output, refuse_irregular, write_atomic
from ocr_eval.specs.published import published_mean_ranks
from ocr_eval.specs.run import Scoring

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocr_eval.records.find import FinishedRun, Found
    from ocr_eval.records.record import Record


@dataclass(frozen=True)
class Finished:
    """The finished runs that a command reads."""

    runs: o.RunsArgument = None
    filters: Annotated[
        list[str] | None,
        option("--filter", help="Only runs with KEY=VALUE; 'seed=0,1' matches either value; repeatable."),
    ] = None

    @property
    def folders(self) -> list[Path]:
        """Where they are."""
        return self.runs or [o.DEFAULT_OUTPUT]

    def find(self, scoring: Scoring | None, measures: Collection[str] = ()) -> Found:
        """The runs below the folders that pass the filters; warns about skipped records.

        Raises:
            UserError: there is no such folder, it has no finished run, or none passes.
        """
        from ocr_eval.records.find import find_runs
        from ocr_eval.records.select import parse_condition

        conditions = [parse_condition("--filter", text) for text in self.filters or ()]
        found = find_runs(*self.folders, scoring=scoring, measures=measures)
        gc.freeze()  # records stay, so keep the collector from scanning ten thousand of them
        o.warn_skipped(found.complaints)
        if not found.runs and found.complaints:
            raise UserError("None of these records can be read. Rerun the runs with --force, or name another folder.")
        if not found.runs:
            where = ", ".join(f"'{folder}'" for folder in self.folders)
            raise UserError(f"No finished run below {where}. Run 'ocr-eval finetune --assoc city-language' first.")
        return found.where(conditions)


@dataclass(frozen=True)
class Scored(Finished):
    """The finished runs that a command reads, and the scoring whose ranks it shows."""

    scoring: o.ScoringOption = "first-token"


@expanded
def table(
    *,
    finished: Scored,
    metric: Annotated[
        str | None,
        option(
            "--metric",
            help="One metric per cell: mean-rank, null-rank, ocr-score, top1, mrr, margin, lift, p, MEASURE.KEY.",
        ),
    ] = None,
    by: Annotated[str, option("--by", help="What defines a row: 'model', 'model,rank', 'm-train', 'seed' ...")] = (
        "model"
    ),
    format: Annotated[
        Literal["md", "csv", "json", "tex", "html"], option("--format", "-f", help="Format of the table.")
    ] = "md",
    published: Annotated[
        bool, option("--published/--no-published", help="Add the published rows, and how protocols differ.")
    ] = True,
    short: Annotated[bool, option("--short", help="One number per cell: the OCR score, or --metric.")] = False,
    when_learned: Annotated[
        bool, option("--when-learned", help="Show each run at the first epoch at which all premises held.")
    ] = False,
    components: Annotated[
        bool, option("--components", help="Split each cell's variance (data, training, rest); add clustered errors.")
    ] = False,
    config: o.ConfigOption = None,
) -> None:
    """Print the mean-rank table of finished runs.

    Published rows come last. Runs with different settings are separate rows and are never averaged. The table goes to
    stdout, a sentence on the finding to stderr. If a record cannot be read, it is skipped and the exit code is 1.
    """
    from ocr_eval.analysis.finding import finding
    from ocr_eval.analysis.table import build_table
    from ocr_eval.records.select import row_keys
    from ocr_eval.report import tables
    from ocr_eval.report.spread import spread_table

    if short and format in ("csv", "json"):
        raise UserError(f"--short has no effect on --format {format}, which has every metric. Drop one of them.")
    if components:
        if metric or short or when_learned or format != "md" or by != "model" or not published:
            raise UserError("--components prints its own table. Drop --metric, --short, --format, --by and the like.")
        found = finished.find(finished.scoring)
        typer.echo(spread_table(found.records, finished.scoring), nl=False)
        o.exit_if_damaged(found.complaints)
        return
    keys = row_keys("--by", by)
    of_measure = metric is not None and "." in metric
    if when_learned and of_measure:
        raise UserError(f"--when-learned: {metric} is measured at the end of a run only. Drop one of the two flags.")
    found = finished.find(finished.scoring, [metric.partition(".")[0]] if metric and of_measure else [])
    records = _when_learned(found) if when_learned else found.records
    ranks = published_mean_ranks() if published and not when_learned else None
    every_interval = format in ("csv", "json")
    built = replace(
        build_table(records, finished.scoring, ranks, metric, keys, every_interval, short), when_learned=when_learned
    )
    typer.echo(tables.FORMATS[format](built), nl=False)
    sentence = finding(built)
    if sentence:
        typer.echo(f"\nFinding: {sentence}", err=True)
    o.exit_if_damaged(found.complaints)


@expanded
def figures(
    *,
    finished: Scored,
    to: Annotated[
        Path | None, option("--to", "-o", help="Folder for the figures (default: figures/ in the first folder).")
    ] = None,
    text: Annotated[
        bool, option("--text", help="Draw the learning curves in the terminal; no files are written.")
    ] = False,
    config: o.ConfigOption = None,
) -> None:
    """Draw figures of finished runs: PNG, PDF and SVG, or text.

    OCR scores by association; generalization against hallucination; learning curves and candidate heatmaps of each
    model and setting; OCR score by m_train if runs differ in it. The paths go to stdout. Exits with 1 if a file of a
    run could not be read; the rest is drawn.
    """
    from ocr_eval.report.chart import charts
    from ocr_eval.report.figures.gallery import gallery, text_curves
    from ocr_eval.report.figures.style import save
    from ocr_eval.report.tables import quantities

    if text and to is not None:
        raise UserError("--to has no effect with --text, which writes no files. Drop one of them.")
    scoring, found = finished.scoring, finished.find(finished.scoring)
    complaints: list[UserError] = []
    if text:
        for row, curves in text_curves(found.runs, scoring, complaints.append):
            asked = quantities(curve.finding for curve in curves)
            typer.echo(f"{row}: mean rank of {asked} by epoch (0 is perfect)\n")
            typer.echo(f"{charts(curves, sys.stdout)}\n")
    else:
        folder = to or finished.folders[0] / "figures"
        prepare_output(folder, "--to")
        for name, figure in gallery(found.runs, scoring, complaints.append):
            for path in save(figure, folder, name):
                typer.echo(str(path))
    o.warn_skipped(complaints)
    o.exit_if_damaged([*complaints, *found.complaints])


@expanded
def scorecard(
    *,
    finished: Scored,
    format: Annotated[Literal["md", "csv", "json", "tex"], option("--format", "-f", help="Format of the card.")] = "md",
    config: o.ConfigOption = None,
) -> None:
    """Compare methods and preventions on one card.

    Each row is a model under one setting: what it infers over true links (wanted) and over arbitrary and false links
    (unwanted), what it learned, kept and cost. Each row is compared, seed by seed, with the first row of its model:
    LoRA without prevention, if present. The card goes to stdout, a sentence on what it shows to stderr.
    """
    from ocr_eval.analysis.scorecard import build_scorecard, verdict
    from ocr_eval.report.scorecard import FORMATS

    found = finished.find(None)
    rows = build_scorecard([_with_matched(run) for run in found.runs], finished.scoring)
    typer.echo(FORMATS[format](rows), nl=False)
    said = verdict(rows)
    if said:
        typer.echo(f"\n{said}", err=True)
    o.exit_if_damaged(found.complaints)


@expanded
def compare(
    context: typer.Context,
    *,
    a: Annotated[
        str, typer.Argument(metavar="A", help="A run's folder, a folder of runs, or a condition such as 'lr=1e-3'.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, to compare with.")],
    finished: Scored,
    fail_above: Annotated[
        float | None, option("--fail-above", help="Fail if A minus B is shown to exceed this on any association.")
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Compare two runs, sweeps or conditions by OCR score.

    Differences are paired by seed and subject. A condition ('method=lora,seed=0,1') selects among the runs in RUNS.
    Settings that vary within a side are matched with the same on the other side. The sides are compared at the last
    epoch, and at matched learning: each run at the first epoch at which it has learned what it is taught. The gate
    of --fail-above fails by the interval over seeds, its level corrected for the number of associations. It passes if
    each 95 % interval is below; otherwise it is undecided (exit code 1).
    """
    from ocr_eval.analysis.compare import contrast, gate, left_out, verdict
    from ocr_eval.records.select import parse_condition

    if fail_above is not None and not abs(fail_above) <= 2:
        raise UserError(f"--fail-above {fail_above}: OCR scores differ by 2 at most. Give a number from -2 to 2.")
    conditions = [text for text in (a, b) if "=" in text and not Path(text).exists()]
    for text in conditions:
        parse_condition("condition", text)
    if not conditions and "runs" in o.stated(context):
        raise UserError("RUNS are searched for conditions, and both A and B are folders. Drop RUNS.")
    sides = []
    for text in (a, b):
        among: Any = {"filters": [*(finished.filters or ()), text]} if text in conditions else {"runs": [Path(text)]}
        found = replace(finished, **among).find(None)
        if found.complaints:
            raise UserError(f"Not every record of '{text}' can be used, so nothing is compared.")
        sides.append([_with_matched(run) for run in found.runs])
    contrasts = contrast(sides[0], sides[1], finished.scoring)
    gated = {} if fail_above is None else {"gate": gate(contrasts, fail_above)}
    said = " ".join(filter(None, [verdict(contrasts), left_out(*sides)]))
    ending = typer.Exit(0 if gated.get("gate", "passed") == "passed" else 1)
    if as_json:
        result = {"verdict": said, **gated, "contrasts": [asdict(c) for c in contrasts]}
        typer.echo(json.dumps(result, indent=2))
        raise ending
    rows = [
        [
            *(each.name, *map(str, (each.a, each.b, each.paired.value))),
            str(each.matched.value) if each.matched else "",
            *(str(each.paired.subjects), str(each.paired.seeds)),
            "yes" if each.premises_hold else "NO",
        ]
        for each in contrasts
    ]
    typer.echo(
        o.grid(["association", "A", "B", "A minus B", "at matched learning", "subjects", "seeds", "learned"], rows)
    )
    typer.echo("\n".join([said, *(f"Gate: {found}." for found in gated.values())]))
    raise ending


def _when_learned(found: Found) -> list[Record]:
    """The runs when all premises first held; those that never held them are omitted, with a warning."""
    records = [early for run in found.runs if (early := _with_matched(run).when_matched())]
    if not records:
        raise UserError("--when-learned: in none of these runs did all premises ever hold. Drop the flag.")
    if never := len(found.runs) - len(records):
        o.warn(f"Omitted because not all of their premises ever held: {never} of {len(found.runs)} runs.")
    return records


def _with_matched(run: FinishedRun) -> Record:
    """The record; matched learning, which older records lack, is read from metrics.jsonl."""
    from msgspec import structs

    from ocr_eval.records.run_files import matched_of

    try:
        return structs.replace(run.record, matched=matched_of(run))
    except UserError as error:
        o.warn(f"{error} Matched learning is unknown.")
        return run.record


@expanded
def report(
    *,
    finished: Scored,
    output: Annotated[Path | None, option("--output", "-o", help="The page to write (default: report.html).")] = None,
    serve: Annotated[
        bool, option("--serve", help="Serve the page on this machine only, and refresh it as runs finish.")
    ] = False,
    port: Annotated[
        int | None, option("--port", min=0, max=65535, help="Port for --serve (default: 8765); 0 picks a free one.")
    ] = None,
    config: o.ConfigOption = None,
) -> None:
    """Write one self-contained HTML page of finished runs.

    Table, figures, and every run with its curve, heatmap and probes; it needs no server and no network. Exits with 1 if
    a file of a run could not be read; the page says so and shows the rest.
    """
    places, scoring, filters = finished.folders, finished.scoring, finished.filters or []
    if serve:
        from ocr_eval.report.serve import serve_report

        if output is not None:
            raise UserError("--output has no effect with --serve, which writes no file. Drop one of them.")
        serve_report(places, scoring, 8765 if port is None else port, filters)
        return
    if port is not None:
        raise UserError("--port needs --serve. Add --serve, or drop --port.")
    from ocr_eval.report.page import MEASURES, build_page

    output = output or Path("report.html")
    if output.is_dir():
        raise UserError(f"--output '{output}' is a folder; name the page, for example '{output / 'report.html'}'.")
    if output.suffix.lower() not in ("", ".html", ".htm"):
        raise UserError(f"--output '{output}': the page is HTML. Name it '{output.with_suffix('.html')}'.")
    refuse_irregular(output)
    prepare_output(output.parent, "--output")
    found = finished.find(scoring, MEASURES)
    words = ["ocr-eval", "report", *map(str, places), *(["--scoring", scoring] * (scoring != "first-token"))]
    words += [word for text in filters for word in ("--filter", text)]
    page, complaints = build_page(found, scoring, made=f"{date.today()} by {shlex.join(words)}")
    write_atomic(output, page)
    typer.echo(str(output))
    o.warn_skipped(complaints[len(found.complaints) :])
    o.exit_if_damaged(complaints)
