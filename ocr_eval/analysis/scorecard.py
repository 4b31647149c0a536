"""Methods and preventions on one card: wanted inference against unwanted inference. Pure functions of records.

A row is a model under one setting. Links are of three kinds: true ones, which a model should infer, and arbitrary and
false ones, which it should not. The associations of a kind are averaged within each seed. Each row is compared with the
reference of its model over the associations and seeds that both have: at the last epoch, and at matched learning, each
run at the first epoch at which all its premises held. The reference is LoRA without prevention, if present; of several,
with other rates for example, the one from which all rows differ in the fewest settings. The reference at matched
learning is also a row: stopping there costs nothing, so a prevention must do better.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import msgspec

from ocr_eval.analysis.difference import Difference, corrected, mean_difference, power, too_few, verdicts
from ocr_eval.analysis.intervals import WITHIN, Estimate, averaged, estimate, units_of
from ocr_eval.analysis.lift import Lift, decided, lift_over
from ocr_eval.analysis.significance import seeds_needed
from ocr_eval.analysis.table import mean_of_keys, measured
from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import in_a_row
from ocr_eval.methods.prevention import preventions_of
from ocr_eval.records.record import Record
from ocr_eval.records.rows import NoEntailments, RowKey, by_association, group_rows, is_control, ranks_by_seed
from ocr_eval.records.select import settings_of
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import DataSpec, Scoring

KINDS: Mapping[Kind, str] = {
    "causal": "true",
    "spurious": "arbitrary",
    "counterfactual": "false",
    "unclassified": "unclassified",
}

Runs = Mapping[str, Sequence[Record]]  # by association


@dataclass(frozen=True)
class Links:
    """The links of one kind under one row.

    Attributes:
        score: OCR score, averaged over associations within each seed that all of them have.
        seeds: number of seeds that all of them have.
        all_seeds: number of seeds that any of them has; the score uses only those that all have.
        lift: score minus that of the row's own no-entailment control, its verdict corrected for all rows' lifts over
            this kind of link; None unless every association has the control.
        against: score minus that of the reference; None for the reference, and if they share no people.
        against_p_holm: its p, corrected for all rows that could be compared; None with too few seeds.
        matched: ``against`` at matched learning; also None if the premises of a run never held.
        matched_p_holm: its p, corrected like ``against_p_holm``.
    """

    associations: tuple[str, ...]
    score: Estimate
    seeds: int
    all_seeds: int
    lift: Lift | None
    against: Difference | None
    against_p_holm: float | None
    matched: Difference | None
    matched_p_holm: float | None


@dataclass(frozen=True)
class ScorecardRow:
    """A model under one setting.

    Attributes:
        name: model and setting.
        unnamed: settings that other rows of the model name, and this one does not (``rows.RowKey``).
        reference: name of the row that it is compared with; the reference names itself.
        unlearned: number of runs in which a premise does not hold; a row with any is not compared.
        premises: mean top-1 of each premise.
        links: by kind, for the kinds that it has runs of.
        measures: mean of each number that measures found in all of its runs, as ``<measure>.<key>``.
        seconds: mean wall time of training a run; None for external training.
        memory: mean ``peak`` of the training process, in bytes, and mean number of ``runs`` it trained side by side;
            empty if a record lacks them.
        control: whether no entailments were taught, which makes it a baseline and not a method.
        knows_relation: whether a prevention uses the unwanted relation itself; None if one is not installed, or for
            external training.
    """

    name: str
    unnamed: tuple[str, ...]
    reference: str
    runs: int
    unlearned: int
    premises: Mapping[str, float]
    links: Mapping[Kind, Links]
    measures: Mapping[str, float]
    seconds: float | None
    memory: Mapping[str, float]
    control: bool
    knows_relation: bool | None


def build_scorecard(records: Sequence[Record], scoring: Scoring) -> list[ScorecardRow]:
    """The rows of the real records and their no-entailment controls, each model's reference first.

    Raises:
        UserError: neither of these among the records, or a row whose associations share no seed.
    """
    taught = [record for record in records if record.data.variant in ("real", "no-entailment")]
    if not taught:
        raise UserError("These runs are all shuffled controls or parts of grafts. Name folders with some real runs.")
    controls = NoEntailments(taught)
    groups = group_rows(taught)
    of_model: dict[tuple[str, ...], dict[RowKey, list[Record]]] = defaultdict(dict)
    for key, runs in groups.items():
        of_model[key.labels][key] = runs
    references = {labels: _reference(of) for labels, of in of_model.items()}
    rows = []
    for key in sorted(groups, key=lambda key: (list(of_model).index(key.labels), key != references[key.labels])):
        runs, first_name, first = groups[key], references[key.labels].name, groups[references[key.labels]]
        rows.append(_row(key.name, key.unnamed, runs, first_name, first, controls, scoring))
        early = [at for run in runs if (at := _stopped(run))]
        if key.name == first_name and len(early) == len(runs) and not is_control(runs[0]):
            stopped = f"{key.name}, stopped when learned"  # no control ended at the same epochs
            rows.append(_row(stopped, key.unnamed, early, first_name, first, NoEntailments([]), scoring))
    return _corrected(rows)


def _reference(rows: Mapping[RowKey, Sequence[Record]]) -> RowKey:
    """The row of a model that the others are compared with."""
    varied = (*TrainSpec.model_fields, *DataSpec.model_fields)
    settings = {key: settings_of(runs[0]) for key, runs in rows.items()}
    first = next(iter(settings.values()))
    alike = [key for key, of in settings.items() if all(of[k] == first[k] for k in ("method", "prevent", "variant"))]

    def apart(key: RowKey) -> int:
        return sum(settings[key][k] != of[k] for of in settings.values() for k in varied)

    return min(alike, key=apart)


def _corrected(rows: Sequence[ScorecardRow]) -> list[ScorecardRow]:
    """The rows with p of lifts and of differences from the reference corrected for all of a kind of link."""
    lifts = {kind: iter(decided([of.lift for row in rows if (of := row.links.get(kind))])) for kind in KINDS}
    ps: dict[tuple[Kind, str], dict[str, float | None]] = {}
    for kind in KINDS:
        for when in ("against", "matched"):
            paired = _paired(rows, kind, when)
            ps[kind, when] = dict(zip(paired, corrected(list(paired.values())), strict=True))

    def links(row: ScorecardRow, kind: Kind, of: Links) -> Links:
        against_p, matched_p = (ps[kind, when].get(row.name) for when in ("against", "matched"))
        return replace(of, lift=next(lifts[kind]), against_p_holm=against_p, matched_p_holm=matched_p)

    return [replace(row, links={kind: links(row, kind, of) for kind, of in row.links.items()}) for row in rows]


def _paired(
    rows: Sequence[ScorecardRow], kind: Kind, when: Literal["against", "matched"] = "against"
) -> dict[str, Difference]:
    """The differences, by row, that are compared over a kind of link, and so count in each other's correction."""
    of_row = {row.name: row.links[kind] for row in rows if _is_compared(row) and kind in row.links}
    return {name: apart for name, of in of_row.items() if (apart := getattr(of, when))}


