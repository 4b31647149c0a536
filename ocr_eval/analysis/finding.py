"""What a table shows, in one sentence: what was inferred, and whether because of what was taught. Pure.

What was inferred (the OCR score, its p Holm-corrected over all cells shown) may have been known before: a model infers
French for Paris even if no French is taught. So the sentence also reports the lift over the no-entailment control; if
there is one, "it generalized" and "it hallucinated" require that lift.
"""

from collections.abc import Sequence

from ocr_eval.analysis.lift import Lift
from ocr_eval.analysis.significance import SIGNIFICANT
from ocr_eval.analysis.table import Cell, Table
from ocr_eval.common.messages import in_a_row
from ocr_eval.methods.method import advice, method_of
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import TrainSpec

#: What a link of each kind is called, what an inference over it, and what its absence.
_READINGS: dict[Kind, tuple[str, str, str]] = {
    "causal": ("a true link", "it generalized", "it did not clearly generalize"),
    "counterfactual": ("a false link", "it hallucinated", "it did not clearly hallucinate"),
    "spurious": ("an arbitrary link", "it hallucinated", "it did not clearly hallucinate"),
    "unclassified": ("an unclassified link", "it inferred", "it did not clearly infer"),
}


def finding(table: Table) -> str:
    """A sentence for a table with one row; a few, with counts of cells, if it has several. Controls do not count.

    There is no verdict from one seed, or if a run did not learn what it was taught.
    """
    rows = [[(name, row.cells[name]) for name in table.associations if name in row.cells] for row in table.rows]
    rows = [[(name, cell) for name, cell in row if cell.method and not cell.control] for row in rows]
    rows = [row for row in rows if row]
    tests = sum(cell.p_holm is not None for row in rows for _, cell in row)
    of_kind = [[(name, cell) for row in rows for name, cell in row if cell.kind == kind] for kind in _READINGS]
    if len(rows) > 1:
        return _counts([[cell for _, cell in cells] for cells in of_kind if cells])
    parts = [_clause(name, cell, tests) for cells in of_kind for name, cell in cells]
    return "; ".join(parts) + "." if parts else ""


def remedy(losses: Sequence[float], train: TrainSpec) -> str:
    """What to change if a run did not learn what it was taught.

    ``losses`` are those of its epochs, in order; empty if its metrics are lost.
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
    """What a cell shows; its p is corrected for ``tests`` cells."""
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
    """What was inferred beyond the control, and whether it is significant."""
    if lift is None:
        return "no control to compare with"
    if lift.control_unlearned:
        of = f"{lift.control_unlearned} of {lift.control_runs} control runs"
        outcome = f"no verdict as {of} did not learn the facts"
    elif lift.sign is None:
        lifts = "a lift takes" if lift.comparisons == 1 else f"{lift.comparisons} lifts take"
        outcome = f"no verdict from {lift.seeds} seed{'s' * (lift.seeds > 1)} ({lifts} {lift.seeds_needed})"
    else:
        outcome = _p(lift.p_holm or 0.0, lift.comparisons)
    return f"{lift.value.value:+.2f} over no entailments, {outcome}"


def _p(p: float, tests: int) -> str:
    return f"{'corrected ' * (tests > 1)}p {p:.2g}"


def _counts(of_kind: Sequence[Sequence[Cell]]) -> str:
    """How many cells of each kind show an inference, what the entailments add, and which cells have no verdict."""
    every = [cell for cells in of_kind for cell in cells]
    learned = [cell for cell in every if not cell.unlearned]
    alone = [cell for cell in learned if cell.seeds == 1]
    shown = [
        f"in {sum(cell.inferred for cell in able)} of {len(able)} cells over {_links(cells[0])}"
        for cells in of_kind
        if (able := [cell for cell in cells if _decides(cell)])
    ]
    said = [
        f"Inference is shown {in_a_row(shown)} (p at most {SIGNIFICANT:g} after Holm)" if shown else "No conclusion"
    ]
    gained, lifts = [], []
    for cells in of_kind:
        if added := [cell.lift for cell in cells if _decides(cell) and cell.lift is not None]:
            gained.append(f"{_range([lift.value.value for lift in added])} over {_links(cells[0])}")
            lifts += added
    if lifts:
        said.append(f"Teaching entailments adds {in_a_row(gained)}; {_verdicts(lifts)}")
    elif shown:
        said.append("There is no control to compare with")
    rest = []
    if alone:
        rest.append(f"{len(alone)} with one seed (OCR score {_range([cell.values['ocr-score'] for cell in alone])})")
    if unlearned := len(every) - len(learned):
        rest.append(f"{unlearned} with runs that did not learn what they were taught")
    if few := len(learned) - len(alone) - sum(map(_decides, every)):
        rest.append(f"{few} with too few groups to tell")
    if rest:
        said.append(f"Without a verdict: {in_a_row(rest)}")
    return ". ".join(said) + "."


def _decides(cell: Cell) -> bool:
    """Whether a cell can show an inference or its absence."""
    return not cell.unlearned and cell.p_holm is not None


def _verdicts(lifts: Sequence[Lift]) -> str:
    """How many lifts are significant, and why others have no verdict."""
    forgot = sum(lift.control_unlearned > 0 for lift in lifts)
    few = sum(lift.sign is None for lift in lifts) - forgot
    why = [f"in {forgot} a control run did not learn its facts"] if forgot else []
    why += [f"{few} {'has' if few == 1 else 'have'} too few seeds"] if few else []
    shown, below = (sum(lift.sign in signs for lift in lifts) for signs in ((1, -1), (-1,)))
    verb = "are" if shown > 1 else "is"
    negative = f" ({below} of them negative)" if below else ""
    return f"{shown or 'none'} of {len(lifts)} lifts {verb} significant{negative}{': ' * bool(why)}{in_a_row(why)}"


def _links(cell: Cell) -> str:
    return _READINGS[cell.kind or "unclassified"][0].split(" ", 1)[1] + "s"


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:+.2f}" for value in (min(values), max(values))))
