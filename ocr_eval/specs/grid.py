"""What a sweep is: its grid of runs, and the file that states it. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, create_model, model_validator

from ocr_eval.common.errors import UserError
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import Dtype, ModelSpec, Precision, load_model_spec
from ocr_eval.specs.run import DataSpec, RunSpec, make_run_spec
from ocr_eval.specs.settings import AXES, PLURAL, Section, Setting
from ocr_eval.specs.strict import SCHEMA_VERSION, Strict

SWEEP_FILE = "sweep.json"


def _axis(values: Any) -> Any:
    """Values of a file or a caller as an axis: one alone is an axis too, and whole numbers are in order."""
    if not isinstance(values, list | tuple):
        return (values,)
    return tuple(sorted(values)) if all(type(value) is int for value in values) else tuple(values)


def _field(setting: Setting) -> Any:
    several: Any = GenericAlias(tuple, (setting.type, ...))
    kind: Any = Annotated[(several, Field(min_length=1), BeforeValidator(_axis))]
    return (kind, (setting.field.default,)) if setting.section == "data" else (kind | None, None)


class _Runs(Strict):
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    assocs: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_axis)]


_Axes: Any = create_model("_Axes", __base__=_Runs, **{name: _field(setting) for name, setting in AXES.items()})


class Grid(_Axes, _Runs):
    """What a sweep varies and what it holds fixed; names as in the flags.

    Every setting of data and training, and attention, is an axis: every combination is a run. Of training, what is None
    is the model's default.
    """

    dtype: Dtype | None = None
    score_every: Annotated[int, Field(ge=1)] = 1
    measures: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Grid:
        for name, values in self:
            if isinstance(values, tuple):
                twice = sorted({str(value) for value in values if values.count(value) > 1})
                if twice:
                    raise ValueError(f"{name} names {', '.join(twice)} twice")
        return self

    def flags(self) -> dict[str, Any]:
        """The grid as a file of flags has it."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        lists = {name: [AXES[name].text(value) for value in dumped[name]] for name in dumped if name in _LISTS}
        return {name.replace("_", "-"): value for name, value in (dumped | lists).items()}

    def model_specs(self) -> dict[str, ModelSpec]:
        """The models by the names they go by in the grid, in the precision that was asked for.

        Raises:
            UserError: a name that does not exist, or a file that breaks a rule.
        """
        asked = {} if self.dtype is None else {"dtype": self.dtype}
        return {name: load_model_spec(name).model_copy(update=asked) for name in self.models}

    def specs(self, dtypes: Mapping[str, Precision] | None = None) -> list[RunSpec]:
        """Every run of the grid; runs of one model and association are neighbours.

        Args:
            dtypes: the precision of each model, by its name in the grid; None leaves ``auto`` as it is.

        Raises:
            UserError: a name or a value that does not exist or fit.
        """
        models = [
            model if dtypes is None else model.model_copy(update={"dtype": dtypes[name]})
            for name, model in self.model_specs().items()
        ]
        associations = [load_association(name) for name in self.assocs]
        attention, train, data = (self._combinations(part) for part in ("model", "train", "data"))
        return [
            make_run_spec(model.model_copy(update=of_model), association, of_data, of_train, seed)
            for model, of_model, of_train, association in product(models, attention, train, associations)
            for of_data, seed in product(data, self.seeds)
        ]

    def _combinations(self, section: Section) -> list[dict[str, Any]]:
        """Every combination of the settings of a section that are given."""
        axes = {setting.name: getattr(self, name) for name, setting in AXES.items() if setting.section == section}
        given = {name: values for name, values in axes.items() if values is not None}
        return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


_LISTS = [name for name, setting in AXES.items() if setting.is_list]

#: A run's folder below ``runs/``: model, association, method, seed and fingerprint.
Identity = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9._-]{0,63}/){3}seed[0-9]+-[0-9a-f]{8}$")]


class SweepState(Strict):
    """What ``sweep.json`` says.

    Attributes:
        schema_version: of the file.
        code: digest of the code that stated it.
        grid: what the sweep is.
        dtypes: the precision of each model, settled when the sweep was made; empty in files before there was a choice.
        packs: its runs, by pack.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    code: str
    grid: Grid
    dtypes: dict[str, Precision] = Field(default_factory=dict)
    packs: tuple[tuple[Identity, ...], ...]

    @property
    def runs(self) -> set[Identity]:
        """Every run."""
        return {run for pack in self.packs for run in pack}


def read_sweep(output: Path) -> SweepState | None:
    """The sweep that a folder holds, if it holds one.

    Raises:
        UserError: a sweep.json that is damaged or of another version.
    """
    path = output / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            older = {PLURAL.get(name, name): value for name, value in DataSpec.legacy().items()}
            return SweepState.model_validate({**content, "grid": {**older, **content["grid"]}}, strict=False)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({_reason(error)}). Delete it; the runs beside it are kept.") from error
    raise UserError(f"{path} has schema version {version!r}; this version of ocr-eval reads {SCHEMA_VERSION}.")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _said(value: object) -> object:
    return "not given" if value is None else value


def check_same(given: Grid, output: Path) -> None:
    """Raises UserError if the folder holds a sweep of another grid."""
    held = read_sweep(output)
    if held is None or held.grid == given:
        return
    differing = [
        f"{name} {_said(getattr(held.grid, name))} there, {_said(value)} here"
        for name, value in given
        if getattr(held.grid, name) != value
    ]
    raise UserError(
        f"'{output}' holds another sweep ({'; '.join(differing)}). Choose another --output-dir, or leave these "
        "flags out to resume that one."
    )
