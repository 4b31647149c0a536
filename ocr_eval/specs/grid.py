"""What defines a sweep: the grid that generates its runs, and the file in its folder. Imports nothing heavy."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, create_model, model_validator

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes
from ocr_eval.common.yaml_files import problems
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import Dtype, load_model_spec
from ocr_eval.specs.run import DataSpec, RunSpec, make_run_spec, run_seeds
from ocr_eval.specs.schedule import DEFAULT, ScoreAt
from ocr_eval.specs.settings import AXES, PLURAL, Section, Setting
from ocr_eval.specs.strict import SCHEMA_VERSION, Strict, form


def _axis(values: Any) -> Any:
    """Values as an axis: a single value becomes an axis of one, and integers are sorted."""
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


_Axes: Any = create_model("_Axes", __base__=_Runs, **{name: _field(setting) for name, setting in AXES.items()})


class Grid(_Axes, _Runs):
    """What a sweep varies and what it holds fixed; names as in the flags.

    Seeds, attention, and all settings of data and training are axes, and every combination is a run. None means the
    model's default, or seed 0.
    """

    dtype: Dtype | None = None
    score_at: ScoreAt = DEFAULT
    measures: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Grid:
        for name, values in self:
            if isinstance(values, tuple):
                twice = sorted(str(value) for value, times in Counter(values).items() if times > 1)
                if twice:
                    raise ValueError(f"{name} lists {', '.join(twice)} twice")
        return self

    def flags(self) -> dict[str, Any]:
        """The grid in the form of a file of flags."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        lists = {name: [AXES[name].text(value) for value in dumped[name]] for name in dumped if name in _LISTS}
        measures = {} if self.measures is None else {"measures": ",".join(self.measures) or "none"}
        return {name.replace("_", "-"): value for name, value in (dumped | lists | measures).items()}

    def specs(self) -> list[RunSpec]:
        """All runs of the grid in the requested precision, ordered by model, attention, training and association.

        Raises:
            UserError: an unknown name, or an invalid value or combination.
        """
        asked = {} if self.dtype is None else {"dtype": self.dtype}
        models = [load_model_spec(name).model_copy(update=asked) for name in self.models]
        associations = [load_association(name) for name in self.assocs]
        attention, train, data = (self._combinations(part) for part in ("model", "train", "data"))
        seeds = [run_seeds(of_run) for of_run in self._combinations("run")]
        return [
            make_run_spec(model.model_copy(update=of_model), association, of_data, of_train, *of_run)
            for model, of_model, of_train, association in product(models, attention, train, associations)
            for of_data, of_run in product(data, seeds)
        ]

    def _combinations(self, section: Section) -> list[dict[str, Any]]:
        """Every combination of the settings of a section that are given."""
        axes = {setting.name: getattr(self, name) for name, setting in AXES.items() if setting.section == section}
        given = {name: values for name, values in axes.items() if values is not None}
        return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


_LISTS = [name for name, setting in AXES.items() if setting.is_list]

#: A run's folder below ``runs/``: model, association, method, seed and fingerprint.
Identity = Annotated[
    str, form("([a-z0-9][a-z0-9._-]{0,63}/){3}seed[0-9]+(-train[0-9]+)?-[0-9a-f]{8}", "the folder of a run")
]


class SweepState(Strict):
    """The content of a sweep's or study's file.

    Attributes:
        code: digest of the code that wrote it.
        grid: the grid that generated a sweep's runs; None for a study.
        packs: its runs, by pack.
        specs: each run's spec, with its precision resolved; empty in older files, where the grid implies them.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    code: str
    grid: Grid | None = None
    packs: tuple[tuple[Identity, ...], ...]
    specs: dict[Identity, dict[str, Any]] = Field(default_factory=dict)

    @property
    def runs(self) -> set[Identity]:
        """All runs."""
        return {run for pack in self.packs for run in pack}


def state_file(output: Path, study: str = "") -> Path:
    """The file that describes a study in a folder, or the folder's sweep if no study is named."""
    return output / (f"studies/{study}.json" if study else "sweep.json")


def read_all(output: Path) -> dict[str, SweepState]:
    """The sweep of a folder, under the empty name, and its studies by name."""
    names = ["", *sorted(path.stem for path in output.glob("studies/*.json"))]
    return {name: held for name in names if (held := read_sweep(output, name))}


def read_sweep(output: Path, study: str = "") -> SweepState | None:
    """The sweep of a folder, or its study of this name; None if there is none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = state_file(output, study)
    if not path.is_file():
        return None
    try:
        content = json.loads(read_bytes(path))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            content.pop("dtypes", None)  # in older files; the runs' names imply it
            if content.get("grid") is not None:
                older = {PLURAL.get(name, name): value for name, value in DataSpec.legacy().items()}
                every = content["grid"].pop("score_every", None)  # in older files
                older |= {} if every is None else {"score_at": f"every:{every}"}
                content["grid"] = {**older, **content["grid"]}
            return SweepState.model_validate(content, strict=False)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = problems(error, content) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is damaged ({reason}). Delete it; the runs next to it are kept.") from error
    raise UserError(f"{path} has schema version {version!r}; this version of ocr-eval reads {SCHEMA_VERSION}.")


def check_same(given: Grid, state: SweepState | None, output: Path) -> None:
    """Raises UserError if the folder holds a sweep of another grid."""
    held = state and state.grid
    aside = {"measures": given.measures, "score_at": given.score_at}  # these do not affect training
    if not held or held.model_copy(update=aside) == given:
        return
    differing = []
    for name, here in given:
        there = getattr(held, name)
        if name not in aside and there != here:
            there, here = ("not given" if value is None else value for value in (there, here))
            differing.append(f"{name} {there} there, {here} here")
    raise UserError(
        f"'{output}' holds another sweep ({'; '.join(differing)}). Choose another --output-dir, or drop these "
        "flags to resume that one."
    )
