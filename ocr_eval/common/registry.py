"""Registries of the four kinds of plugins: methods, structures of facts, measures and preventions.

The shipped ones are listed below. Another package registers its own by an entry point of the registry's group, a
notebook by ``add``. Nothing is imported before it is used.

A plugin with its settings is written ``name:setting=value:setting=value``, in flags, YAML and records alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from ocr_eval.common import numbers, yaml_files
from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.common.messages import warn

T = TypeVar("T")
#: The source of shipped plugins.
SHIPPED = "ocr-eval"


class Registry(Generic[T]):
    """All plugins of one kind.

    Args:
        noun: the kind, for messages.
        group: the entry-point group.
        shipped: where each shipped plugin is, as ``module:attribute``.
        one_object: whether classes are instantiated, once, to serve all runs.
    """

    def __init__(self, noun: str, group: str, shipped: Mapping[str, str], one_object: bool = False) -> None:
        self.noun, self.group, self._one_object = noun, group, one_object
        self._shipped = {name: EntryPoint(name, place, group) for name, place in shipped.items()}
        self._added: dict[str, T] = {}
        self._loaded: dict[str, T] = {}

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        """Plugins of other packages. One that takes a shipped name is ignored, with a warning."""
        points = entry_points(group=self.group)
        for name in self._shipped.keys() & points.names:
            warn(f"An installed package also has a {self.noun} '{name}'; ocr-eval's own is used.")
        return {point.name: point for point in points if point.name not in self._shipped}

    def names(self) -> list[str]:
        """All names: shipped ones first, then those of other packages and of this process."""
        return [*self._shipped, *sorted(self._installed), *self._added]

    def source(self, name: str) -> str:
        """Where a plugin comes from: ``ocr-eval``, a package with its version, or ``this process``."""
        if name in self._shipped:
            return SHIPPED
        if name in self._added:
            return "this process"
        package = self._installed[name].dist
        return f"{package.name} {package.version}" if package else "an installed package"

    def get(self, name: str) -> T:
        """The plugin of this name, imported on first use.

        Raises:
            UserError: unknown name (with a suggestion), or a plugin of another package cannot be imported.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            point = (self._installed | self._shipped).get(name)
            if point is None:
                raise unknown_name(self.noun, name, self.names())
            try:
                self._loaded[name] = self._of(point.load())
            except Exception as error:
                if name in self._shipped:
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"The {self.noun} '{name}' of {self.source(name)} cannot be imported: {reason}"
                ) from error
        return self._loaded[name]

    def add(self, name: str, thing: T) -> None:
        """Add a plugin to this process, e.g. in a notebook; worker processes do not see it.

        Raises:
            UserError: the name is taken, or not usable in a flag.
        """
        if not re.fullmatch("[a-z0-9][a-z0-9-]*", name):
            raise UserError(f"A {self.noun} cannot be called '{name}'. Use lowercase letters, digits and '-'.")
        if name in self._shipped or name in self._installed:
            raise UserError(f"The {self.noun} '{name}' already exists. Give yours another name.")
        self._added[name] = self._of(thing)

    def _of(self, thing: Any) -> T:
        return thing() if self._one_object and isinstance(thing, type) else thing

    def choose(self, text: str) -> Choice[T]:
        """Parse ``name:setting=value`` into a plugin and its validated settings.

        Raises:
            UserError: unknown name, unknown or missing setting, or invalid value.
        """
        name, *parts = text.split(":")
        thing = self.get(name)
        pairs = [part.partition("=") for part in parts]
        given = {key.replace("-", "_"): value for key, _, value in pairs}
        if len(given) < len(pairs) or not all(key and equals and value for key, equals, value in pairs):
            raise UserError(f"'{text}': write a {self.noun}'s settings as {name}:setting=value, each once.")
        kind: type[BaseModel] = getattr(thing, "Settings", NoSettings)
        unknown = [key for key in given if key not in kind.model_fields]
        if unknown and kind.model_config.get("extra") != "allow":
            raise unknown_name(f"setting of {self.noun} {name}:", unknown[0], kind.model_fields)
        lacking = [key for key, field in kind.model_fields.items() if field.is_required() and key not in given]
        if lacking:
            needs = ":".join(f"{key.replace('_', '-')}=VALUE" for key in lacking)
            shown = f"'ocr-eval {self.noun}s show {name}'"
            raise UserError(f"{self.noun.capitalize()} '{name}' needs a setting: write {name}:{needs} ({shown}).")
        settings = yaml_files.parse(kind, given, f"{self.noun} '{name}'", strict=False)
        try:
            numbers.checked(tuple(settings.model_dump().values()))
        except ValueError as error:
            raise UserError(f"'{text}': {error}.") from error
        return Choice(name, thing, settings)

    def brief(self, text: str) -> str:
        """A canonical text without the settings that have their defaults; any other text as it is."""
        try:
            choice = self.choose(text)
        except UserError:
            return text
        name, *settings = text.split(":")
        telling = choice.settings.model_dump(exclude_defaults=True)
        told = [each for each in settings if each.partition("=")[0] in telling]
        return ":".join([name, *told]) if str(choice) == text else text


