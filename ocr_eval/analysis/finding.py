"""What a table shows, in one sentence: what was inferred, and was it because of what was taught. Pure.

What was inferred (the OCR score, its p corrected by Holm for all cells that are looked at) may have been known before:
a model infers French for Paris if no French is taught. So the sentence also says the lift over the no-entailment
control, and "it generalized" and "it hallucinated" need that lift where there is such a control.
"""

from collections.abc import Sequence

from ocr_eval.analysis.lift import Lift
from ocr_eval.analysis.significance import SIGNIFICANT
from ocr_eval.analysis.table import Cell, Table
from ocr_eval.methods.method import advice, method_of
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import TrainSpec

#: What an inference over a link of each kind is called, and what its absence is.
_READINGS: dict[Kind, tuple[str, str, str]] = {
    "causal": ("a true link", "it generalized", "it did not clearly generalize"),
    "counterfactual": ("a false link", "it hallucinated", "it did not clearly hallucinate"),
    "spurious": ("an arbitrary link", "it hallucinated", "it did not clearly hallucinate"),
    "unclassified": ("an unclassified link", "it inferred", "it did not clearly infer"),
}


def finding(table: Table) -> str:
    """A sentence for a single row of the table; counts of cells for several. Controls do not count.

    No verdict is given from one seed, nor where a run did not learn what it was taught.
    """
    rows = [[(name, row.cells[name]) for name in table.associations if name in row.cells] for row in table.rows]
    rows = [[(name, cell) for name, cell in row if cell.method and not cell.control] for row in rows]
    rows = [row for row in rows if row]
    tests = sum(cell.p_holm is not None for row in rows for _, cell in row)
    of_kind = [[(name, cell) for row in rows for name, cell in row if cell.kind == kind] for kind in _READINGS]
    if len(rows) == 1:
        parts = [_clause(name, cell, tests) for cells in of_kind for name, cell in cells]
    else:
        parts = [_count([cell for _, cell in cells]) for cells in of_kind if cells]
    return "; ".join(parts) + "." if parts else ""


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


def _clause(association: str, cell: Cell, tests: int) -> str:
    """What a cell shows, among so many that p is corrected for."""
    link, yes, no = _READINGS[cell.kind or "unclassified"]
    where = f"on {association} ({link})"
    if cell.unlearned:
        of = "" if cell.unlearned == cell.runs else f" in {cell.unlearned} of {cell.runs} runs"
        return f"{where} what was taught was not learned{of}, so there is no conclusion ({advice(cell.method)})"
    p = f", p {cell.p:.2g}"
    if cell.seeds == 1:
        said, p = "no verdict from one seed", ""
    elif cell.p_holm is None:
        said = "too few groups to tell"
    else:
        p = f", {_p(cell.p_holm, tests)}"
        if not cell.inferred:
            said = no
        elif cell.lift is None:
            said = f"{yes}{', or knew it before' * (cell.kind == 'causal')}"
        else:
            said = {1: yes, None: "it inferred"}.get(cell.lift.sign, f"it inferred, and {no.removeprefix('it ')}")
    return (
        f"{where} {said}: the held-out answer ranks {cell.values['mean-rank']:.2f}, "
        f"null {cell.values['null-rank']:.2f} (OCR score {cell.values['ocr-score']:+.2f}{p}; {_lift(cell.lift)})"
    )


def _lift(lift: Lift | None) -> str:
    """What was inferred beyond the control, and whether that is shown."""
    if lift is None:
        return "no control to compare with"
    if lift.control_unlearned:
        of = f"{lift.control_unlearned} of {lift.control_runs} control runs"
        told = f"no verdict as {of} did not learn the facts"
    elif lift.sign is None:
        lifts = "a lift takes" if lift.comparisons == 1 else f"{lift.comparisons} lifts take"
        told = f"no verdict from {lift.seeds} seed{'s' * (lift.seeds > 1)} ({lifts} {lift.seeds_needed})"
    else:
        told = _p(lift.p_holm or 0.0, lift.comparisons)
    return f"{lift.value.value:+.2f} over no entailments, {told}"


def _p(p: float, tests: int) -> str:
    return f"{'corrected ' * (tests > 1)}p {p:.2g}"


def _count(cells: Sequence[Cell]) -> str:
    """How many cells of one kind show inference, and what they add to their controls."""
    link = _READINGS[cells[0].kind or "unclassified"][0]
    learned = [cell for cell in cells if not cell.unlearned]
    alone = [cell for cell in learned if cell.seeds == 1]
    able = [cell for cell in learned if cell.p_holm is not None]
    more = " more" * bool(able)
    left_out, unable = len(cells) - len(learned), len(learned) - len(alone) - len(able)
    rest = [f"{left_out}{more} had runs that did not learn what they were taught"] if left_out else []
    rest += [f"{unable}{more} had too few groups to tell"] if unable else []
    if alone:
        seen = _range([cell.values["ocr-score"] for cell in alone])
        rest += [f"{len(alone)}{more} had one seed, which gives no verdict, OCR score {seen}"]
    if not able:
        return f"over {link} there is no conclusion ({', '.join(rest)})"
    inferred = sum(cell.inferred for cell in able)
    lifts = [cell.lift for cell in able if cell.lift is not None]
    note = ", ".join([f"p at most {SIGNIFICANT:g} after Holm", *rest])
    return f"over {link} {inferred} of {len(able)} cells show inference ({note}), {_lifts(lifts, len(able))}"


def _lifts(lifts: Sequence[Lift], cells: int) -> str:
    """What was inferred beyond the controls, in how many cells there are any, and in how many that is shown."""
    if not lifts:
        return "no control to compare with"
    where = "the one that has a control" if len(lifts) == 1 else f"the {len(lifts)} that have a control"
    where = "" if len(lifts) == cells else f" in {where}"
    told = [f"{sum(lift.sign == 1 for lift in lifts) or 'none'} shown"]
    forgot = sum(lift.control_unlearned > 0 for lift in lifts)
    few = sum(lift.sign is None for lift in lifts) - forgot
    told += [f"no verdict on {forgot} whose control did not learn the facts"] if forgot else []
    told += [f"no verdict on {few} from so few seeds"] if few else []
    return f"{_range([lift.value.value for lift in lifts])} over no entailments{where} ({', '.join(told)})"


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:+.2f}" for value in (min(values), max(values))))
