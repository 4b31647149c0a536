"""The four doors: what methods, structures of facts, measures and preventions there are, by name.

What is shipped and what another package brings are found alike. The shipped ones are in the tables below; a package
adds its own by an entry point of the door's group, and a notebook by ``add``. Nothing is imported before it is used.

A thing with settings is chosen in one word, ``name:setting=value:setting=value``, in flags, YAML and records alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from ocr_eval.common import numbers, yaml_files
from ocr_eval.common.errors import UserError, unknown_name
from ocr_eval.common.messages import warn

T = TypeVar("T")
#: The source of what comes with this package.
SHIPPED = "ocr-eval"


class Registry(Generic[T]):
    """One door.

    Args:
        noun: what stands behind it, for messages.
        group: the entry points' group.
        shipped: where each shipped thing is, as ``module:attribute``.
        one_object: whether one object of a class serves all runs.
    """

    def __init__(self, noun: str, group: str, shipped: Mapping[str, str], one_object: bool = False) -> None:
        self.noun, self.group, self._one_object = noun, group, one_object
        self._shipped = dict(shipped)
        self._added: dict[str, T] = {}
        self._loaded: dict[str, T] = {}

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        """What other packages register; one with a shipped name is not used, with a warning."""
        points = entry_points(group=self.group)
        for name in self._shipped.keys() & points.names:
            warn(f"An installed package also has a {self.noun} '{name}'; ocr-eval's own is used.")
        return {point.name: point for point in points if point.name not in self._shipped}

    def names(self) -> list[str]:
        """Every name: the shipped ones first, then those that other packages and this process bring."""
        return list(dict.fromkeys([*self._shipped, *sorted(self._installed), *self._added]))

    def source(self, name: str) -> str:
        """Where the thing of a name comes from: ``ocr-eval``, a package with its version, or ``this process``."""
        if name in self._shipped:
            return SHIPPED
        if name in self._added:
            return "this process"
        package = self._installed[name].dist
        return f"{package.name} {package.version}" if package else "an installed package"

    def get(self, name: str) -> T:
        """The thing of a name.

        Raises:
            UserError: there is none (with the nearest name), or another package's cannot be imported.
        """
        if name in self._added:
            return self._added[name]
        if name in self._loaded:
            return self._loaded[name]
        installed = self._installed  # says so where a shipped name is taken
        if name in self._shipped:
            module, _, attribute = self._shipped[name].partition(":")
            self._loaded[name] = self._of(getattr(import_module(module), attribute))
        elif name in installed:
            try:
                self._loaded[name] = self._of(installed[name].load())
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise UserError(
                    f"The {self.noun} '{name}' of {self.source(name)} cannot be imported: {reason}"
                ) from error
        else:
            raise unknown_name(self.noun, name, self.names())
        return self._loaded[name]

    def add(self, name: str, thing: T) -> None:
        """Add one for this process, as in a notebook; worker processes do not know it.

        Raises:
            UserError: the name is taken, or cannot be written in a flag.
        """
        if not re.fullmatch("[a-z0-9][a-z0-9-]*", name):
            raise UserError(f"A {self.noun} cannot be called '{name}'. Use lowercase letters, digits and '-'.")
        if name in self._shipped or name in self._installed:
            raise UserError(f"The {self.noun} '{name}' already exists. Give yours another name.")
        self._added[name] = self._of(thing)

    def _of(self, thing: Any) -> T:
        return thing() if self._one_object and isinstance(thing, type) else thing

    def choose(self, text: str) -> Choice[T]:
        """What ``name:setting=value`` chooses, its settings checked.

        Raises:
            UserError: no such name, no such setting, or a value that does not fit.
        """
        name, *parts = text.split(":")
        thing = self.get(name)
        pairs = [part.partition("=") for part in parts]
        given = {key.replace("-", "_"): value for key, _, value in pairs}
        if len(given) < len(pairs) or not all(key and equals and value for key, equals, value in pairs):
            raise UserError(f"'{text}': write a {self.noun}'s settings as {name}:setting=value, each once.")
        kind: type[BaseModel] = getattr(thing, "Settings", NoSettings)
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


class NoSettings(BaseModel, extra="forbid", frozen=True):
    """The settings of what has none."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A thing and its settings."""

    name: str
    thing: T
    settings: BaseModel

    def __str__(self) -> str:
        """The one way to write it: every setting, in the order of its fields."""
        values = self.settings.model_dump(mode="json")
        given = {key: value for key, value in values.items() if value is not None}
        return ":".join([self.name, *(f"{key}={_plain(value)}" for key, value in given.items())])


def _plain(value: Any) -> str:
    """A value as text; a number with all its digits, and without a '+', which joins entries."""
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
"""Among the names of measures: all those that are taken without being asked for."""
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
