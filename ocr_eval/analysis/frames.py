"""Records -> a tidy pandas frame. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from ocr_eval.analysis.table import column, measured
from ocr_eval.records.record import Record
from ocr_eval.records.select import settings_of
from ocr_eval.specs.model import TrainSpec

if TYPE_CHECKING:
    import pandas as pd


def records_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Records as a tidy table: a row per run, moment, scoring and quantity.

    Columns: ``run``, the settings (``model``, ``method``, ``lr``, ``m_train`` ...), ``premises_hold``,
    ``published_as``, ``train_loss``; ``moment`` (``base`` or ``final``), ``scoring``, ``quantity``; and the statistics
    ``probes``, ``mean_rank``, ``null_rank``, ``ocr_score``, ``top1``, ``mrr``, ``margin`` (nats), ``ties``. Measures
    have their own columns, such as ``weight_change_frobenius``.
    """
    import pandas as pd

    rows = []
    for record in records:
        run = {**settings_columns(record), "published_as": record.published_as, "train_loss": record.train_loss}
        run |= {column(name): value for name, value in measured(record).items()}
        for moment, scores in (("base", record.base), ("final", record.final)):
            for scoring, by_quantity in scores.items():
                for quantity, score in by_quantity.items():
                    statistics = asdict(score)
                    rows.append({**run, "moment": moment, "scoring": scoring, "quantity": quantity, **statistics})
    return pd.DataFrame(rows)


def settings_columns(record: Record) -> dict[str, Any]:
    """The columns that identify a row's run."""
    settings = settings_of(record)
    is_ours = isinstance(record.train, TrainSpec)
    typed = {
        **dict.fromkeys(TrainSpec.model_fields),
        **record.train.model_dump(),
        **record.data.model_dump(),
        "seed": record.seed,
        "train_seed": record.training_seed if is_ours else None,
    }
    named = {key: typed.get(key, value) for key, value in settings.items()}
    return {"run": record.run, **named, "premises_hold": record.premises_hold}
