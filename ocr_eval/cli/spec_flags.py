"""Flags generated from fields: a command names the settings that it takes, and the specs define them.

A parameter of a command may stand for many flags: ``Annotated[Given, Settings(...)]`` for settings of a run, and a
dataclass for its fields.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, get_args

import typer

from ocr_eval.specs.settings import SETTINGS, Setting

#: Settings that were given, by name.
Given = Mapping[str, Any]


def variable(flag: str) -> str:
    """The environment variable of a flag: ``OCR_EVAL_EPOCHS`` for ``--epochs``."""
    return "OCR_EVAL_" + flag.split("/")[0].lstrip("-").replace("-", "_").upper()


def flag_of(name: str) -> str:
    """The flag of a setting or an axis."""
    return "--" + name.replace("_", "-")


def option(*flags: str, help: str, **rest: Any) -> Any:
    """An option that can also be set by its environment variable; flags with the same name share it."""
    return typer.Option(*flags, help=help, envvar=variable(flags[0]), show_envvar=False, **rest)


@dataclass(frozen=True)
class Settings:
    """The settings that a command takes.

    Attributes:
        names: names of the settings; empty for all.
        without: those that it does not take.
        axes: those for which it takes several values.
        required: those that must be given.
        defaults: defaults to show in help if they differ from those of a run.
    """

    names: Collection[str] = ()
    without: Collection[str] = ()
    axes: Collection[str] = ()
    required: Collection[str] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def __signature__(self) -> inspect.Signature:
        """A parameter for each setting."""
        return inspect.Signature(
            [self._parameter(SETTINGS[n]) for n in self.names or SETTINGS if n not in self.without]
        )

    def __call__(self, **values: Any) -> Given:
        """The settings that were given."""
        return {name: value for name, value in values.items() if value is not None}

    def _parameter(self, setting: Setting) -> inspect.Parameter:
        several, required = setting.name in self.axes, setting.name in self.required
        default = self.defaults.get(setting.name, setting.default)
        notes = "; ".join(filter(None, ["" if required else f"default: {default}", setting.limits]))
        declared = option(
            flag_of(setting.axis if several else setting.name),
            help=f"{setting.field.description}{f'  [{notes}]' if notes else ''}",
            metavar=f"{setting.form},..." if several else setting.form,
            parser=setting.parse_axis if several else setting.parse,
        )
        return inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if required else None,
            annotation=Annotated[str if required else str | None, declared],
        )


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a flag for each field of its settings and dataclasses."""
    bundles: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        settings = next((each for each in get_args(parameter.annotation) if isinstance(each, Settings)), None)
        bundle: Any = settings or (parameter.annotation if is_dataclass(parameter.annotation) else None)
        own = [parameter] if bundle is None else list(inspect.signature(bundle, eval_str=True).parameters.values())
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        if bundle is not None:
            bundles[parameter.name] = bundle, [each.name for each in own]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, (bundle, own) in bundles.items():
            given[name] = bundle(**{each: given.pop(each) for each in own})
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
