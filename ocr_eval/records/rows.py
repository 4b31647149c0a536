"""Grouping records into rows, and within a row by association and seed; and finding controls. Pure.

Records that differ in any setting except the seeds are never averaged, nor are those of two associations with the same
name.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import METHODS, PREVENTIONS
from ocr_eval.methods.method import label_of
from ocr_eval.records.record import Record
from ocr_eval.records.select import FILTER_KEYS, ROW_KEYS, UNKNOWN, Settings, natural, settings_of, text_of
from ocr_eval.scoring.ranks import HeldOut
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import Scoring

#: The order of columns; a user's own associations follow by name.
PUBLISHED_ORDER = ("city-language", "city-language-cf", "country-code", "profession-color", "sport-music")

#: Names of controls.
_NO_TRAIN = "no train subjects"
_VARIANTS = {
    "real": "",
    "no-entailment": "no entailments",
    "shuffled": "shuffled",
    "no-fact": "no facts",
    "regrouped": "regrouped facts",
}
#: Controls in row order; the real data come first.
_CONTROLS = ("", "no entailments", _NO_TRAIN, "shuffled", "no facts", "regrouped facts")

#: Settings that tell rows apart by default: not seeds, which are averaged, nor code that gives the same results.
_DISTINGUISHING = tuple(key for key in ROW_KEYS if key not in ("seed", "train_seed", "code"))

#: Settings that a row leaves unnamed if it has the value of most rows.
_USUAL = frozenset(TrainSpec.model_fields) - {"method", "prevent"}


@dataclass(frozen=True)
class RowKey:
    """What tells a row from the others.

    Attributes:
        labels: values of the keys that define rows (``--by``).
        setting: the method's name, the control if it is one, and what else differs among rows with these labels.
        unnamed: settings that other rows with these labels name and this one does not, because most have its value.
    """

    labels: tuple[str, ...]
    setting: str
    unnamed: tuple[str, ...] = field(default=(), compare=False, kw_only=True)

    @property
    def name(self) -> str:
        """Labels and setting in one line."""
        return ", ".join(part for part in (*self.labels, self.setting) if part)


def group_rows(
    records: Sequence[Record], by: Sequence[str] = ("model",), but: Sequence[str] = ()
) -> dict[RowKey, list[Record]]:
    """Records by row; only records of one row may be averaged. No two rows have the same name.

    Rows are made by the keys ``by`` and ordered by label; under one label LoRA comes first and controls come last. Keys
    in ``but`` do not tell rows apart; records of one row that differ in them may not be averaged.
    """
    of_each = [settings_of(record) for record in records]
    unknown = sorted({key for settings in of_each for key in settings} - set(FILTER_KEYS))  # of a newer program
    rest = [key for key in (*_DISTINGUISHING, *unknown) if key not in by and key not in but]
    kinds = [tuple(settings.get(key, "") for key in (*by, *rest)) for settings in of_each]
    alike = dict(zip(kinds, of_each, strict=True))
    names = _names(alike, len(by), rest)
    contents: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for record, kind in zip(records, kinds, strict=True):
        contents[kind[: len(by)], record.model, record.association].add(record.association_digest)
    groups: dict[RowKey, list[Record]] = defaultdict(list)
    places: dict[RowKey, tuple[Any, ...]] = {}
    for record, kind in zip(records, kinds, strict=True):
        label, (name, unnamed) = kind[: len(by)], names[kind]
        if len(contents[label, record.model, record.association]) > 1:
            digest = record.association_digest or "an older version"
            name = ", ".join(filter(None, [name, f"{record.association} as of {digest}"]))
        row = RowKey(label, name, unnamed=unnamed)
        groups[row].append(record)
        if row not in places:
            places[row] = (*map(natural, label), *_place(alike[kind], rest), natural(name))
    return {row: groups[row] for row in sorted(places, key=places.__getitem__)}


def _names(
    alike: Mapping[tuple[str, ...], Settings], labels: int, rest: Sequence[str]
) -> dict[tuple[str, ...], tuple[str, tuple[str, ...]]]:
    """Name of each row, and the settings that it leaves unnamed because most rows have its value."""

    def peers(kind: tuple[str, ...], key: str) -> tuple[Any, ...]:
        return kind[:labels], key, _peers(key, alike[kind], rest)

    rows: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for kind, settings in alike.items():
        for key in rest:
            rows[peers(kind, key)][settings.get(key, "")] += 1
    names = {}
    for kind, settings in alike.items():
        counts = {key: rows[peers(kind, key)] for key in rest}
        differing = [key for key, of in counts.items() if len(of) > 1]
        usual = [key for key in differing if key in _USUAL and 2 * counts[key][settings[key]] > counts[key].total()]
        name = _name(settings, [key for key in differing if key not in usual], rest)
        names[kind] = name, tuple(_further(settings, usual))
    return names


def _place(settings: Settings, rest: Sequence[str]) -> tuple[Any, ...]:
    """Sort key: for each model real runs come first, among them LoRA, among those the ones without preventions."""
    names, method = METHODS.names(), settings["method"].partition(":")[0]
    model = natural(settings["model"]) if "model" in rest else ()
    place = names.index(method) if method in names else len(names)
    return model, _CONTROLS.index(_control(settings, rest)), place, bool(settings["prevent"])


def _name(settings: Settings, differing: Sequence[str], rest: Sequence[str]) -> str:
    """Model, method, preventions, control and further settings, as far as ``differing`` and ``rest`` include them."""
    model = [settings["model"]] if "model" in differing else []
    method = [label_of(settings["method"])] if "method" in rest else []
    listed = settings["prevent"].split("+") if "prevent" in rest else []
    prevent = [f"+ {PREVENTIONS.brief(text)}" for text in listed if text not in ("", UNKNOWN)]
    taught = [" ".join([*method, *prevent])] if method or prevent else []
    kind = _control(settings, rest)
    # Facts of other shapes are taught without train subjects in the papers, so that it is not always a control.
    control = [kind if kind == _NO_TRAIN else f"control: {kind}"] if kind else []
    named = ("model", "method", "prevent", "variant")
    further = _further(settings, [key for key in differing if key not in named])
    return ", ".join([*model, *taught, *control, *further])


def _further(settings: Settings, keys: Iterable[str]) -> list[str]:
    return [f"{key}={_readable(key, settings.get(key, 'unset'))}" for key in keys]


def _readable(key: str, value: str) -> str:
    """A value in a row's name; modules of neighbouring layers are joined, ``10-12.self_attn.v_proj``."""
    layers: dict[str, list[list[int]]] = {}
    for module in value.split("+"):
        layer, dot, rest = module.partition(".")
        if key != "targets" or not (dot and layer.isdecimal()):
            return value
        spans = layers.setdefault(rest, [])
        if spans and spans[-1][1] + 1 == int(layer):
            spans[-1][1] += 1
        else:
            spans.append([int(layer)] * 2)
    return "+".join(
        f"{first if first == last else f'{first}-{last}'}.{rest}"
        for rest, spans in layers.items()
        for first, last in spans
    )


