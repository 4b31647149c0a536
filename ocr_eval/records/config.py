"""Reading and writing a run's config.yaml, its resolved spec."""

from pathlib import Path
from typing import Any

import yaml

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_stored, stored, whole
from ocr_eval.specs.model import Training, TrainSpec
from ocr_eval.specs.run import DataSpec, RunSpec
from ocr_eval.specs.strict import SCHEMA_VERSION


def read_config(folder: Path) -> RunSpec:
    """The resolved spec of a run's folder.

    Raises:
        UserError: there is no config.yaml, or an invalid one.
    """
    path = folder / "config.yaml"
    if not stored(path).is_file():
        what = "is not a run folder (no config.yaml)" if folder.exists() else "does not exist"
        raise UserError(f"'{folder}' {what}. Give a folder below <output>/runs.")
    with whole(path):
        content = read_stored(path)
    return parse_run(yaml_files.mapping(content, path), path)


def read_run(path: Path) -> RunSpec:
    """The resolved spec in a run's config.yaml, wherever the file is.

    Raises:
        UserError: the file is invalid.
    """
    return parse_run(yaml_files.read_yaml(path), path)


def parse_run(content: dict[str, Any], path: Path) -> RunSpec:
    """The resolved spec from the content of a config.yaml.

    Raises:
        UserError: the content is invalid.
    """
    content.pop("schema_version", None)
    if Training.is_external(content.get("train")):
        raise UserError(f"{path}: this was trained elsewhere. Score it again with --data and --adapter or --model.")
    for section, kind in (("data", DataSpec), ("train", TrainSpec)):  # missing settings get their old defaults
        if isinstance(content.get(section), dict):
            unknown = sorted(content[section].keys() - kind.model_fields.keys(), key=str)
            if unknown:
                key = f"{section}.{unknown[0]}"
                raise UserError(f"{path}: unknown key '{key}'. If a newer ocr-eval wrote the file, upgrade.")
            content[section] = {**kind.legacy(), **content[section]}
    return yaml_files.parse(RunSpec, content, str(path), strict=False)


def config_yaml(spec: RunSpec, training: Training | None = None) -> str:
    """A resolved spec as YAML; an external ``training`` replaces its training."""
    content = {"schema_version": SCHEMA_VERSION, **spec.model_dump(mode="json")}
    if training is not None:
        content["train"] = training.model_dump()
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
