"""Records -> the mean-rank table. Pure; ``report.tables`` writes it down, ``finding`` says it in a sentence.

A row is a model under one setting (method, data protocol, training, precision, code); runs of different
settings are never averaged. A cell is one association over the row's seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ocr_eval.analysis import bootstrap
from ocr_eval.analysis.permutation import least_p, permutation_ps
from ocr_eval.common.errors import unknown_name
from ocr_eval.data.task import the_finding
from ocr_eval.records.record import Record
from ocr_eval.records.select import by_association, column_order, group_rows, shared_protocol
from ocr_eval.scoring.ranks import Score
from ocr_eval.specs.association import Kind
from ocr_eval.specs.run import Scoring

if TYPE_CHECKING:
    import pandas as pd

#: What a cell can show: a statistic of ranks; or a number that a measure found, ``<measure>.<key>``. The margin has no
#: interval, for records keep no margins of subjects; nor have measures.
Metric = str
METRICS: tuple[Metric, ...] = (*bootstrap.METRICS, "margin")

#: The protocol that a caption states where all runs share it.
_PROTOCOL = ("n", "m_train", "m_test", "candidates", "variant")


@dataclass(frozen=True)
class Cell:
    """One association over the seeds of a row.

    Attributes:
        values: each metric, averaged over seeds; the OCR score is 1 - mean of mean ranks / mean of null ranks.
            Published cells have a mean rank only.
        bounds: 95 % bootstrap intervals, over subjects and seeds.
        p: permutation p-value of "mean rank is below its null"; None in published rows.
        least_p: the smallest that so few groups and seeds can give; None in published rows.
        seeds: how many runs; None in published rows.
        unlearned: how many of them did not learn their facts; None in published rows.
        kind: of the association; None in published rows.
        control: whether there was nothing consistent to infer from (``shuffled``, or m_train = 0).
    """

    values: Mapping[Metric, float]
    bounds: Mapping[Metric, tuple[float, float]] = field(default_factory=dict)
    p: float | None = None
    least_p: float | None = None
    seeds: int | None = None
    unlearned: int | None = None
    kind: Kind | None = None
    control: bool = False


@dataclass(frozen=True)
class Row:
    """A model under one setting, or a published row.

    Attributes:
        labels: the values of the table's ``by``.
        setting: the row's name below its labels (see ``select.group_rows``); ``published``.
        published: whether it is a published row.
        cells: by association.
        dtype: the precision of its runs; empty in published rows.
    """

    labels: tuple[str, ...]
    setting: str
    published: bool
    cells: Mapping[str, Cell]
    dtype: str = ""

    @property
    def name(self) -> str:
        """Labels and setting in one line."""
        return ", ".join(part for part in (*self.labels, self.setting) if part)


@dataclass(frozen=True)
class Table:
    """The mean-rank table.

    Attributes:
        scoring: whose ranks.
        metric: what cells show; None for mean rank, null rank and OCR score together.
        by: the keys that rows are made of.
        associations: the columns.
        rows: the project's own rows, then the published ones.
        protocol: the data protocol that all runs share, by key.
        methods: the injection methods of the runs.
        findings: the names of the quantities that are shown.
    """

    scoring: Scoring
    metric: Metric | None
    by: tuple[str, ...]
    associations: tuple[str, ...]
    rows: tuple[Row, ...]
    protocol: Mapping[str, str]
    methods: tuple[str, ...]
    findings: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """A tidy frame: a row for each cell, with the columns of the csv format."""
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
        records: finished runs.
        scoring: which scoring to show.
        published: published mean ranks by model and association; left out where mean rank is not shown, or
            where rows are not made of models.
        metric: the one metric that cells show; None for mean rank, null rank and OCR score together.
        by: keys of ``select.ROW_KEYS`` that rows are made of.
        every_interval: resample every metric and not only the one that cells show.
        short: cells show one number without its interval, the OCR score where no metric is named.

    Raises:
        ValueError: no records.
        UserError: a metric that is neither a statistic of ranks nor found by any measure.
    """
    if metric is not None:
        _check_metric(metric, records)
    metric = metric or ("ocr-score" if short else None)
    with_interval = () if short else bootstrap.METRICS
    shown = tuple(each for each in with_interval if every_interval or each == (metric or "ocr-score"))
    if not records:
        raise ValueError("no records to make a table of")
    groups = {key: by_association(group) for key, group in group_rows(records, by).items()}
    cells = iter(make_cells([runs for cells in groups.values() for runs in cells.values()], scoring, shown))
    rows = [
        Row(
            key.labels,
            key.setting,
            False,
            {name: next(cells) for name in by_name},
            ", ".join(sorted({run.dtype for runs in by_name.values() for run in runs})),
        )
        for key, by_name in groups.items()
    ]
    if published and metric in (None, "mean-rank") and "model" in by:
        rows += [_published_row(model, ranks, by) for model, ranks in published.items()]
    return Table(
        scoring=scoring,
        metric=metric,
        by=tuple(by),
        associations=tuple(column_order(name for row in rows for name in row.cells)),
        rows=tuple(rows),
        protocol=shared_protocol(records, _PROTOCOL),
        methods=tuple(sorted({record.train.method for record in records})),
        findings=tuple(sorted({the_finding(record.quantities).name for record in records})),
    )


