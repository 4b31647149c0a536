"""Runs -> the content of each run's section on the page, as small JSON that the browser unpacks on demand."""

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ocr_eval.analysis.candidate_heat import heat_of
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_stored, whole
from ocr_eval.data.task import the_finding
from ocr_eval.methods.method import label_of
from ocr_eval.records.config import read_config
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.run_files import has_probes, metrics_of, probes_of
from ocr_eval.report.chart import Curve
from ocr_eval.report.figures.curves import chance_rank
from ocr_eval.report.figures.style import drawn
from ocr_eval.report.reproduce import command, missing_files
from ocr_eval.specs.run import Scoring

T = TypeVar("T")

#: Log-probabilities are stored in thousandths of a nat; the page shows two decimals.
_STEPS_A_NAT = 1000


def run_payload(run: FinishedRun, scoring: Scoring) -> tuple[dict[str, Any], list[UserError]]:
    """Everything that a run's section shows, and a complaint for each file that cannot be read.

    Keys: ``command``, ``wants``, ``config`` and ``environment`` (text), ``curves``, ``heat`` and ``probes`` (None if
    their file is missing or damaged; ``heat`` also if candidates differ between probes). A run without a probes file
    causes no complaint.
    """
    complaints: list[UserError] = []

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except UserError as error:
            complaints.append(error)
            return None

    probes = (attempt(lambda: _probes(run, scoring)) if has_probes(run) else None) or (None, None)
    content = {
        "command": command(run.record),
        "wants": missing_files(run.record),
        "config": attempt(lambda: _text(run.folder / "config.yaml")),
        "environment": attempt(lambda: _text(run.folder / "env.json")),
        "curves": attempt(lambda: _curves(run, scoring)),
        "heat": probes[0],
        "probes": probes[1],
    }
    return content, complaints


def pack(content: Mapping[str, Any]) -> str:
    """JSON, compressed, in base64, so that it is small and needs no escaping in HTML."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _text(path: Path) -> str:
    with whole(path):
        return read_stored(path).decode()


def _curves(run: FinishedRun, scoring: Scoring) -> dict[str, Any]:
    curve = Curve.of([(run.record, metrics_of(run, scoring))], scoring)
    assert curve is not None  # there is a run

    def points(ranks: Mapping[int, float]) -> list[list[float]]:
        return [[epoch, round(rank, 4)] for epoch, rank in ranks.items()]

    lines_of = [
        {"name": look.label, "quantity": look.name, "color": look.color, "points": points(curve.ranks[look.name])}
        for look in drawn(run.record.quantities)
        if look.name in curve.ranks
    ]
    null = {"name": "null of held-out", "quantity": "null", "points": points(curve.nulls)}
    return {"lines": [*lines_of, null], "chance": chance_rank(run.record)}


def _probes(run: FinishedRun, scoring: Scoring) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    lines, quantities = probes_of(run, scoring), run.record.quantities
    with whole(run.folder / "probes.jsonl"):
        rows = _rows(lines, run.record.epochs[-1], scoring) | {"finding": the_finding(quantities).name}
        heat = heat_of(lines, scoring, quantities)
        if heat is None:
            return None, rows
        named = {"groups": heat.groups, "candidates": heat.candidates, "inUse": heat.in_use, "target": heat.target}
        return {**named, "p": heat.probability.round(4).tolist()}, rows


def _rows(lines: Sequence[Mapping[str, Any]], last: int, scoring: Scoring) -> dict[str, Any]:
    before = {(line["quantity"], line["prompt"]): line["rank"][scoring] for line in lines if line["epoch"] == 0}
    lists: dict[tuple[str, ...], int] = {}
    rows = []
    for line in lines:
        if line["epoch"] != last:
            continue
        number = lists.setdefault(tuple(line["candidates"]), len(lists))
        rows.append(
            {
                "q": line["quantity"],
                "prompt": line["prompt"],
                "answer": line["answer"],
                "list": number,
                "rank": line["rank"][scoring],
                "null": round(line["null_rank"][scoring], 2),
                "before": before.get((line["quantity"], line["prompt"])),
                "logp": [round(value * _STEPS_A_NAT) for value in line["logprobs"][scoring]],
            }
        )
    return {"lists": [list(names) for names in lists], "rows": rows, "stepsANat": _STEPS_A_NAT}


def progress_of(folder: Path) -> dict[str, Any] | None:
    """Name and progress of an unfinished run; None if its files cannot be read."""
    try:
        spec = read_config(folder)
        done = max((line.epoch for line in RunFolder(folder).metrics()), default=0)
    except (UserError, KeyError, OSError):
        return None
    name = f"{spec.model.name}, {spec.association.name}, {label_of(spec.train.method)}, seed {spec.seeds}"
    return {"name": name, "epochs_done": done, "epochs": spec.train.epochs}
