"""Records -> the mean-rank table. Pure; ``report.tables`` renders it, ``finding`` puts it into a sentence.

A row is a model under one setting (method, data protocol, training, precision); runs with different
settings are never averaged. A cell is one association over the row's seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from ocr_eval.analysis import intervals
from ocr_eval.analysis.intervals import Estimate, of_metric
from ocr_eval.analysis.lift import Lift, decided, lift_over
from ocr_eval.analysis.significance import SIGNIFICANT, inference_ps, least_p
from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.common.multiple_tests import holm
from ocr_eval.data.task import the_finding
from ocr_eval.records.record import Record
from ocr_eval.records.rows import (
    NoEntailments,
    RowKey,
    by_association,
    by_seed,
    column_order,
    group_rows,
    is_control,
    ranks_by_seed,
    shared_protocol,
)
from ocr_eval.specs.association import Kind
from ocr_eval.specs.run import Scoring

if TYPE_CHECKING:
    import pandas as pd

#: What a cell can show: a statistic of ranks; the lift; p; or a number that a measure found, ``<measure>.<key>``. The
#: margin has no interval, because records keep no margins per subject; neither do measures.
Metric = str
METRICS: tuple[Metric, ...] = (*intervals.METRICS, "margin", "lift", "p")

#: The parts of the protocol that a caption states if all runs share them.
_PROTOCOL = ("n", "m_train", "m_test", "candidates", "variant")


@dataclass(frozen=True)
class Cell:
    """One association over the seeds of a row; of a published one only the mean rank is known.

    Attributes:
        values: each metric, averaged over seeds.
        bounds: 95 % intervals of the requested metrics; none for a single seed.
        p: p-value of "nothing was inferred" (``significance.inference_ps``).
        p_holm: p corrected for the number of cells in the table; None for those that are no tests: controls, and cells
            with one seed or too few groups to tell. Cells in which a premise fails count, because only the outcome
            shows which runs learn.
        least_p: the smallest permutation p-value that these groups and seeds can give.
        partly: number of runs, for each number that measures found in only some of the runs.
        lift: OCR score minus that of the no-entailment control, with its verdict; None if there is no control.
        premises: mean top-1 of each premise.
        unlearned: number of runs in which a premise does not hold.
        inexact: number of runs whose ranks are not exact.
        control: whether there was nothing consistent to infer from.
    """

    values: Mapping[Metric, float]
    bounds: Mapping[Metric, tuple[float, float]] = field(default_factory=dict)
    p: float | None = None
    p_holm: float | None = None
    least_p: float | None = None
    partly: Mapping[Metric, int] = field(default_factory=dict)
    lift: Lift | None = None
    premises: Mapping[str, float] = field(default_factory=dict)
    seeds: int | None = None
    runs: int | None = None
    unlearned: int | None = None
    inexact: int = 0
    kind: Kind | None = None
    control: bool = False
    method: str = ""

    @property
    def inferred(self) -> bool:
        """Whether an inference is significant after the correction; never if a premise fails."""
        return not self.unlearned and self.p_holm is not None and self.p_holm <= SIGNIFICANT


@dataclass(frozen=True)
class Row(RowKey):
    """A model under one setting, or a published row, whose setting is ``published``.

    Attributes:
        dtype, results: precision and results version of its runs; empty and None in published rows.
    """

    published: bool
    cells: Mapping[str, Cell]
    dtype: str = ""
    results: int | None = None


@dataclass(frozen=True)
class Table:
    """The mean-rank table.

    Attributes:
        metric: what cells show; None for mean rank, null rank and OCR score together.
        rows: the project's own rows, then the published ones.
        protocol: the data protocol that all runs share, by key.
        fixed: associations in which several seeds of a row ask about the same subjects.
        when_learned: whether runs are shown at the first epoch at which all premises held, not at the end.
    """

    scoring: Scoring
    metric: Metric | None
    by: tuple[str, ...]
    associations: tuple[str, ...]
    rows: tuple[Row, ...]
    protocol: Mapping[str, str]
    findings: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    when_learned: bool = False

    def to_frame(self) -> pd.DataFrame:
        """A tidy frame with a row per cell and the columns of the csv format."""
        import pandas as pd

        return pd.DataFrame(list(flat_cells(self)))


def build_table(
    records: Sequence[Record],
    scoring: Scoring,
    published: Mapping[str, Mapping[str, float]] | None = None,
    metric: Metric | None = None,
    by: Sequence[str] = ("model",),
    every_interval: bool = False,
    short: bool = False,
) -> Table:
    """Group records into rows and cells, and add the published rows.

    Args:
        published: published mean ranks by model and association; omitted if mean rank is not shown, or if rows are not
            models.
        metric: the one metric that cells show; None for mean rank, null rank and OCR score together.
        by: keys of ``select.ROW_KEYS`` that define rows.
        every_interval: compute intervals of all metrics, not only of the one that cells show.
        short: cells show one number without its interval, the OCR score unless a metric is named.

    Raises:
        UserError: no records, or a metric that is neither a statistic of ranks nor found by any measure.
    """
    if not records:
        raise UserError("There are no records to make a table of. Name a folder with finished runs.")
    found = {key for record in records for key in measured(record)} if metric and metric not in METRICS else set[str]()
    if metric and metric not in (*METRICS, *found):
        raise unknown_name("metric", metric, (*METRICS, *found), "Measures are taken at the end of a run (--measures).")
    metric = metric or ("ocr-score" if short else None)
    with_interval = () if short else intervals.METRICS
    shown = tuple(each for each in with_interval if every_interval or each == (metric or "ocr-score"))
    groups = {key: by_association(group) for key, group in group_rows(records, by).items()}
    every = [runs for cells in groups.values() for runs in cells.values()]
    cells = iter(make_cells(every, scoring, shown, NoEntailments(records)))
    rows = [
        Row(
            key.labels,
            key.setting,
            False,
            {name: next(cells) for name in by_name},
            ", ".join(sorted({run.dtype for runs in by_name.values() for run in runs})),
            next(run.results_version for runs in by_name.values() for run in runs),
            unnamed=key.unnamed,
        )
        for key, by_name in groups.items()
    ]
    if published and metric in (None, "mean-rank") and "model" in by:
        own = {name for row in rows for name in row.cells}
        for model, ranks in published.items() if own & set().union(*published.values()) else ():
            labels = tuple(model if key == "model" else "" for key in by)
            cells_of = {name: Cell({"mean-rank": rank}) for name, rank in ranks.items()}
            rows.append(Row(labels, "published", True, cells_of))
    return Table(
        scoring=scoring,
        metric=metric,
        by=tuple(by),
        associations=tuple(column_order(name for row in rows for name in row.cells)),
        rows=tuple(rows),
        protocol=shared_protocol(records, _PROTOCOL),
        findings=tuple(sorted({the_finding(record.quantities).name for record in records})),
        fixed=tuple(sorted({runs[0].association for runs in every if _are_fixed(runs, scoring)})),
    )


def _are_fixed(runs: Sequence[Record], scoring: Scoring) -> bool:
    asked = {run.seed: frozenset(run.held_out[scoring].subject) for run in runs}
    return len(asked) > 1 and len(set(asked.values())) == 1


def make_cells(
    groups: Sequence[Sequence[Record]],
    scoring: Scoring,
    bounded: Sequence[intervals.Metric] = ("ocr-score",),
    controls: NoEntailments | None = None,
) -> list[Cell]:
    """A cell per group of runs that differ only in their seeds; p-values, and lifts, are corrected over all cells.

    ``bounded`` metrics get an interval; a cell's control is looked up in ``controls``.
    """
    ranks = [ranks_by_seed(runs, scoring) for runs in groups]
    ps = inference_ps([list(seeds.values()) for seeds in ranks])
    cells = []
    for runs, seeds, p in zip(groups, ranks, ps, strict=True):
        control = is_control(runs[0])
        against = None if control or controls is None else controls.of(runs[0])
        lift = _lift(runs, against, scoring) if against else None
        estimates = {metric: of_metric(list(seeds.values()), metric) for metric in {*bounded, "ocr-score"}}
        found = [measured(run) for run in runs]
        values = _averages(runs, scoring) | {"ocr-score": estimates["ocr-score"].value, "p": p}
        shown: dict[Metric, Estimate] = {metric: estimates[metric] for metric in bounded}
        if lift is not None:
            values["lift"], shown["lift"] = lift.value.value, lift.value
        cells.append(
            Cell(
                values=values | mean_of_keys(found),
                bounds={metric: each.bounds for metric, each in shown.items() if each.bounds is not None},
                p=p,
                least_p=least_p(list(seeds.values())),
                partly={key: count for key, count in Counter(chain.from_iterable(found)).items() if count < len(runs)},
                lift=lift,
                premises=mean_of_keys([run.premises for run in runs]),
                seeds=len(seeds),
                runs=len(runs),
                unlearned=sum(not run.premises_hold for run in runs),
                inexact=sum(run.inexact > 0 for run in runs),
                kind=runs[0].kind,
                control=control,
                method=runs[0].train.method,
            )
        )
    can_tell = [cell.least_p is not None and cell.least_p <= SIGNIFICANT and cell.seeds != 1 for cell in cells]
    counted = [i for i, cell in enumerate(cells) if can_tell[i] and not cell.control]
    for i, adjusted in zip(counted, holm([ps[i] for i in counted]), strict=True):
        cells[i] = replace(cells[i], p_holm=adjusted)
    return [replace(cell, lift=lift) for cell, lift in zip(cells, decided([cell.lift for cell in cells]), strict=True)]


def _lift(runs: Sequence[Record], controls: Sequence[Record], scoring: Scoring) -> Lift | None:
    try:
        return lift_over([(runs, controls)], scoring)
    except ValueError as error:
        where = f"{runs[0].association} ({runs[0].model})"
        raise UserError(f"{where}, real data against its control: {error}.") from error


def _averages(runs: Sequence[Record], scoring: Scoring) -> dict[Metric, float]:
    """Statistics of ranks, averaged over the runs of each seed and then over seeds."""
    seeds = [[run.finding(scoring) for run in of_seed] for of_seed in by_seed(runs).values()]

    def mean(metric: Metric) -> float:
        of_seeds = [sum(getattr(score, column(metric)) for score in seed) / len(seed) for seed in seeds]
        return float(sum(of_seeds) / len(of_seeds))

    return {metric: mean(metric) for metric in ("mean-rank", "null-rank", "top1", "mrr", "margin")}


def measured(record: Record) -> dict[Metric, float]:
    """The numbers that measures found, as ``<measure>.<key>``."""
    return {
        f"{name}.{key}": value
        for name, found in record.measures.items()
        for key, value in found.items()
        if isinstance(value, int | float)
    }


def mean_of_keys(found: Sequence[Mapping[Any, float]]) -> dict[str, float]:
    """The mean of each number that all of them have."""
    return {key: sum(of[key] for of in found) / len(found) for key in found[0] if all(key in of for of in found)}


def flat_cells(table: Table) -> Iterable[dict[str, Any]]:
    """The cells as flat mappings with the same keys; None for numbers that a cell lacks."""
    premises = list(dict.fromkeys(key for row in table.rows for cell in row.cells.values() for key in cell.premises))
    doubtful = any(cell.inexact for row in table.rows for cell in row.cells.values())
    for row in table.rows:
        for name in table.associations:
            if name not in row.cells:
                continue
            cell = row.cells[name]
            flat: dict[str, Any] = {
                **dict(zip(table.by, row.labels, strict=True)),
                "setting": row.setting,
                "dtype": row.dtype or None,
                "published": row.published,
                "scoring": table.scoring,
                "association": name,
            }
            further = [table.metric] if table.metric and table.metric not in METRICS else []
            for metric in (*METRICS, *further):
                flat[column(metric)] = _rounded(cell.values.get(metric))
                if metric in (*intervals.METRICS, "lift"):
                    low, high = map(_rounded, cell.bounds.get(metric, (None, None)))
                    flat |= {f"{column(metric)}_low": low, f"{column(metric)}_high": high}
            flat |= {"p_holm": _rounded(None if cell.unlearned else cell.p_holm), **_of_lift(cell.lift)}
            flat |= {f"{name}_top1": _rounded(cell.premises.get(name)) for name in premises}
            learned = None if cell.unlearned is None else cell.unlearned == 0
            flat |= {"seeds": cell.seeds, "premises_hold": learned}
            yield {**flat, "exact": not cell.inexact} if doubtful else flat


def _of_lift(lift: Lift | None) -> dict[str, Any]:
    return {
        "lift_seeds": lift.seeds if lift else None,
        "lift_p": _rounded(lift.p if lift else None),
        "lift_p_holm": _rounded(lift.p_holm if lift else None),
        "control_premises_hold": lift.control_unlearned == 0 if lift else None,
    }


def _rounded(value: float | None) -> float | None:
    """Six decimals; further ones depend on the machine's order of summation."""
    return None if value is None else round(value, 6) + 0.0


def column(metric: str) -> str:
    """A metric's name in csv, json and frames."""
    return metric.replace("-", "_").replace(".", "_")