def _is_compared(row: ScorecardRow) -> bool:
    return row.name != row.reference and not row.control


def _stopped(run: Record) -> Record | None:
    """A run as if it had ended when all premises first held; its time is that share of the whole run's."""
    early = run.when_matched()
    if early is None or run.matched is None or not isinstance(run.train, TrainSpec):
        return None
    seconds = {**run.seconds, "train": run.seconds["train"] * run.matched.epoch / run.train.epochs}
    return msgspec.structs.replace(early, seconds=seconds, matched=None, measures={})


def _row(
    name: str,
    unnamed: tuple[str, ...],
    runs: Sequence[Record],
    first_name: str,
    first: Sequence[Record],
    controls: NoEntailments,
    scoring: Scoring,
) -> ScorecardRow:
    of_kind, of_first = _by_kind(runs), _by_kind(first)
    return ScorecardRow(
        name=name,
        unnamed=unnamed,
        reference=first_name,
        runs=len(runs),
        unlearned=sum(not run.premises_hold for run in runs),
        premises=mean_of_keys([run.premises for run in runs]),
        links={
            kind: _links(name, of, None if name == first_name else of_first.get(kind), controls, scoring)
            for kind, of in of_kind.items()
        },
        measures=mean_of_keys([measured(run) for run in runs]),
        seconds=fmean(run.seconds["train"] for run in runs) if isinstance(runs[0].train, TrainSpec) else None,
        memory=mean_of_keys([run.memory for run in runs]),
        control=is_control(runs[0]),
        knows_relation=_knows_relation(runs[0]),
    )


