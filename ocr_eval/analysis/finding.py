"""What a set of records shows, in one sentence: did the models generalize, did they hallucinate. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ocr_eval.analysis.table import Cell, Table, make_cells
from ocr_eval.records.record import Record
from ocr_eval.records.select import by_association
from ocr_eval.specs.association import Kind
from ocr_eval.specs.model import TrainSpec
from ocr_eval.specs.run import Scoring

#: A sentence says that facts were inferred when mean rank is below its null at this permutation p-value.
SIGNIFICANT = 0.05

#: What an inference over a link of each kind is called, and what its absence is.
_READINGS: dict[Kind, tuple[str, str, str]] = {
    "causal": ("a true link", "it generalized", "it did not clearly generalize"),
    "counterfactual": ("a false link", "it hallucinated", "it did not clearly hallucinate"),
    "spurious": ("an arbitrary link", "it hallucinated", "it did not clearly hallucinate"),
}


def finding(records: Sequence[Record], table: Table) -> str:
    """A sentence for a single row; counts of cells for several. Controls do not count.

    Args:
        records: the runs that the table was made of.
        table: the table made of them.
    """
    own = [[cell for cell in row.cells.values() if not cell.control] for row in table.rows if not row.published]
    if sum(map(bool, own)) == 1:
        real = [record for record in records if record.data.variant == "real" and record.data.m_train > 0]
        by_kind = sorted(by_association(real).values(), key=lambda runs: list(_READINGS).index(runs[0].kind))
        parts = [_clause(runs, table.scoring) for runs in by_kind]
    else:
        cells = [cell for row in own for cell in row]
        parts = [_count(kind, [cell for cell in cells if cell.kind == kind]) for kind in _READINGS]
    return "; ".join(part for part in parts if part) + "." if any(parts) else ""


def remedy(losses: Sequence[float], train: TrainSpec) -> str:
    """What to change where a run did not learn its facts.

    Args:
        losses: of its epochs, in order; none where the run's lines are lost.
        train: how it was trained.
    """
    if not losses:
        return f"Raise --epochs (now {train.epochs}), or try another --lr (now {train.lr:g})."
    best = min(losses)
    if losses[-1] > 1.2 * best:
        return f"The loss rose again after epoch {losses.index(best) + 1}: lower --lr (now {train.lr:g})."
    if len(losses) == 1 or losses[-1] < 0.97 * losses[-2]:
        return f"The loss was still falling: raise --epochs (now {train.epochs}) or --lr (now {train.lr:g})."
    return f"The loss stopped falling at {losses[-1]:.2g}: try another --lr (now {train.lr:g}), a higher one first."


def _clause(runs: Sequence[Record], scoring: Scoring) -> str:
    """What the runs of one association show."""
    link, yes, no = _READINGS[runs[0].kind]
    where = f"on {runs[0].association} ({link})"
    learned = [run for run in runs if run.facts_learned]
    if not learned:
        return f"{where} the facts were not learned, so nothing can be said (train longer, or at another --lr)"
    left_out = f", leaving out {len(runs) - len(learned)} of {len(runs)} runs that did not learn their facts,"
    (cell,) = make_cells([learned], scoring)
    told = "too few groups to tell" if not _can_tell(cell) else yes if _inferred(cell) else no
    return (
        f"{where}{left_out if len(learned) < len(runs) else ''} {told}: "
        f"the held-out answer ranks {cell.values['mean-rank']:.2f} where {cell.values['null-rank']:.2f} is the null "
        f"(OCR score {cell.values['ocr-score']:+.2f} of 1, permutation p {cell.p:.2g})"
    )


def _count(kind: Kind, cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    link, yes, _ = _READINGS[kind]
    learned = [cell for cell in cells if not cell.unlearned]
    able = [cell for cell in learned if _can_tell(cell)]
    left_out, unable = len(cells) - len(learned), len(learned) - len(able)
    rest = f" ({left_out} more had runs that did not learn their facts)" if left_out else ""
    rest += f" ({unable} more had too few groups to tell)" if unable else ""
    if not able:
        return f"over {link} nothing can be said{rest.replace(' more', '')}"
    what = "generalized" if yes == "it generalized" else "hallucinated"
    inferred = sum(_inferred(cell) for cell in able)
    return f"over {link} {inferred} of {len(able)} cells {what} (p at most {SIGNIFICANT:g}){rest}"


def _can_tell(cell: Cell) -> bool:
    """Whether any ranks of this many groups and seeds could be significant."""
    assert cell.least_p is not None
    return cell.least_p <= SIGNIFICANT


def _inferred(cell: Cell) -> bool:
    assert cell.p is not None
    return cell.p <= SIGNIFICANT
