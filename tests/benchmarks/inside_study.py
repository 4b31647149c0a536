"""What stands inside SmolLM2 after each of three trainings: the pairs, no entailments, and shuffled ones.

    python tests/benchmarks/inside_study.py take RUNS...    # into measures.jsonl, going on where it stopped
    python tests/benchmarks/inside_study.py show > results/inside/inside.md

``take`` needs the adapters of the runs, which a repository does not hold: ``make results`` leaves them on disk.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ocr_eval.execution.execute import reopen
from ocr_eval.measures.measure import take_measure
from ocr_eval.records.find import find_runs
from ocr_eval.records.folder import read_trained

MEASURES = ("ov-change", "logit-lens", "sharing")
MADE = Path("results/inside/measures.jsonl")
VARIANTS = ("real", "no-entailment", "shuffled")
#: What is shown, and where it is in a line.
COLUMNS = {
    "OCR score": lambda line: line["score"],
    "train loss": lambda line: line["loss"],
    "norm of dW_OV": lambda line: line["ov-change"]["frobenius"],
    "effective rank": lambda line: line["ov-change"]["effective_rank"],
    "ratio": lambda line: line["ov-change"]["ratio"],
    "fact layer": lambda line: line["logit-lens"].get("test_fact_layer", np.nan),
    "entailment layer": lambda line: line["logit-lens"].get("test_entailment_layer", np.nan),
    "sharing": lambda line: line["sharing"]["weights"],
}
PAGE = """# Inside SmolLM2-135M, after three trainings

Made by `python tests/benchmarks/inside_study.py show` from `measures.jsonl`: LoRA at the model's defaults in bfloat16,
seeds {seeds}, five associations. *real* teaches pairs; *no-entailment* facts alone; *shuffled* gives each person of a
group another entailment. Measures: `ov-change` (mean over all heads of all layers), `logit-lens` (first layer of 30,
from 0, whose answers stand above their null, mean over the seeds that have one; a dash where none has), `sharing`
(excess cosine of matched pairs).

## Means over seeds

{means}

## What goes with inference

Differences of the same seed, averaged over the five associations, mean over seeds with Student's 95 % interval.

{differences}

Over all runs of *real*, within each association ({runs} in all; Spearman's rho averaged over associations; p from
{draws} permutations within associations):

{correlations}
"""


def take(folders: list[Path]) -> None:
    """Add a line for each run that has none yet."""
    MADE.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["run"] for line in MADE.read_text().splitlines()} if MADE.is_file() else set()
    runs = [run for run in find_runs(*folders).runs if run.record.run not in done]
    for i, run in enumerate(runs):
        record = run.record
        print(f"{i + 1}/{len(runs)} {record.run}", file=sys.stderr)
        trained = reopen(*read_trained(run.folder), "auto")
        taken = {name: numbers(take_measure(name, trained)) for name in MEASURES}
        score = record.final["first-token"]["test_entailment"].ocr_score
        about = {"association": record.association, "variant": record.data.variant, "seed": record.seed}
        line = {"run": record.run, **about, "score": score, "loss": record.train_loss, **taken}
        with MADE.open("a") as file:
            file.write(json.dumps(line) + "\n")


def numbers(found: dict) -> dict:
    """What a measure has at its top, without layers and heads."""
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def show() -> None:
    """Print the page."""
    lines = [json.loads(line) for line in MADE.read_text().splitlines()]
    keys = ("association", "variant", "seed")
    of = pd.DataFrame([{key: line[key] for key in keys} | {n: f(line) for n, f in COLUMNS.items()} for line in lines])
    of["variant"] = pd.Categorical(of["variant"], VARIANTS)
    shared = sorted(set.intersection(*(set(each["seed"]) for _, each in of.groupby("variant", observed=True))))
    same = of[of["seed"].isin(shared)]
    means = same.groupby(["association", "variant"], observed=True)[list(COLUMNS)].mean()
    real, draws = of[of["variant"] == "real"], 10_000
    page = PAGE.format(
        seeds=", ".join(map(str, shared)),
        means=means.round(3).reset_index().to_markdown(index=False).replace("nan", "-"),
        differences=differences(same).to_markdown(),
        correlations=correlations(real, draws).to_markdown(),
        runs=len(real),
        draws=f"{draws:,}",
    )
    print(page, end="")


def differences(of: pd.DataFrame) -> pd.DataFrame:
    """The pairs less each control: mean over seeds of the mean over associations, with Student's interval."""
    names = ["OCR score", "train loss", "norm of dW_OV", "effective rank", "ratio", "sharing"]
    by_seed = of.groupby(["variant", "seed"], observed=True)[names].mean()
    rows = {}
    for control in VARIANTS[1:]:
        apart = by_seed.loc["real"] - by_seed.loc[control]
        half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
        rows[f"real - {control}"] = {n: f"{apart[n].mean():+.3f} ± {half[n]:.3f}" for n in names}
    return pd.DataFrame(rows).T


def correlations(real: pd.DataFrame, draws: int) -> pd.DataFrame:
    """How the score goes with each measure within associations."""
    rng = np.random.default_rng(0)
    rows = {}
    for name in ("norm of dW_OV", "effective rank", "ratio", "sharing"):
        cells = [(rank(cell["OCR score"]), rank(cell[name])) for _, cell in real.groupby("association")]
        rho = np.mean([a @ b for a, b in cells])
        drawn = [np.mean([rng.permutation(a) @ b for a, b in cells]) for _ in range(draws)]
        extreme = np.sum(np.abs(drawn) >= abs(rho) - 1e-12)
        rows[name] = {"rho": f"{rho:+.2f}", "p": f"{(1 + extreme) / (1 + draws):.4f}"}
    return pd.DataFrame(rows).T


def rank(values: pd.Series) -> np.ndarray:
    """Centred ranks of unit length, so that a product of two is Spearman's rho."""
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    return ranks / np.linalg.norm(ranks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("take").add_argument("runs", type=Path, nargs="+")
    commands.add_parser("show")
    given = parser.parse_args()
    take(given.runs) if given.command == "take" else show()