def _published_row(model: str, ranks: Mapping[str, float], by: Sequence[str]) -> Row:
    labels = tuple(model if key == "model" else "" for key in by)
    return Row(labels, "published", True, {name: Cell({"mean-rank": rank}) for name, rank in ranks.items()})


def make_cells(
    groups: Sequence[Sequence[Record]], scoring: Scoring, bounded: Sequence[bootstrap.Metric] = ("ocr-score",)
) -> list[Cell]:
    """A cell for each group of runs that differ in the seed alone; all are resampled together.

    Args:
        groups: the runs of each cell.
        scoring: whose ranks.
        bounded: the metrics that get an interval.
    """
    ranks = [[run.held_out[scoring] for run in runs] for runs in groups]
    estimates = bootstrap.estimates(ranks, bounded)
    ps = permutation_ps(ranks)
    return [
        Cell(
            values=_values([run.finding(scoring) for run in runs]) | _measured(runs),
            bounds={metric: (estimate.low, estimate.high) for metric, estimate in of.items()},
            p=p,
            least_p=least_p(of_seeds),
            seeds=len(runs),
            unlearned=sum(not run.facts_learned for run in runs),
            kind=runs[0].kind,
            control=any(run.data.variant != "real" or run.data.m_train == 0 for run in runs),
        )
        for runs, of, p, of_seeds in zip(groups, estimates, ps, ranks, strict=True)
    ]


def _values(scores: Sequence[Score]) -> dict[Metric, float]:
    def mean(name: str) -> float:
        return float(sum(getattr(score, name) for score in scores) / len(scores))

    rank, null = mean("mean_rank"), mean("null_rank")
    return {
        "mean-rank": rank,
        "null-rank": null,
        "ocr-score": 1 - rank / null,
        "top1": mean("top1"),
        "mrr": mean("mrr"),
        "margin": mean("margin"),
    }


def measured(record: Record) -> dict[Metric, float]:
    """The numbers that measures found, as ``<measure>.<key>``."""
    return {
        f"{name}.{key}": value
        for name, found in record.measures.items()
        for key, value in found.items()
        if isinstance(value, int | float)
    }


def _measured(runs: Sequence[Record]) -> dict[Metric, float]:
    """What measures found, averaged over runs that all have it."""
    found = [measured(run) for run in runs]
    return {key: sum(of[key] for of in found) / len(found) for key in found[0] if all(key in of for of in found)}


def _check_metric(metric: Metric, records: Sequence[Record]) -> None:
    found = {key for record in records for key in measured(record)}
    if metric not in METRICS and metric not in found:
        raise unknown_name("metric", metric, (*METRICS, *found), "Measures are taken when a run ends (--measures).")


def flat_cells(table: Table) -> Iterable[dict[str, Any]]:
    """The cells as flat mappings, the same keys in each; None where there is no such number."""
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
                if metric in bootstrap.METRICS:
                    low, high = map(_rounded, cell.bounds.get(metric, (None, None)))
                    flat |= {f"{column(metric)}_low": low, f"{column(metric)}_high": high}
            learned = None if cell.unlearned is None else cell.unlearned == 0
            yield {**flat, "p": _rounded(cell.p), "seeds": cell.seeds, "facts_learned": learned}


def _rounded(value: float | None) -> float | None:
    """Six decimals: beyond them a machine's order of summation shows."""
    return None if value is None else round(value, 6) + 0.0


def column(metric: str) -> str:
    """A metric's name in csv, json and frames."""
    return metric.replace("-", "_").replace(".", "_")
