"""The command that makes a run again. Pure but for the list of shipped names."""

from __future__ import annotations

import shlex
from functools import cache

from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.methods.method import method_of
from ocr_eval.records.record import Record


def command(record: Record) -> str:
    """The command line that does this run again, with every flag that its result depends on.

    A model or association of the user's own is named by a file; ``missing_files`` says what goes into it.
    """
    data, train = record.data, record.train
    flags = {
        "model": _shipped_or_file("models", record.model),
        "assoc": _shipped_or_file("templates", record.association),
        "seed": record.seed,
        "n": data.n,
        "m-train": data.m_train,
        "m-test": data.m_test,
        "candidates": data.candidates,
        "templates": ",".join(map(str, data.templates)),
        "probe-template": data.probe_template,
        "variant": data.variant,
        "method": train.method,
        "lr": f"{train.lr:g}",
        "epochs": train.epochs,
        "batch-size": train.batch_size,
        **({} if "rank" in method_of(train).ignores else {"rank": train.rank, "alpha": f"{train.alpha:g}"}),
        "dtype": record.dtype,
    }
    return shlex.join(["ocr-eval", "finetune", *(word for key, value in flags.items() for word in _flag(key, value))])


def missing_files(record: Record) -> str:
    """Which files the command wants that are not shipped, and where their content stands; empty if none."""
    wanted = [
        f"./{name}.yaml (the section '{section}' of the configuration)"
        for part, name, section in (
            ("models", record.model, "model"),
            ("templates", record.association, "association"),
        )
        if name not in _names(part)
    ]
    return f"It wants {' and '.join(wanted)}." if wanted else ""


def _flag(key: str, value: object) -> tuple[str, str]:
    return f"--{key}", str(value)


def _shipped_or_file(part: str, name: str) -> str:
    return name if name in _names(part) else f"./{name}.yaml"


@cache
def _names(part: str) -> frozenset[str]:
    return frozenset(shipped_names(part))
