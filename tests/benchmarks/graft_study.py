"""The graft of Feng et al. (arXiv 2412.04614) and its control, from runs that teach its parts.

    python tests/benchmarks/graft_study.py results/structures/smollm2-135m/graft

The folder contains four sweeps of the same associations and seeds (``make structures``): *facts*, *both* (the same
facts, then their implications), *implications* alone, and *regrouped*, other facts about the same people. It writes
``graft.json`` and ``graft.md`` there. The runs need their adapters, which are not in the repository.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from scipy import stats

from ocr_eval.common.files import write_atomic
from ocr_eval.execution.execute import open_view, rescore
from ocr_eval.records.find import FinishedRun, find_runs
from ocr_eval.records.record import Record
from ocr_eval.records.reopen import read_trained
from ocr_eval.scoring.ranks import Scores

PARTS = ("facts", "both", "implications", "regrouped")
#: What is scored: the part whose probes are asked, and the parts to sum, with signs.
ASKED = {
    "facts, then implications": ("both", {"both": 1}),
    "regrouped": ("regrouped", {"regrouped": 1}),
    "graft": ("regrouped", {"regrouped": 1, "both": 1, "facts": -1}),
    "graft, old implications": ("both", {"both": 1, "regrouped": 1, "facts": -1}),
    "control": ("regrouped", {"regrouped": 1, "implications": 1}),
}
PAGE = """# Grafting

Made by `python tests/benchmarks/graft_study.py {folder}`
from {model}, LoRA, {dtype}, seeds {seeds}. *Facts, then implications* is asked about its own facts. Its change less
that of the facts alone, added to a model of other facts about the same people (*regrouped*), is the *graft*: it is
asked about the implications of the new facts, and of the old ones. *Control* adds implications that were learned
without facts. OCR score of held-out implications: mean over seeds, Student's 95 % interval, and each seed; facts:
share of test subjects' facts that rank first.

{table}
"""


def main(folder: Path) -> None:
    """Score every sum for every association and seed, and write the page."""
    parts = {part: {key(run.record): run for run in find_runs(folder / part).runs} for part in PARTS}
    shared = sorted(set.intersection(*(set(runs) for runs in parts.values())))
    rows = []
    for association, seed in shared:
        runs = {part: runs[association, seed] for part, runs in parts.items()}
        for name, (asked, terms) in ASKED.items():
            scores = of_sum(runs, asked, terms)["first-token"]
            entailment, fact = scores["test_entailment"], scores["test_fact"]
            row = {"association": association, "seed": seed, "model": name, "score": entailment.ocr_score}
            rows.append(row | {"mean_rank": entailment.mean_rank, "null_rank": entailment.null_rank, "fact": fact.top1})
    first = parts["both"][shared[0]].record
    about = {"model": first.model, "dtype": first.dtype, "seeds": ", ".join(sorted({str(s) for _, s in shared}))}
    write_atomic(folder / "graft.json", json.dumps(rows, indent=1) + "\n")
    page = PAGE.format(folder=folder, table=table(pd.DataFrame(rows)).to_markdown(index=False), **about)
    write_atomic(folder / "graft.md", page)


def key(record: Record) -> tuple[str, int]:
    """Association and seed, which the parts of a graft share."""
    return record.association, record.seed


def of_sum(runs: dict[str, FinishedRun], asked: str, terms: dict[str, int]) -> Scores:
    """Scores of a sum of changes on the probes of one of the runs; for a single run they are in its record."""
    if terms == {asked: 1}:
        return runs[asked].record.final
    (onto, _), *others = terms.items()
    trained = {part: read_trained(runs[part].folder) for part in terms}
    grafted = [(sign, trained[part][1].learned) for part, sign in others]
    over = trained[onto][1].record().base_identity
    spec = read_trained(runs[asked].folder)[0]
    return rescore(spec, open_view(spec, trained[onto][1].learned, "auto", over, grafted))


def table(of: pd.DataFrame) -> pd.DataFrame:
    """A row per association and sum."""
    rows = []
    for (association, name), cell in of.groupby(["association", "model"], sort=False):
        scores = cell["score"]
        half = stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
        rows.append(
            {
                "association": association,
                "model": name,
                "OCR score": f"{scores.mean():+.2f} ± {half:.2f}",
                "seeds": " ".join(f"{score:+.2f}" for score in scores),
                "facts": " ".join(f"{fact:.2f}" for fact in cell["fact"]),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