def _by_kind(runs: Sequence[Record]) -> dict[Kind, Runs]:
    of_kind: dict[Kind, list[Record]] = defaultdict(list)
    for run in runs:
        of_kind[run.kind].append(run)
    return {kind: by_association(of_kind[kind]) for kind in KINDS if kind in of_kind}


def _links(name: str, runs: Runs, first: Runs | None, controls: NoEntailments, scoring: Scoring) -> Links:
    ranks = {association: ranks_by_seed(of, scoring) for association, of in runs.items()}
    seeds = set.intersection(*(set(of) for of in ranks.values()))
    if not seeds:
        raise UserError(
            f"{name}: {', '.join(ranks)} share no seed. Run the same --seeds for each, or select with --filter."
        )
    scores = [averaged([units_of(of[seed]) for of in ranks.values()]) for seed in sorted(seeds)]
    own = {association: found for association, of in runs.items() if (found := controls.of(of[0]))}
    return Links(
        tuple(runs),
        score=estimate(scores, WITHIN["ocr-score"]),
        seeds=len(seeds),
        all_seeds=len(set.union(*(set(of) for of in ranks.values()))),
        lift=None if is_control(next(iter(runs.values()))[0]) else _lift(runs, own, scoring),
        against=_apart(runs, first, scoring),
        against_p_holm=None,
        matched=_apart(_when_matched(runs), _when_matched(first), scoring),
        matched_p_holm=None,
    )


def _lift(runs: Runs, controls: Runs, scoring: Scoring) -> Lift | None:
    if len(controls) < len(runs):
        return None
    try:
        return lift_over([(runs[each], of) for each, of in controls.items()], scoring)
    except ValueError:
        return None


def _when_matched(runs: Runs | None) -> Runs:
    """The runs at matched learning; empty if one of them never reached it."""
    runs = runs or {}
    then = {name: [early for run in of if (early := run.when_matched())] for name, of in runs.items()}
    return then if all(len(early) == len(runs[name]) for name, early in then.items()) else {}


def _apart(a: Runs, b: Runs | None, scoring: Scoring) -> Difference | None:
    """One side minus the other over what both have; None if that is nothing, or people or groups differ."""
    b = b or {}
    ranks = [(ranks_by_seed(a[each], scoring), ranks_by_seed(b[each], scoring)) for each in a if each in b]
    if not ranks or not set.intersection(*(of_a.keys() & of_b.keys() for of_a, of_b in ranks)):
        return None
    try:
        return mean_difference(ranks)
    except ValueError:
        return None


def _knows_relation(run: Record) -> bool | None:
    if not isinstance(run.train, TrainSpec):
        return None
    try:
        return any(prevention.knows_relation for prevention in preventions_of(run.train))
    except UserError:
        return None


def comparable(rows: Sequence[ScorecardRow]) -> bool:
    """Whether any method or prevention is paired with its reference."""
    return any(of.against for row in rows if not row.control for of in row.links.values())


_WORDS = {-1: "less", 1: "more", 0: "no detectable difference"}


