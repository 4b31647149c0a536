"""What states a sweep: the grid that its runs are written as, and the file in its folder. Imports nothing heavy."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, create_model, model_validator

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_bytes
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import Dtype, load_model_spec
from ocr_eval.specs.run import DataSpec, RunSpec, make_run_spec, run_seeds
from ocr_eval.specs.schedule import DEFAULT, ScoreAt
from ocr_eval.specs.settings import AXES, PLURAL, Section, Setting
from ocr_eval.specs.strict import SCHEMA_VERSION, Strict


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


_Axes: Any = create_model("_Axes", __base__=_Runs, **{name: _field(setting) for name, setting in AXES.items()})


class Grid(_Axes, _Runs):
    """What a sweep varies and what it holds fixed; names as in the flags.

    Every seed, every setting of data and training, and attention, is an axis: every combination is a run. Of training,
    what is None is the model's default.
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
        """The grid as a file of flags has it."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        lists = {name: [AXES[name].text(value) for value in dumped[name]] for name in dumped if name in _LISTS}
        measures = {} if self.measures is None else {"measures": ",".join(self.measures) or "none"}
        return {name.replace("_", "-"): value for name, value in (dumped | lists | measures).items()}

    def specs(self) -> list[RunSpec]:
        """Every run of the grid, in the precision that was asked for; runs of one model and association are neighbours.

        Raises:
            UserError: a name or a value that does not exist or fit.
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
    str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9._-]{0,63}/){3}seed[0-9]+(-train[0-9]+)?-[0-9a-f]{8}$")
]


class SweepState(Strict):
    """What the file of a sweep or study says.

    Attributes:
        code: digest of the code that stated it.
        grid: how ``sweep`` wrote its runs; None of a study.
        packs: its runs, by pack.
        specs: what each of them is, in its settled precision; empty in files of before, whose grid says it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    code: str
    grid: Grid | None = None
    packs: tuple[tuple[Identity, ...], ...]
    specs: dict[Identity, dict[str, Any]] = Field(default_factory=dict)

    @property
    def runs(self) -> set[Identity]:
        """Every run."""
        return {run for pack in self.packs for run in pack}


def state_file(output: Path, study: str = "") -> Path:
    """The file that states a study of a folder, or without a name the folder's sweep."""
    return output / (f"studies/{study}.json" if study else "sweep.json")


def read_all(output: Path) -> dict[str, SweepState]:
    """What a folder states: its sweep, without a name, and its studies by name."""
    names = ["", *sorted(path.stem for path in output.glob("studies/*.json"))]
    return {name: held for name in names if (held := read_sweep(output, name))}


def read_sweep(output: Path, study: str = "") -> SweepState | None:
    """The sweep that a folder states, or the study of this name there; None if there is none.

    Raises:
        UserError: a file that is damaged or of another version.
    """
    path = state_file(output, study)
    if not path.is_file():
        return None
    try:
        content = json.loads(read_bytes(path))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            content.pop("dtypes", None)  # of before; the names of the runs hold it too
            if content.get("grid") is not None:
                older = {PLURAL.get(name, name): value for name, value in DataSpec.legacy().items()}
                every = content["grid"].pop("score_every", None)  # of before
                older |= {} if every is None else {"score_at": f"every:{every}"}
                content["grid"] = {**older, **content["grid"]}
            return SweepState.model_validate(content, strict=False)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{path} is damaged ({reason}). Delete it; the runs beside it are kept.") from error
    raise UserError(f"{path} has schema version {version!r}; this version of ocr-eval reads {SCHEMA_VERSION}.")


def check_same(given: Grid, state: SweepState | None, output: Path) -> None:
    """Raises UserError if what a folder states is a sweep of another grid."""
    held = state and state.grid
    aside = {"measures": given.measures, "score_at": given.score_at}  # nothing of what is learned depends on it
    if not held or held.model_copy(update=aside) == given:
        return
    stated = {name: (getattr(held, name), value) for name, value in given if name not in aside}
    differing = [
        "{} {} there, {} here".format(name, *("not given" if value is None else value for value in both))
        for name, both in stated.items()
        if both[0] != both[1]
    ]
    raise UserError(
        f"'{output}' holds another sweep ({'; '.join(differing)}). Choose another --output-dir, or drop these "
        "flags to resume that one."
    )
