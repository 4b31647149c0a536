"""The scorecard as text, csv, JSON and LaTeX."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from ocr_eval.analysis.difference import Difference
from ocr_eval.analysis.intervals import Estimate
from ocr_eval.analysis.lift import Lift
from ocr_eval.analysis.scorecard import KINDS, ScorecardRow, verdict
from ocr_eval.common.files import spreadsheet_text
from ocr_eval.records.rows import usual_settings
from ocr_eval.report.tables import markdown_text

#: Numbers of measures on the card, with their column headers.
_MEASURES = {
    "paraphrase.test_fact": "reworded",
    "known.kept": "known kept",
    "vocabulary.probability": "p(answer)",
    "text-loss.rise": "prose loss",
    "weight-change.frobenius": "norm of dW",
}

#: The measures that must be read from records for the card.
MEASURES = tuple(dict.fromkeys(key.partition(".")[0] for key in _MEASURES))

_NOTE = (
    "OCR score [95 % interval over seeds], mean over the associations of a kind; against: minus the first row of its "
    "model, paired by seed; lift: minus the same row taught no entailments. taught: mean top-1 of the premise that "
    "was learned least; learned: runs in which all premises hold. reworded: share of held-out subjects' facts that "
    "rank first in wordings that were not taught. known kept: share of the facts known before that are still known. "
    "p(answer): probability of the right held-out answer in the whole vocabulary. prose loss: rise of the loss on "
    "unrelated prose, nats per token. norm of dW: Frobenius norm of the weight change. seconds: training of a run; "
    "comparable only between rows trained on the same machine under the same load. GB: peak memory of the process "
    "that trained a run, alone or with others. ! a run did not learn what it was taught. k: a prevention uses the "
    "unwanted relation itself."
)


def note(rows: Sequence[ScorecardRow]) -> str:
    """How to read the card, and the settings that rows leave unnamed."""
    return " ".join(filter(None, [_NOTE, usual_settings((row.name, row.unnamed) for row in rows)]))


def to_text(rows: Sequence[ScorecardRow]) -> str:
    """The card as a Markdown table, with a note on how to read it."""
    header, body = cells(rows)
    escaped = [[markdown_text(cell) for cell in row] for row in body]
    table: str = tabulate(escaped, header, tablefmt="github", disable_numparse=True)
    return f"{table}\n\n{note(rows)}\n"


def to_tex(rows: Sequence[ScorecardRow]) -> str:
    """The card for a paper (booktabs)."""
    header, body = cells(rows)
    table: str = tabulate(body, header, tablefmt="latex_booktabs", disable_numparse=True)
    return f"% {note(rows)}\n{table}\n"


def to_csv(rows: Sequence[ScorecardRow]) -> str:
    """One row per setting, one column per number."""
    import pandas as pd

    flat = [{key: spreadsheet_text(value) for key, value in _flat(row).items()} for row in rows]
    return pd.DataFrame(flat).to_csv(index=False, lineterminator="\n")


def to_json(rows: Sequence[ScorecardRow]) -> str:
    """The verdict, and everything known about each row."""
    return json.dumps({"verdict": verdict(rows), "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


FORMATS = {"md": to_text, "csv": to_csv, "json": to_json, "tex": to_tex}


def cells(rows: Sequence[ScorecardRow]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the card as text."""
    kinds = [kind for kind in KINDS if any(kind in row.links for row in rows)]
    measures = [key for key in _MEASURES if any(key in row.measures for row in rows)]
    lifted = any(row.links["causal"].lift for row in rows if "causal" in row.links)
    weighed = any("peak" in row.memory for row in rows)
    header = ["setting", "learned", "taught"]
    for kind in kinds:
        header += [KINDS[kind], f"{KINDS[kind]} against"]
        header += [f"{KINDS[kind]} lift"] if lifted and kind == "causal" else []
    header += [*(_MEASURES[key] for key in measures), "seconds", *(["GB"] if weighed else [])]
    body = []
    for row in rows:
        marks = "!" * bool(row.unlearned) + "k" * bool(row.knows_relation)
        line = [f"{row.name} {marks}".rstrip(), f"{row.runs - row.unlearned}/{row.runs}"]
        line.append(f"{min(row.premises.values()):.2f}" if row.premises else "")
        for kind in kinds:
            links = row.links.get(kind)
            line += ["", ""] if links is None else [_text(links.score), _text(links.against)]
            if lifted and kind == "causal":
                line.append("" if links is None else _text(links.lift))
        line += [f"{row.measures[key]:.2f}" if key in row.measures else "" for key in measures]
        line.append("" if row.seconds is None else f"{row.seconds:.0f}")
        body.append([*line, *([f"{row.memory['peak'] / 1e9:.1f}" if "peak" in row.memory else ""] if weighed else [])])
    return header, body


def _text(found: Estimate | Difference | None) -> str:
    return "" if found is None else str(found.value if isinstance(found, Difference) else found)


def _flat(row: ScorecardRow) -> Mapping[str, Any]:
    flat: dict[str, Any] = {"setting": row.name, "reference": row.reference, "runs": row.runs}
    flat |= {"unlearned": row.unlearned, **{f"{name}_top1": value for name, value in row.premises.items()}}
    for kind, links in row.links.items():
        flat[f"{kind}_seeds"] = links.seeds
        found = {"score": links.score, "lift": links.lift, "against": links.against, "matched": links.matched}
        for name, of in found.items():
            estimate = of.value if isinstance(of, Difference) else of
            values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
            flat |= dict(zip((f"{kind}_{name}{end}" for end in ("", "_low", "_high")), values, strict=True))
            if isinstance(of, Difference):
                flat[f"{kind}_{name}_p"] = of.p
            if name in ("against", "matched"):
                flat[f"{kind}_{name}_p_holm"] = getattr(links, f"{name}_p_holm")
            if isinstance(of, Lift):
                flat[f"{kind}_{name}_p_holm"] = of.p_holm
                flat[f"{kind}_control_premises_hold"] = not of.control_unlearned
    flat |= {key.replace(".", "_").replace("-", "_"): value for key, value in row.measures.items()}
    flat |= {"seconds": row.seconds, **{f"memory_{key}": row.memory.get(key) for key in ("peak", "runs")}}
    return {**flat, "control": row.control, "knows_relation": row.knows_relation}
