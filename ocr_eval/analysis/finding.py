"""What a set of records shows, in one sentence: what was inferred, and was it because of what was taught. Pure.

What was inferred (the OCR score, its p corrected by Holm for all cells that are looked at) may have been known before:
a model infers French for Paris if no French is taught. So the sentence also says the lift over the no-entailment
control, and "it generalized" and "it hallucinated" need that lift where there is such a control.
"""

from collections.abc import Sequence

from ocr_eval.analysis.difference import verdicts
from ocr_eval.analysis.significance import SIGNIFICANT
from ocr_eval.analysis.table import Cell, Row, Table, make_cells
from ocr_eval.methods.method import advice, method_of
from ocr_eval.records.record import Record
from ocr_eval.records.select import NoEntailments, by_association, is_control
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import Scoring

#: What an inference over a link of each kind is called, and what its absence is.
_READINGS: dict[Kind, tuple[str, str, str]] = {
    "causal": ("a true link", "it generalized", "it did not clearly generalize"),
    "counterfactual": ("a false link", "it hallucinated", "it did not clearly hallucinate"),
    "spurious": ("an arbitrary link", "it hallucinated", "it did not clearly hallucinate"),
    "unclassified": ("an unclassified link", "it inferred", "it did not clearly infer"),
}


def finding(records: Sequence[Record], table: Table) -> str:
    """A sentence for a single row of the table of some records; counts of cells for several. Controls do not count."""
    rows = [row for row in table.rows if any(cell.method and not cell.control for cell in row.cells.values())]
    if len(rows) == 1:
        parts = _clauses(records, rows[0], table.scoring)
    else:
        cells = [cell for row in rows for cell in row.cells.values() if not cell.control]
        parts = [_count(kind, [cell for cell in cells if cell.kind == kind]) for kind in _READINGS]
    return "; ".join(part for part in parts if part) + "." if any(parts) else ""


def remedy(losses: Sequence[float], train: TrainSpec) -> str:
    """What to change where a run did not learn what it was taught.

    Args:
        losses: of its epochs, in order; none where the run's lines are lost.
    """
    if method_of(train).needs.once:
        return f"What to try: {advice(train.method)}."
    if not losses:
        return f"Raise --epochs (now {train.epochs}), or try another --lr (now {train.lr:g})."
    best = min(losses)
    if losses[-1] > 1.2 * best:
        return f"The loss rose again after epoch {losses.index(best) + 1}: lower --lr (now {train.lr:g})."
    if len(losses) == 1 or losses[-1] < 0.97 * losses[-2]:
        return f"The loss was still falling: raise --epochs (now {train.epochs}) or --lr (now {train.lr:g})."
    return f"The loss stopped falling at {losses[-1]:.2g}: try another --lr (now {train.lr:g}), a higher one first."


def _clauses(records: Sequence[Record], row: Row, scoring: Scoring) -> list[str]:
    """What the runs of each association show that learned what they were taught; cells of their own if not all did."""
    real = [record for record in records if not is_control(record)]
    every = sorted(by_association(real).values(), key=lambda runs: list(_READINGS).index(runs[0].kind))
    learned = [[run for run in runs if run.premises_hold] for runs in every]
    if all(run.premises_hold for run in real):
        return [_clause(runs, len(runs), row.cells[runs[0].association]) for runs in every]
    cells = iter(make_cells([runs for runs in learned if runs], scoring, (), NoEntailments(records)))
    return [_clause(runs, len(of), next(cells) if of else None) for runs, of in zip(every, learned, strict=True)]


def _clause(runs: Sequence[Record], learned: int, cell: Cell | None) -> str:
    link, yes, no = _READINGS[runs[0].kind]
    where = f"on {runs[0].association} ({link})"
    if cell is None:
        return f"{where} what was taught was not learned, so there is no conclusion ({advice(runs[0].train.method)})"
    left_out = f", leaving out {len(runs) - learned} of {len(runs)} runs that did not learn what they were taught,"
    if cell.p_holm is None:
        said = "too few groups to tell"
    elif not cell.inferred:
        said = no
    elif cell.lift is None:
        said = f"{yes}{', or knew it before' * (runs[0].kind == 'causal')}"
    else:
        said = {1: yes, None: "it inferred"}.get(verdicts([cell.lift])[0], f"it inferred, and {no.removeprefix('it ')}")
    return (
        f"{where}{left_out if learned < len(runs) else ''} {said}: "
        f"the held-out answer ranks {cell.values['mean-rank']:.2f}, null {cell.values['null-rank']:.2f} "
        f"(OCR score {cell.values['ocr-score']:+.2f}, p {cell.p:.2g}; {_lift(cell)})"
    )


def _lift(cell: Cell) -> str:
    """What the control adds."""
    if cell.lift is None:
        return "no control to compare with"
    seeds = f"{cell.lift.seeds} seed{'s' * (cell.lift.seeds > 1)}"
    told = f"no verdict from {seeds}" if cell.lift.p is None else f"p {cell.lift.p:.2g}"
    return f"{cell.lift.value.value:+.2f} over no entailments, {told}"


def _count(kind: Kind, cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    learned = [cell for cell in cells if not cell.unlearned]
    able = [cell for cell in learned if cell.p_holm is not None]
    left_out, unable = len(cells) - len(learned), len(learned) - len(able)
    rest = f" ({left_out} more had runs that did not learn what they were taught)" if left_out else ""
    rest += f" ({unable} more had too few groups to tell)" if unable else ""
    link = _READINGS[kind][0]
    if not able:
        return f"over {link} there is no conclusion{rest.replace(' more', '')}"
    lifts = sorted(cell.lift.value.value for cell in able if cell.lift is not None)
    ends = dict.fromkeys(f"{lift:+.2f}" for lift in (lifts[:1] + lifts[-1:]))
    lift = f", {' to '.join(ends)} over no entailments" if lifts else ", no control to compare with"
    inferred = sum(cell.inferred for cell in able)
    return (
        f"over {link} {inferred} of {len(able)} cells show inference (p at most {SIGNIFICANT:g} after Holm){lift}{rest}"
    )