def _control(settings: Settings, rest: Sequence[str]) -> str:
    """Which control a run is, as far as the keys in ``rest`` say; empty for a real run."""
    if "m_train" in rest and settings["m_train"] == "0":
        return _NO_TRAIN
    return _VARIANTS[settings["variant"]] if "variant" in rest else ""


def _peers(key: str, settings: Settings, rest: Sequence[str]) -> tuple[str, ...]:
    """Key of the runs among which a setting is compared: it is named if they differ in it.

    Rates and batches follow from model and method, so they do not tell LoRA from full fine-tuning. Attention, weights
    and results version matter only among runs of the same name. A control without train subjects needs no m_train.
    """
    model, method = (settings[key] if key in rest else "" for key in ("model", "method"))
    if key in TrainSpec.model_fields:
        return (model, method)
    if key in ("attention", "base", "results"):
        return (model, method, _control(settings, rest))
    return (_NO_TRAIN if key == "m_train" and settings["m_train"] == "0" else "",)


def usual_settings(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A sentence on the settings that some rows name and most do not; empty if there are none.

    ``rows`` are pairs of a row's name and its ``RowKey.unnamed``.
    """
    rows_of: dict[str, list[str]] = {}
    for name, unnamed in rows:
        for text in unnamed:
            rows_of.setdefault(text, []).append(name)
    values = Counter(text.partition("=")[0] for text in rows_of)
    defaults = [
        text if values[text.partition("=")[0]] == 1 else f"{text} ({'; '.join(names)})"
        for text, names in rows_of.items()
    ]
    return f"Unless a row says otherwise: {', '.join(defaults)}." if defaults else ""


def by_seed(runs: Sequence[Record]) -> dict[int, list[Record]]:
    """The runs of each seed, which share its data and differ at most in their train seed."""
    groups: dict[int, list[Record]] = defaultdict(list)
    for run in runs:
        groups[run.seed].append(run)
    return {seed: groups[seed] for seed in sorted(groups)}


def ranks_by_seed(runs: Sequence[Record], scoring: Scoring) -> dict[int, list[HeldOut]]:
    """The ranks of the runs of each seed, which intervals and tests use.

    Raises:
        UserError: a run was not scored in this way, or runs of one seed ask about different people.
    """
    if lacking := [run.run for run in runs if scoring not in run.held_out]:
        raise UserError(f"{lacking[0]} has no scores of {scoring}. Choose another scoring, or leave the run out.")
    for seed, of_seed in by_seed(runs).items():
        if len({tuple(run.held_out[scoring].subject) for run in of_seed}) > 1:
            names = " and ".join(dict.fromkeys(run.run for run in of_seed))
            raise UserError(f"Runs of seed {seed} ask about different people, so they are not averaged: {names}.")
    return {seed: [run.held_out[scoring] for run in of_seed] for seed, of_seed in by_seed(runs).items()}


def is_control(record: Record) -> bool:
    """Whether there was nothing consistent to infer from."""
    return record.data.variant != "real" or record.data.m_train == 0


class NoEntailments:
    """The no-entailment controls among some records, looked up by the run that they belong to.

    Such a control has all settings of the run except the variant. In results older than the variant it may be a run
    with ``m_train`` = 0, which also lacks the train subjects; that is used if there is no other.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._runs: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
        for record in records:
            if record.data.variant == "no-entailment" or record.data.m_train == 0:
                self._runs[_but_control(record, bool(record.data.m_train))].append(record)

    def of(self, run: Record) -> list[Record]:
        """The controls of a run and of its other seeds; empty if there are none."""
        return self._runs.get(_but_control(run, True)) or self._runs.get(_but_control(run, False), [])


def _but_control(record: Record, m_train: bool) -> tuple[Any, ...]:
    settings = settings_of(record)
    alike = set(_DISTINGUISHING) - ({"variant"} if m_train else {"variant", "m_train"})
    stated = tuple(sorted((key, value) for key, value in settings.items() if key in alike or key not in FILTER_KEYS))
    return m_train, record.association, record.association_digest, stated


def by_association(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by association in column order, each sorted by seed and train seed."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.seed, record.training_seed)):
        groups[record.association].append(record)
    return {name: groups[name] for name in column_order(groups)}


def column_order(names: Iterable[str]) -> list[str]:
    """Associations in the published order, then others by name."""
    there = set(names)
    return [name for name in PUBLISHED_ORDER if name in there] + sorted(there - set(PUBLISHED_ORDER))


def shared_protocol(records: Sequence[Record], keys: Sequence[str]) -> dict[str, str]:
    """The fields of the data protocol that have the same value in all records, with it; none of a table of facts."""
    if any(record.structure == "facts" for record in records):
        return {}  # people, groups and candidates are those of the table
    values = {key: {getattr(record.data, key) for record in records} for key in keys}
    return {key: text_of(next(iter(of))) for key, of in values.items() if len(of) == 1}
