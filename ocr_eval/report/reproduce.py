"""The command that reproduces a run. Pure except for the list of shipped names."""

import shlex
from functools import cache

from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.methods.method import ignored_by
from ocr_eval.records.record import Record
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.settings import SETTINGS


def command(record: Record) -> str:
    """The command line that reproduces a run, with every flag that its result depends on.

    A model or association that is not shipped is named by a file; ``missing_files`` says what goes into it. External
    training can only be scored again.
    """
    if not isinstance(record.train, TrainSpec):
        name = record.train.method.partition(":")[2]
        model = f"--adapter TRAINED --model {record.model}" if record.base_identity else "--model TRAINED"
        if not record.adapter_sha256:
            model = "--endpoint SERVER --model SERVED"
        return f"ocr-eval score --data EXPORTED {model} --name {name}"
    ignored = ignored_by(record.train)
    values = {
        **{name: seed for name in ("seed", "train_seed") if (seed := getattr(record, name)) is not None},
        **dict(record.data),
        **{name: value for name, value in record.train if name not in ignored},
        "dtype": record.dtype,
        "attention": record.attention,
    }
    named = {
        "model": _shipped_or_file("models", record.model),
        "assoc": _shipped_or_file("templates", record.association),
        **{name: setting.text(values[name]) for name, setting in SETTINGS.items() if name in values},
    }
    flags = (word for name, text in named.items() for word in (f"--{name.replace('_', '-')}", text))
    return shlex.join(["ocr-eval", "finetune", *flags])


def missing_files(record: Record) -> str:
    """Which files the command needs that are not shipped, and where to find their content; empty if none."""
    if not isinstance(record.train, TrainSpec):
        trained = "TRAINED (what was trained on it)" if record.adapter_sha256 else "SERVER and SERVED (its model)"
        return f"It needs EXPORTED (the folder of 'data export') and {trained}."
    wanted = [
        f"./{name}.yaml (the section '{section}' of the configuration)"
        for part, name, section in (
            ("models", record.model, "model"),
            ("templates", record.association, "association"),
        )
        if name not in _names(part)
    ]
    return f"It needs {' and '.join(wanted)}." if wanted else ""


def _shipped_or_file(part: str, name: str) -> str:
    return name if name in _names(part) else f"./{name}.yaml"


@cache
def _names(part: str) -> frozenset[str]:
    return frozenset(shipped_names(part))
