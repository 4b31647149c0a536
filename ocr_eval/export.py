"""A run's data set as JSON lines, for other trainers and evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ocr_eval.dataset import Dataset
from ocr_eval.runs import prepare_output, to_jsonl, write_atomic


def training_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """A row a training statement: prompt, answer and whole text."""
    return [
        {
            "prompt": statement.prompt,
            "answer": statement.answer,
            "text": statement.text,
            "subject": statement.subject.name,
            "group": statement.subject.group,
            "split": statement.subject.split,
            "relation": statement.relation,
        }
        for statement in dataset.train
    ]


def probe_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """A row a probe: prompt, answer and candidates (the first ``in_use`` of them are true of some subject)."""
    return [
        {
            "prompt": probe.prompt,
            "answer": probe.answer,
            "candidates": list(dataset.candidates[probe.relation].answers),
            "in_use": dataset.candidates[probe.relation].in_use,
            "subject": probe.subject.name,
            "group": probe.subject.group,
            "split": probe.subject.split,
            "relation": probe.relation,
        }
        for probe in dataset.probes
    ]


def export_dataset(dataset: Dataset, folder: Path) -> list[Path]:
    """Write train.jsonl and probes.jsonl.

    Raises:
        UserError: the folder cannot be written.
    """
    prepare_output(folder)
    paths = []
    for name, rows in (("train.jsonl", training_rows(dataset)), ("probes.jsonl", probe_rows(dataset))):
        write_atomic(folder / name, to_jsonl(rows))
        paths.append(folder / name)
    return paths
