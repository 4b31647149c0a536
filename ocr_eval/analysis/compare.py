"""Two sets of runs against each other, paired by seed. Pure.

A side may be one run, or a sweep over models, ranks ...: settings that vary within a side are matched across sides, and
those that differ between the sides are compared.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ocr_eval.analysis.difference import Difference, comparisons, difference, matched, too_few, verdicts
from ocr_eval.analysis.intervals import LEVEL, Estimate, of_metric, t_quantile
from ocr_eval.common.errors import UserError
from ocr_eval.records.record import Record
from ocr_eval.records.rows import by_association, group_rows, ranks_by_seed
from ocr_eval.records.select import ROW_KEYS, natural, settings_of
from ocr_eval.specs.run import Scoring

#: Settings that follow from others, so that they never define what is compared.
_IDENTITIES = ("base", "results", "code", "seed", "train_seed")


@dataclass(frozen=True)
class Contrast:
    """One association under one setting that both sides have.

    Attributes:
        unit: what was matched, e.g. the model; empty if each side has one setting.
        a: OCR score of the first side, on the subjects that both have.
        b: OCR score of the second side, on the same subjects.
        paired: a minus b, seed by seed, on the same subjects.
        matched: the same at matched learning, each run at the first epoch at which all its premises held; None if they
            never held in some run.
        premises_hold: whether every run of both sides learned what it was taught.
        unlike: further differences between the sides: precision, or the results version.
    """

    unit: str
    association: str
    a: Estimate
    b: Estimate
    paired: Difference
    matched: Difference | None
    premises_hold: bool
    unlike: tuple[str, ...]

    @property
    def name(self) -> str:
        """Association and unit in one line."""
        return _named(self.unit, self.association)


def contrast(a: Sequence[Record], b: Sequence[Record], scoring: Scoring) -> list[Contrast]:
    """Compare what both sides have.

    Raises:
        UserError: nothing in common, or it is unclear which settings of the sides belong together.
    """
    sides = _units(a, b)
    contrasts = []
    for unit in sorted(sides[0].keys() & sides[1].keys(), key=lambda unit: tuple(map(natural, unit))):
        first, second = (by_association(side[unit]) for side in sides)
        common = [name for name in first if name in second]
        contrasts += [_contrast(", ".join(unit), name, first[name], second[name], scoring) for name in common]
    if not contrasts:
        raise UserError(
            f"The sides have nothing in common: {_names(a)} against {_names(b)}. Narrow or widen one of them."
        )
    return contrasts


def left_out(a: Sequence[Record], b: Sequence[Record]) -> str:
    """What is not compared because only one side has it, in a sentence; empty if there is nothing."""
    have = [
        {_named(", ".join(u), name) for u, of in side.items() for name in by_association(of)} for side in _units(a, b)
    ]
    alone = sorted(have[0] ^ have[1], key=natural)
    return f"Not compared, because only one side has it: {_first(alone)}." if alone else ""


Unit = tuple[str, ...]


def _units(a: Sequence[Record], b: Sequence[Record]) -> tuple[Mapping[Unit, list[Record]], Mapping[Unit, list[Record]]]:
    """Both sides by what is matched: nothing, the model, or all that varies within a side."""
    varying = [key for key in ROW_KEYS if key not in _IDENTITIES and any(len(_values(s, key)) > 1 for s in (a, b))]
    for keys in ([], ["model"], varying):
        sides = tuple(_by_keys(records, keys) for records in (a, b))
        one_setting = all(len(group_rows(records)) == 1 for side in sides for records in side.values())
        if one_setting and sides[0].keys() & sides[1].keys():
            return sides[0], sides[1]
    versions = sorted({record.results_version for record in (*a, *b)})
    mixed = (
        f"Runs of results versions {' and '.join(map(str, versions))} are never averaged, because numbers changed in "
        f"between, so a side with both cannot be paired. Choose one, for example --filter results={versions[-1]}. "
    )
    raise UserError(
        f"It is unclear what to compare: the first side has {_names(a)}; the second {_names(b)}. "
        f"{mixed * (len(versions) > 1)}Narrow them with conditions such as 'lr=1e-3', or with --filter."
    )


def _values(records: Sequence[Record], key: str) -> set[str]:
    return {settings_of(record)[key] for record in records}


def _by_keys(records: Sequence[Record], keys: Sequence[str]) -> dict[Unit, list[Record]]:
    groups: dict[Unit, list[Record]] = defaultdict(list)
    for record in records:
        settings = settings_of(record)
        groups[tuple(settings[key] if key == "model" else f"{key}={settings[key]}" for key in keys)].append(record)
    return groups


def _names(records: Sequence[Record]) -> str:
    names = [f"{key.name} on {', '.join(by_association(rows))}" for key, rows in group_rows(records).items()]
    return _first(names)


def _named(unit: str, association: str) -> str:
    return f"{association} ({unit})" if unit else association


def _first(names: Sequence[str]) -> str:
    return "; ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _contrast(unit: str, association: str, a: Sequence[Record], b: Sequence[Record], scoring: Scoring) -> Contrast:
    ranks = [ranks_by_seed(runs, scoring) for runs in (a, b)]
    try:
        both = matched(*ranks).values()
        paired = difference(*ranks)
    except ValueError as error:
        raise UserError(f"{association}: {error}. Pair runs with the same seed and data protocol.") from error
    early = [[at for run in runs if (at := run.when_matched())] for runs in (a, b)]
    all_learned = all(len(at) == len(runs) for at, runs in zip(early, (a, b), strict=True))
    return Contrast(
        unit,
        association,
        a=of_metric([of_a for of_a, _ in both]),
        b=of_metric([of_b for _, of_b in both]),
        paired=paired,
        matched=difference(*(ranks_by_seed(runs, scoring) for runs in early)) if all_learned else None,
        premises_hold=all(run.premises_hold for run in (*a, *b)),
        unlike=tuple(
            f"{name} ({' against '.join(sides)})"
            for name, key in (("precision", "dtype"), ("results version", "results"), ("attention", "attention"))
            if len(set(sides := [", ".join(sorted(_values(runs, key))) for runs in (a, b)])) > 1
        )
        + (("the content of the association",) if len({run.association_digest for run in (*a, *b)}) > 1 else ()),
    )


def gate(contrasts: Sequence[Contrast], most: float) -> Literal["passed", "failed", "undecided"]:
    """Failed if A minus B is shown to be above ``most`` on any association, at the last epoch.

    That is, if an interval whose level is corrected for the number of them (Bonferroni) is above. Passed if each 95 %
    interval is below, which needs no correction. Otherwise undecided: too few seeds for the difference, or for an
    interval at all, or a run that did not learn.
    """
    bounds = [each.paired.value.bounds if each.premises_hold else None for each in contrasts]
    tests = sum(each.paired.value.bounds is not None for each in contrasts)
    if any(each.premises_hold and (low := _low(each.paired, tests)) is not None and low > most for each in contrasts):
        return "failed"
    return "passed" if all(of is not None and of[1] <= most for of in bounds) else "undecided"


def _low(apart: Difference, tests: int) -> float | None:
    """Lower bound of the interval over seeds at 1 - (1 - LEVEL) / ``tests``; None from a single seed."""
    if apart.value.low is None:
        return None
    wider = t_quantile(apart.seeds - 1, 1 - (1 - LEVEL) / 2 / tests) / t_quantile(apart.seeds - 1, (1 + LEVEL) / 2)
    return apart.value.value - wider * (apart.value.value - apart.value.low)


_WORDS = {1: "above B", -1: "below B", 0: "not shown to differ from B"}


def verdict(contrasts: Sequence[Contrast]) -> str:
    """Where A is above B, below, or neither is shown; and where matched learning says otherwise.

    p is corrected over associations, separately for the last epoch and for matched learning: also over those without a
    verdict, because only the outcome shows which runs learn.
    """
    paired = {each.name: each.paired for each in contrasts}
    matched = {each.name: each.matched for each in contrasts if each.matched is not None}
    signs, early = (dict(zip(of, verdicts(list(of.values())), strict=True)) for of in (paired, matched))
    last = {each.name: signs[each.name] for each in contrasts if each.premises_hold}
    parts = _parts(last, paired)
    unsaid = [each.name for each in contrasts if not each.premises_hold]
    if unsaid:
        parts.append(f"not comparable on {', '.join(unsaid)}, where a run did not learn what it was taught")
    sentences = [f"A is {'; '.join(parts)}."] if parts else []
    undecided = [name for name, sign in last.items() if sign is None]
    if undecided:
        tests = dict(zip(paired, comparisons(list(paired.values())), strict=True))
        fewest = min(undecided, key=lambda name: paired[name].seeds)
        sentences.append(f"No verdict on {', '.join(undecided)}: {too_few(paired[fewest].seeds, tests[fewest])}.")
    otherwise = {name: sign for name, sign in early.items() if sign is not None and sign != last.get(name)}
    if otherwise:
        sentences.append(f"At matched learning A is {'; '.join(_parts(otherwise, matched))}.")
    unlike = sorted({what for each in contrasts for what in each.unlike})
    if unlike:
        sentences.append(f"The sides also differ in {' and '.join(unlike)}.")
    return " ".join(sentences)


def _parts(signs: Mapping[str, int | None], of: Mapping[str, Difference]) -> list[str]:
    named = {name: f"{name} ({of[name].value.value:+.2f})" if sign else name for name, sign in signs.items()}
    return [
        f"{words} on {', '.join(named[name] for name, found in signs.items() if found == sign)}"
        for sign, words in _WORDS.items()
        if sign in signs.values()
    ]