def verdict(rows: Sequence[ScorecardRow]) -> str:
    """The verdict on the rows against their reference, p corrected for all rows that could be compared over one kind.

    One sentence per line. Rows are named without their model if there is only one.

    A row has a verdict only if all of its runs and of the reference's learned what they were taught. The others count
    in the correction, because only the outcome shows which runs learn.
    """
    learned = {row.name for row in rows if not row.unlearned}
    compared = [row for row in rows if _is_compared(row)]
    fair = [row for row in compared if {row.name, row.reference} <= learned]
    of_row = {row.name: row for row in rows}
    model = next(iter(of_row), "").partition(", ")[0] if len({row.reference for row in rows}) == 1 else ""
    short = {name: name.removeprefix(f"{model}, ") for name in of_row}
    sentences, powers = [], set[tuple[int, int, int]]()
    undecided: dict[str, list[str]] = {}
    for kind, word in KINDS.items():
        paired = _paired(rows, kind)
        all_signs = dict(zip(paired, verdicts(list(paired.values())), strict=True))
        found = {row.name: paired[row.name] for row in fair if row.name in paired}
        signs = {name: all_signs[name] for name in found}
        for sign, said in _WORDS.items():
            names = [f"{short[name]} ({found[name].value.value:+.2f})" for name, of in signs.items() if of == sign]
            if names:
                about = f"Inference over {word} links, compared with the reference"
                sentences.append(f"{about}: {said} under {'; '.join(names)}.")
        tested = sum(of.p is not None for of in paired.values())
        tests = {name: tested + (of.p is None) for name, of in paired.items()}  # too few seeds are no test
        without = [name for name, sign in signs.items() if sign is None]
        for seeds, among in sorted({(found[name].seeds, tests[name]) for name in without}):
            alike = [short[name] for name in without if found[name].seeds == seeds]
            only = " for one of these rows alone" * (len(alike) > 1 and among > tested)
            undecided.setdefault(f"{too_few(seeds, among)}{only}: {'; '.join(alike)}", []).append(word)
        over = {name: _shared(of_row[name], of_row[of_row[name].reference], kind) for name in found}
        shown = {(of.seeds, tests[name], over[name]) for name, of in found.items() if signs[name] is not None}
        powers |= shown or {(seeds_needed(tests[name]), tests[name], over[name]) for name in found}
    sentences += [f"No verdict over {in_a_row(words)} links: {said}." for said, words in undecided.items()]
    sentences += [f"{said}." for each in sorted(powers) if (said := power(*each))]
    sentences += _left_out(rows, short)
    alone = [short[row.name] for row in fair if not any(of.against for of in row.links.values())]
    if alone:
        why = "they have no association or seed in common, or teach other people"
        sentences.append(f"Not paired with the reference, because {why}: {'; '.join(alone)}.")
    unfair = [short[row.name] for row in compared if row not in fair]
    if unfair:
        why = "a run of it or of the reference did not learn what it was taught"
        sentences.append(f"Not compared, because {why}: {'; '.join(unfair)}.")
    return "\n".join(sentences)


def _shared(row: ScorecardRow, reference: ScorecardRow, kind: Kind) -> int:
    """Number of associations over which a row is compared with its reference."""
    return len(set(row.links[kind].associations) & set(reference.links[kind].associations))


def _left_out(rows: Sequence[ScorecardRow], short: Mapping[str, str]) -> list[str]:
    """Which scores use fewer seeds than there are, and which other associations than their reference."""
    reference = {row.name: row for row in rows}
    under: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for kind, of in row.links.items():
            if of.seeds < of.all_seeds:
                common = f"those that {in_a_row(of.associations)} have in common"
                what = f"over {KINDS[kind]} links use only {of.seeds} of {of.all_seeds} seeds, {common}"
                under[what].append(short[row.name])
            against = reference[row.reference].links.get(kind)
            if against and set(against.associations) != set(of.associations):
                under[f"over {KINDS[kind]} links are of {in_a_row(of.associations)} alone"].append(short[row.name])
    return [f"Scores {what}: {'; '.join(names)}." for what, names in under.items()]