class NoSettings(BaseModel, extra="forbid", frozen=True):
    """For plugins without settings."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A plugin and its settings."""

    name: str
    thing: T
    settings: BaseModel

    def __str__(self) -> str:
        """The canonical form: every setting that has a value, in field order."""
        values = self.settings.model_dump(mode="json")
        given = {key: value for key, value in values.items() if value is not None}
        return ":".join([self.name, *(f"{key}={_plain(value)}" for key, value in given.items())])


def _plain(value: Any) -> str:
    """A value as text. Floats keep full precision and have no '+', which would separate list entries."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value).replace("e+", "e") if isinstance(value, float) else str(value)


STRUCTURES: Registry[Any] = Registry(
    "structure",
    "ocr_eval.structures",
    {
        "chains": "ocr_eval.data.chains:ChainAssociation",
        "facts": "ocr_eval.data.facts:FactsAssociation",
        "known": "ocr_eval.data.known:KnownAssociation",
        "pairs": "ocr_eval.data.pairs:PairAssociation",
        "reversal": "ocr_eval.data.reversal:ReversalAssociation",
    },
)
METHODS: Registry[Any] = Registry(
    "method",
    "ocr_eval.methods",
    {
        "lora": "ocr_eval.methods.lora:Lora",
        "qlora": "ocr_eval.methods.qlora:QLora",
        "full": "ocr_eval.methods.full:Full",
        "dpo": "ocr_eval.methods.dpo:Dpo",
        "merged-ov": "ocr_eval.methods.merged_ov:MergedOV",
        "steering": "ocr_eval.methods.steering:Steering",
        "rome": "ocr_eval.methods.rome:Rome",
        "memit": "ocr_eval.methods.memit:Memit",
        "in-context": "ocr_eval.methods.in_context:InContext",
    },
    one_object=True,
)
MEASURES: Registry[Any] = Registry(
    "measure",
    "ocr_eval.measures",
    {
        "constant-direction": "ocr_eval.measures.constant_direction:ConstantDirection",
        "frozen-layers": "ocr_eval.measures.frozen_layers:FrozenLayers",
        "hedge": "ocr_eval.measures.hedge:Hedge",
        "known": "ocr_eval.measures.known_facts:KnownFacts",
        "known-categories": "ocr_eval.measures.known_facts:KnownCategories",
        "text-loss": "ocr_eval.measures.text_loss:TextLoss",
        "link-map": "ocr_eval.measures.link_map:LinkMap",
        "logit-lens": "ocr_eval.measures.logit_lens:LogitLens",
        "ov-change": "ocr_eval.measures.ov_change:OVChange",
        "paraphrase": "ocr_eval.measures.paraphrase:Paraphrase",
        "patching": "ocr_eval.measures.patching:Patching",
        "sharing": "ocr_eval.measures.sharing:Sharing",
        "vocabulary": "ocr_eval.measures.vocabulary:Vocabulary",
        "weight-change": "ocr_eval.measures.weight_change:WeightChangeNorms",
    },
    one_object=True,
)
DEFAULT_MEASURES = "default"
"""In a list of measures: all that are taken by default."""
PREVENTIONS: Registry[Any] = Registry(
    "prevention",
    "ocr_eval.preventions",
    {
        "abstain": "ocr_eval.preventions.abstain:Abstain",
        "anchor": "ocr_eval.preventions.anchor:Anchor",
        "early-stop": "ocr_eval.preventions.early_stop:EarlyStop",
        "factor-decay": "ocr_eval.preventions.factor_decay:FactorDecay",
        "gradient-routing": "ocr_eval.preventions.gradient_routing:GradientRouting",
        "ignore-top-k": "ocr_eval.preventions.ignore_top_k:IgnoreTopK",
        "ov-decay": "ocr_eval.preventions.ov_decay:OVDecay",
        "product-decay": "ocr_eval.preventions.product_decay:ProductDecay",
        "replay": "ocr_eval.preventions.replay:Replay",
        "scale-after": "ocr_eval.preventions.scale_after:ScaleAfter",
    },
)
