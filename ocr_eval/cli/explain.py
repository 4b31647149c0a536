"""``explain``: the measures in a run's record, or a measure taken now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Machine
from ocr_eval.cli.spec_flags import expanded, option
from ocr_eval.common.errors import UserError

#: Longer tables are not printed.
_ROWS = 80
#: Characters across, of a usual terminal.
_WIDTH = 100


@expanded
def explain(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    measure: Annotated[
        str | None, option("--measure", help="Measure this now ('a,b' from 'measures list'); the record is unchanged.")
    ] = None,
    layer: Annotated[int | None, option("--layer", min=0, help="Show only this layer, from 0.")] = None,
    machine: Machine,
    as_json: o.JsonOption = False,
) -> None:
    """Show what was measured inside a run's model.

    Shows what the run's record contains: the size of the change, where answers arise, what facts and entailments share.
    --measure takes a measure now, from the run's adapter/ or model/; 'finetune --measures' keeps it in the record.
    """
    machine.begin()
    from ocr_eval.common.registry import MEASURES
    from ocr_eval.records.config import read_config
    from ocr_eval.records.folder import RunFolder
    from ocr_eval.records.reopen import read_trained

    names = o.words("--measure", measure)
    for name in names or ():
        MEASURES.get(name)
    if names:
        spec, folder = read_trained(run)
        from ocr_eval.execution.execute import reopen
        from ocr_eval.measures.measure import take_measure

        trained = reopen(spec, folder, machine.device)
        found = {name: take_measure(name, trained) for name in names}
    else:
        read_config(run)
        folder = RunFolder(run)
        if not (run / "status.json").is_file():
            raise UserError(f"'{run}' is not a finished run. Rerun its command to finish it.")
        found = with_epochs(run)
    if not found:
        raise UserError(f"The record of '{run}' has no measures. Name one with --measure; 'measures list' shows them.")
    if layer is not None:
        found = {name: of_layer for name, each in found.items() if (of_layer := _only(each, layer))}
        if not found:
            raise UserError("--layer: none of these measures has layers. Name one with --measure, e.g. logit-lens.")
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    typer.echo("\n\n".join(_as_text(name, each) for name, each in found.items()))


def with_epochs(folder: Path) -> dict[str, dict[str, Any]]:
    """The measures of a finished run; per-epoch measures get a table of their epochs."""
    from ocr_eval.common.files import stored, whole
    from ocr_eval.records.metrics import read_metrics
    from ocr_eval.records.record import read_record

    found = {name: dict(each) for name, each in read_record(folder / "result.json").measures.items()}
    path = folder / "metrics.jsonl"
    with whole(path):
        lines = read_metrics(path) if stored(path).is_file() else []
    for line in lines:
        for name, numbers in (line.measures or {}).items():
            table = found.setdefault(name, {}).setdefault("epochs", {"epoch": []})
            table["epoch"].append(line.epoch)
            for key, value in numbers.items():
                table.setdefault(key, []).append(value)
    return found


def _tables(found: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The tables of a measure, by name: mappings whose columns have the same length."""
    tables = {key: table for key, table in found.items() if isinstance(table, dict)}
    return {
        key: table
        for key, table in tables.items()
        if all(isinstance(column, list) for column in table.values()) and len(set(map(len, table.values()))) == 1
    }


def _only(found: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """A measure's values at one layer; raises a UserError if there is no such layer."""
    of_layer = {}
    for key, table in _tables(found).items():
        if "layer" in table:
            rows = [i for i, number in enumerate(table["layer"]) if number == layer]
            if not rows:
                raise UserError(f"--layer {layer}: the model has layers 0 to {max(table['layer'])}.")
            of_layer[key] = {name: [column[i] for i in rows] for name, column in table.items()}
    return of_layer


def _as_text(name: str, found: Mapping[str, Any]) -> str:
    """A measure's result as text: its meaning, its numbers, and its tables."""
    from ocr_eval.common.registry import MEASURES
    from ocr_eval.measures.measure import Measure

    measure: Measure = MEASURES.get(name) if name in MEASURES.names() else Measure()
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float | str)}
    parts = [f"{name}: {measure.meaning(found) if numbers else measure.about}"]
    if numbers:
        parts.append("  ".join(f"{key} {_shown(value)}" for key, value in numbers.items()))
    for key, table in _tables(found).items():
        rows = len(next(iter(table.values())))
        if rows <= _ROWS:
            parts += _grids(table)
        else:
            parts.append(f"{key}: {rows} rows, printed by --json{' and --layer' * ('layer' in table)}")
    return "\n\n".join(parts)


def _grids(table: Mapping[str, list[Any]]) -> list[str]:
    """A table as text; one wider than ``_WIDTH`` as several, each with the columns that say what a row is of."""
    columns = [[name, *map(_shown, values)] for name, values in table.items()]
    wide = [max([len(name) + 2, *map(len, values)]) + 2 for name, *values in columns]  # as tabulate sets them
    measured = [i for i, values in enumerate(table.values()) if any(isinstance(value, float) for value in values)]
    names = list(range(max(1, min(measured, default=1))))
    while len(names) > 1 and sum(wide[i] for i in names) > _WIDTH / 2:
        names.pop()
    parts = [list(names)]
    for i in range(len(names), len(columns)):
        if len(parts[-1]) > len(names) and sum(wide[j] for j in (*parts[-1], i)) > _WIDTH + 2:
            parts.append(list(names))
        parts[-1].append(i)
    shown = [list(zip(*(columns[i] for i in part), strict=True)) for part in parts]
    return [o.grid(header, rows) for header, *rows in shown]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
