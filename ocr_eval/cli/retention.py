"""``retention``: how much of what their models knew before finished runs have kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.results import Finished
from ocr_eval.cli.spec_flags import expanded, option
from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import in_a_row

if TYPE_CHECKING:
    from ocr_eval.analysis.retention import Accuracy, Regression, Retained


@expanded
def retention(
    *,
    finished: Finished,
    explain: Annotated[
        Literal["kept", "held-out"],
        option("--explain", help="What is regressed: known facts kept, or held-out facts answered (runs of 'known')."),
    ] = "kept",
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Show how many previously known facts are kept.

    The regression is that of Gekhman et al. (arXiv 2405.05904): accuracy = b0 + b_known x (share of what is taught that
    was known, and is fitted) + b_unknown x (share that was not, and is fitted). It needs runs that differ in both. Runs
    of one seed share their data, so the 95 % intervals come from leaving out one seed at a time (Student's t over
    seeds). If a record cannot be read, it is skipped and the exit code is 1.
    """
    from ocr_eval.analysis.retention import regress, retained

    found = finished.find("first-token", ["known"])
    cells = retained(found.records)
    if not cells:
        raise UserError("No record has retention (never after full fine-tuning). Rerun a run with --force.")
    fit, missing = None, ""
    try:
        fit = regress(found.records, explain)
    except UserError as error:
        missing = str(error)
    if as_json:
        typer.echo(json.dumps({"cells": [asdict(c) for c in cells], "regression": fit and asdict(fit)}, indent=2))
    else:
        _print(cells, fit, explain, missing)
    o.exit_if_damaged(found.complaints)


def _print(cells: list[Retained], fit: Regression | None, explain: Accuracy, missing: str) -> None:
    rows = [
        [
            *(c.row, c.association, str(c.runs), f"{c.known:.0f}"),
            *(f"{v:.0%}" for v in (c.kept, c.fitted_known, c.fitted_unknown)),
        ]
        for c in cells
    ]
    typer.echo(o.grid(["model", "association", "runs", "known", "kept", "fitted known", "fitted unknown"], rows))
    if fit is None:
        typer.echo(f"No regression: {missing}")
        return
    of = f" of {len(fit.models)} models: {in_a_row(fit.models)}" if len(fit.models) > 1 else ""
    typer.echo(
        f"{explain} = {fit.intercept:.3f} {fit.known:+.3f} x fitted known {fit.unknown:+.3f} x fitted unknown  "
        f"(shares of what is taught; R2 {fit.r2:.2f}, {fit.runs} runs{of})"
    )
    if fit.intervals is None:
        typer.echo("No intervals: leaving out one seed must leave runs that determine all coefficients. Add seeds.")
        return
    names = {"intercept": "constant", "known": "fitted known", "unknown": "fitted unknown"}
    intervals = [f"{names[name]} [{low:+.2f}, {high:+.2f}]" for name, (low, high) in fit.intervals.items()]
    typer.echo(
        f"95 % intervals: {', '.join(intervals)}  (leaving out each of {fit.seeds} seeds; Student's t over seeds)"
    )
