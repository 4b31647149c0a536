"""The Python interface: the few names that a notebook needs, all available from ``import ocr_eval``.

run = ocr_eval.make_run("smollm2-135m", "city-language", seed=0)
record = ocr_eval.finetune(run, "results")
print(ocr_eval.render_table(ocr_eval.make_table(ocr_eval.read_records("results"))))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec.structs import asdict

from ocr_eval.analysis.frames import records_frame as records_frame
from ocr_eval.analysis.frames import settings_columns
from ocr_eval.analysis.table import Metric, Table, build_table
from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError as UserError
from ocr_eval.common.errors import shown, unknown_name
from ocr_eval.common.files import stored
from ocr_eval.records.find import FinishedRun, Found, find_runs
from ocr_eval.records.record import Record
from ocr_eval.records.select import parse_condition, row_keys
from ocr_eval.scoring.ranks import Scores
from ocr_eval.specs import schedule
from ocr_eval.specs.association import Association
from ocr_eval.specs.association import load_association as load_association
from ocr_eval.specs.model import Device, ModelSpec
from ocr_eval.specs.model import load_model_spec as load_model
from ocr_eval.specs.run import SCORINGS, RunSpec, Scoring, make_run_spec, run_seeds
from ocr_eval.specs.settings import SETTINGS, given, section

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


Folder = str | Path
Line = TypeVar("Line")


def make_run(
    model: ModelSpec | Folder, association: Association | Folder, seed: int | None = None, **settings: Any
) -> RunSpec:
    """Resolve one run completely; nothing is computed yet.

    Args:
        model: from ``load_model``, or its name or path.
        association: from ``load_association``, or its name or path.
        seed: draws pairs, names, groups, order and initialization (default: 0). The settings ``data_seed`` and
            ``train_seed`` set the first three, or the last two, separately.
        settings: fields of the data protocol (``n=5, m_train=4, m_test=16, candidates="ten"`` ...) and of training
            (``method="lora", lr=1e-3, epochs=8, rank=16`` ...), and the model's ``dtype`` and ``attention``. Those of
            several entries are lists, or text as in flags (``targets="q_proj+v_proj"``). The defaults are the
            protocol's and the model's.

    Raises:
        UserError: an unknown setting, an invalid value, or all three seeds, so that ``seed`` would have no effect.
    """
    known = SETTINGS.keys() - {"seed"}
    for name in settings:
        if name not in known:
            raise unknown_name("setting", name, known)
    settings = {name: given(name, value) for name, value in settings.items()}
    spec = model if isinstance(model, ModelSpec) else load_model(_named("model", model))
    of_model = section("model", settings)
    if of_model:
        spec = yaml_files.parse(ModelSpec, {**spec.model_dump(), **of_model}, "settings")
    if not isinstance(association, Association):
        association = load_association(_named("association", association))
    seeds = run_seeds(section("run", settings) | ({} if seed is None else {"seed": seed}))
    return make_run_spec(spec, association, section("data", settings), section("train", settings), *seeds)


def _named(kind: str, given: object) -> str:
    if not isinstance(given, str | Path):
        raise UserError(f"Give the {kind} by its name or path, not {shown(given)}.")
    return str(given)


def _one_of(kind: str, given: str, known: Collection[str]) -> None:
    if given not in known:
        raise unknown_name(kind, given, known)


def finetune(
    run: RunSpec,
    output: Folder = "results",
    device: Device = "auto",
    force: bool = False,
    measures: Sequence[str] | None = None,
    score_at: str = schedule.DEFAULT,
) -> Record:
    """Teach the facts, score what was inferred, and save the run in ``output/runs``.

    A finished run is loaded, not repeated; an interrupted run resumes. ``measures`` names what to measure at the end;
    None takes the cheap ones. ``score_at`` says after which epochs all probes are scored (``doubling``, ``every``,
    ``every:5``, ``last`` or ``"1,3,12"``).

    Raises:
        UserError: bad input, found before any training.
        RunFailed: training failed.
    """
    from ocr_eval.execution.execute import finetune as run_finetune
    from ocr_eval.execution.run_pack import Execution

    asked, scored = (
        None if measures is None else tuple(measures),
        schedule.checked(score_at, "score_at", run.train.epochs),
    )
    how = Execution(device=device, force=force, measures=asked, score_at=scored)
    return run_finetune(run, Path(output), how)[0].record


def score_run(run: RunSpec, adapter: Folder | None = None, device: Device = "auto") -> Scores:
    """Score a model on a run's probes, untouched or with an (unmerged) adapter. Trains and writes nothing.

    Returns:
        ``scores[scoring][quantity]``, e.g. ``scores["first-token"]["test_entailment"].mean_rank``.

    Raises:
        UserError: no such adapter, or an adapter of another base.
    """
    from ocr_eval.execution.execute import open_view, rescore

    return rescore(run, open_view(run, None if adapter is None else Path(adapter), device))


def measure_run(folder: Folder, measure: str, device: Device = "auto") -> dict[str, Any]:
    """Measure a finished run from its saved weights; its record is unchanged.

    Raises:
        UserError: no such run or measure, no weights, or the measure is not available for this run.
    """
    from ocr_eval.execution.execute import reopen
    from ocr_eval.measures.measure import take_measure
    from ocr_eval.records.reopen import read_trained

    return take_measure(measure, reopen(*read_trained(Path(folder)), device))


def read_records(*folders: Folder, where: str | Sequence[str] = ()) -> list[Record]:
    """Read the records of all finished runs in the folders. A record that cannot be read is skipped with a warning.

    Args:
        folders: at any depth above the runs.
        where: conditions such as ``"method=lora"`` or ``["lr=1e-3", "seed=0,1"]``.

    Raises:
        UserError: no folder is given, one does not exist, or no run meets the conditions.
    """
    return _found(folders, where).records


def _found(
    folders: Sequence[Folder],
    where: str | Sequence[str] = (),
    scoring: Scoring | None = None,
    stacklevel: int = 3,
    measures: Sequence[str] = (),
) -> Found:
    if scoring is not None:
        _one_of("scoring", scoring, SCORINGS)
    if not folders:
        raise UserError("Name a folder that contains runs, for example 'results'.")
    texts = [where] if isinstance(where, str) else where
    conditions = [parse_condition("where", text) for text in texts]
    found = find_runs(*(Path(_named("folder", each)) for each in folders), scoring=scoring, measures=measures)
    for complaint in found.complaints:
        warnings.warn(f"{complaint} Skipped.", stacklevel=stacklevel)
    return found.where(conditions)


def epochs_frame(*folders: Folder, where: str | Sequence[str] = (), scoring: Scoring = "first-token") -> pd.DataFrame:
    """How finished runs learned: a row per run and epoch. Epoch 0 is the untouched base.

    Columns: ``run`` and the settings, as in ``records_frame``; ``epoch``, ``train_loss`` (nats per answer token),
    ``train_seconds``, ``score_seconds``; every statistic of every quantity, such as ``test_entailment_ocr_score``; and
    per-epoch measures, such as ``weight-change.frobenius``. What was not measured at an epoch is NaN. A run whose file
    cannot be read is skipped with a warning. ``folders``, ``where`` and errors are those of ``read_records``.
    """
    import pandas as pd

    from ocr_eval.records.run_files import metrics_of

    rows = []
    for settings, line in _lines("metrics.jsonl", folders, where, scoring, metrics_of):
        scores = {
            f"{quantity}_{name}": v for quantity, each in line.of(scoring).items() for name, v in asdict(each).items()
        }
        measured = {key: getattr(line, key) for key in ("epoch", "train_loss", "train_seconds", "score_seconds")}
        found = {f"{name}.{key}": v for name, each in (line.measures or {}).items() for key, v in each.items()}
        rows.append({**settings, **measured, **scores, **found})
    return pd.DataFrame(rows)


def probes_frame(*folders: Folder, where: str | Sequence[str] = (), scoring: Scoring = "first-token") -> pd.DataFrame:
    """What finished runs answered: a row per run, epoch (0 and the last) and probe.

    Columns: ``run`` and the settings, as in ``records_frame``; ``epoch``, ``quantity``, ``group``, ``subject``,
    ``prompt``, ``answer`` (the right one), its ``logprob`` and ``answer_rank`` (0 is best; ``rank`` is LoRA's),
    ``null_rank``, and ``best``, the candidate that the model ranks first. Unreadable files, ``folders``, ``where`` and
    errors: as in ``epochs_frame``.
    """
    import pandas as pd

    from ocr_eval.records.run_files import probes_of

    rows = []
    for settings, line in _lines("probes.jsonl", folders, where, scoring, probes_of):
        logprobs, candidates = line["logprobs"][scoring], line["candidates"]
        asked = {key: line[key] for key in ("epoch", "quantity", "group", "subject", "prompt", "answer")}
        answered = {
            "logprob": logprobs[candidates.index(line["answer"])],
            "answer_rank": line["rank"][scoring],
            "null_rank": line["null_rank"][scoring],
            "best": candidates[max(range(len(candidates)), key=logprobs.__getitem__)],
        }
        rows.append({**settings, **asked, **answered})
    return pd.DataFrame(rows)


def _lines(
    file: str,
    folders: Sequence[Folder],
    where: str | Sequence[str],
    scoring: Scoring,
    read: Callable[[FinishedRun, Scoring], list[Line]],
) -> Iterator[tuple[dict[str, Any], Line]]:
    """Each line of one of the run's files, with the run's settings.

    An unreadable file is skipped with a warning; the runs that lack theirs share one.
    """
    _one_of("scoring", scoring, SCORINGS)
    runs = _found(folders, where, stacklevel=4).runs
    if lacking := [path for run in runs if not stored(path := run.folder / file).is_file()]:
        more = f", as is that of {len(lacking) - 1} more runs" if len(lacking) > 1 else ""
        warnings.warn(f"{lacking[0]} is missing{more}. Skipped.", stacklevel=3)
    for run in runs:
        if run.folder / file in lacking:
            continue
        try:
            lines = read(run, scoring)
        except UserError as error:
            warnings.warn(f"{error} Skipped.", stacklevel=3)
            continue
        settings = settings_columns(run.record)
        yield from ((settings, line) for line in lines)


class NotebookTable(Table):
    """A table that a notebook displays as HTML."""

    def _repr_html_(self) -> str:
        from ocr_eval.report.tables import rendered

        return rendered("table_only.html.j2", self)


def make_table(
    records: Sequence[Record],
    scoring: Scoring = "first-token",
    metric: Metric | None = None,
    by: str | Sequence[str] = ("model",),
    published: bool = True,
) -> Table:
    """Make the mean-rank table of records; see ``ocr_eval.analysis.table.Table`` for its fields.

    Args:
        records: from ``read_records``.
        scoring: ``first-token``, ``sequence`` or ``per-token``.
        metric: the metric in each cell; None for mean rank, null rank and OCR score.
        by: what defines a row, e.g. ``("model", "rank")`` or ``"model,rank"``.
        published: add the published rows.

    Raises:
        UserError: no records, or an unknown scoring, metric or key of ``by``.
    """
    from ocr_eval.specs.published import published_mean_ranks

    _one_of("scoring", scoring, SCORINGS)
    if isinstance(records, str | Path) or not all(isinstance(record, Record) for record in records):
        raise UserError(f"Give records, as from read_records, not {shown(records)}.")
    keys = row_keys("by", by if isinstance(by, str) else ",".join(by))
    ranks = published_mean_ranks() if published else None
    return NotebookTable(**vars(build_table(records, scoring, ranks, metric, keys, every_interval=True)))


def render_table(table: Table, format: Literal["md", "csv", "json", "tex", "html"] = "md") -> str:
    """Render the table as text in one of the formats.

    Raises:
        UserError: an unknown format.
    """
    from ocr_eval.report.tables import FORMATS

    _one_of("format", format, FORMATS)
    return FORMATS[format](table)


def draw_figures(
    *folders: Folder, scoring: Scoring = "first-token", where: str | Sequence[str] = ()
) -> dict[str, Figure]:
    """Draw every figure that the finished runs in the folders allow, as matplotlib figures by name.

    Files that cannot be read are skipped with a warning.

    Raises:
        UserError: no such folder, no finished run, or none that meets the conditions.
    """
    from ocr_eval.report.figures.fonts import spell
    from ocr_eval.report.figures.gallery import gallery

    complaints: list[UserError] = []
    figures = dict(gallery(_found(folders, where, scoring).runs, scoring, complaints.append))
    for figure in figures.values():
        spell(figure)
    for complaint in complaints:
        warnings.warn(f"{complaint} Skipped.", stacklevel=2)
    return figures


def write_report(*folders: Folder, output: Folder, scoring: Scoring = "first-token") -> Path:
    """Write the report page of the finished runs in the folders; unreadable files are skipped with a warning.

    Raises:
        UserError: no such folder, or the page cannot be written.
    """
    from ocr_eval.common.files import prepare_output, write_atomic
    from ocr_eval.report.page import MEASURES, build_page

    found = _found(folders, scoring=scoring, measures=MEASURES)
    page, complaints = build_page(found, scoring)
    for complaint in complaints[len(found.complaints) :]:
        warnings.warn(f"{complaint} Skipped.", stacklevel=2)
    path = Path(output)
    prepare_output(path.parent)
    write_atomic(path, page)
    return path
