"""The page of ``inside_study.py``: its tables and its picture, from what was taken."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from ocr_eval.common.files import write_atomic
from ocr_eval.records.find import find_runs
from ocr_eval.records.record import Record
from ocr_eval.records.rows import group_rows
from ocr_eval.report.figures.style import COLORS, bare, draw
from ocr_eval.specs.association import load_association

MADE, LINKS = Path("results/inside/measures.jsonl"), Path("results/inside/links.json")
EPOCHS, PICTURE = Path("results/inside/epochs.json"), Path("results/inside/inside.png")
VARIANTS = ("real", "no-entailment", "shuffled")
#: The records that a scorecard is of.
CARD = (Path("results/smollm2-135m"), Path("results/scorecard"))
#: The records that links are held against.
RECORDS = (Path("results/smollm2-135m"), Path("results/controls/no-entailment"))
DRAWS = 10_000
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
    "constant direction": lambda line: line.get("constant-direction", {}).get("cosine", np.nan),
    "by chance": lambda line: line.get("constant-direction", {}).get("chance", np.nan),
}
PAGE = """# Inside SmolLM2-135M, after three trainings

Written by `python tests/benchmarks/inside_study.py show` from `measures.jsonl`: LoRA at the model's defaults in
bfloat16, seeds {seeds}, five associations. *real* teaches pairs; *no-entailment* facts alone; *shuffled* gives each
person in a group a different entailment. Measures: `ov-change` (mean over all heads of all layers), `logit-lens` (first
layer of 30, from 0, whose answers rank above their null, mean over the seeds that have one; a dash if none has),
`sharing` (excess cosine of matched pairs), `constant-direction` (mean cosine of what the change adds to two tokens,
which is 1 for a steering vector, and its chance value; over the {steered} of {all} runs in which it was measured).

![Rank, sharing and layers of answers after each training](inside.png)

## Means over seeds

{means}

## What differs with inference

Differences of the same seed, averaged over the five associations, mean over seeds with Student's 95 % interval.

{differences}

Over all runs of *real*, within each association ({runs} in all; Spearman's rho averaged over associations; p from
{draws} permutations within associations):

{correlations}

## Links before training

Each pair of fact and entailment: its W-rank in the untouched model (as in `audit --model`; null {null}) and its OCR
score, averaged over the seeds that teach it. Spearman's rho over the pairs of an association, negative where linked
pairs are inferred; p from {draws} permutations of the pairs ("all": mean over associations, permuted within each).

{links}

## Does the shape of the change order what is inferred?

Runs of the scorecard (results/scorecard; city-language, country-code and sport-music): the whole change, by row,
mean over runs that learned. Nuclear norm (summed over matrices) over Frobenius norm is small where few
directions carry the change. Effective rank is the mean over matrices.

{shapes}
{epochs}{patching}"""
BY_EPOCH = """
## Does the rank fall while it infers?

The whole change after some epochs, mean over the seeds of an association; effective rank is the mean over matrices.

{table}
"""
PATCHING = """
## Where answers come from

`patching`, *real* runs: the largest gain of the donor's answer over any other (nats) and the layer after which it
appears, means over seeds. p for the best of all layers, by Fisher's method over seeds.

{table}
"""


def by_epoch(lines: list[dict]) -> str:
    """Effective rank, nuclear over Frobenius norm and score, as they rise and fall."""
    of = pd.DataFrame(lines)
    of["ratio"] = of["nuclear"] / of["frobenius"]
    some = of[of["epoch"].isin([1, 2, 3, 4, 6, 8, 12, of["epoch"].max()])]
    means = some.groupby(["association", "variant", "epoch"])[["train_loss", "score", "frobenius", "ratio"]].mean()
    means["effective rank"] = some.groupby(["association", "variant", "epoch"])["effective_rank"].mean()
    return str(means.round(2).reset_index().to_markdown(index=False))


def read() -> list[dict]:
    """What was taken."""
    return [json.loads(line) for line in MADE.read_text().splitlines()] if MADE.is_file() else []


def show() -> None:
    """Print the page."""
    lines = read()
    keys = ("association", "variant", "seed")
    of = pd.DataFrame([{key: line[key] for key in keys} | {n: f(line) for n, f in COLUMNS.items()} for line in lines])
    of["variant"] = pd.Categorical(of["variant"], VARIANTS)
    shared = sorted(set.intersection(*(set(each["seed"]) for _, each in of.groupby("variant", observed=True))))
    same = of[of["seed"].isin(shared)]
    means = same.groupby(["association", "variant"], observed=True)[list(COLUMNS)].mean()
    real, links = of[of["variant"] == "real"], json.loads(LINKS.read_text())
    patched = patching([line for line in lines if line["variant"] == "real" and "patching" in line])
    page = PAGE.format(
        seeds=", ".join(map(str, shared)),
        means=means.round(3).reset_index().to_markdown(index=False).replace("nan", "-"),
        differences=differences(same).to_markdown(),
        correlations=correlations(real).to_markdown(),
        runs=len(real),
        steered=of["by chance"].count(),
        all=len(of),
        draws=f"{DRAWS:,}",
        null=(len(links["city-language"]) - 1) / 2,
        links=of_links(links, inferred(find_runs(*RECORDS).records)).to_markdown(),
        shapes=shapes(find_runs(*CARD, measures=("weight-change",)).records).to_markdown(),
        epochs=BY_EPOCH.format(table=by_epoch(json.loads(EPOCHS.read_text()))) if EPOCHS.is_file() else "",
        patching="" if patched.empty else PATCHING.format(table=patched.to_markdown()),
    )
    write_atomic(PICTURE, draw(picture(same), "png", "inside"))
    print(page, end="")


def picture(of: pd.DataFrame) -> Figure:
    """Rank and sharing after each training, and the layers in which answers appear; a dot is a seed."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    colors = dict(zip(sorted(set(of["association"])), COLORS, strict=False))
    names = {"real": "pairs", "no-entailment": "facts alone", "shuffled": "shuffled"}
    axes = figure.subplots(1, 3)
    for panel, (column, title, up) in zip(
        axes,
        [
            ("effective rank", "The rank does not fall\nwhere the model infers", "effective rank of dW_OV"),
            ("sharing", "A fact and its entailment share\nslightly more than in the controls", "excess cosine"),
        ],
        strict=False,
    ):
        for (association, variant), cell in of.groupby(["association", "variant"], observed=True):
            at = VARIANTS.index(variant) + 0.12 * (sorted(colors).index(association) - 2)
            panel.plot([at] * len(cell), cell[column], "o", markersize=4, color=colors[association])
        panel.set_xticks(range(len(VARIANTS)), [names[variant] for variant in VARIANTS])
        panel.set_title(title, fontsize=9)
        panel.set_ylabel(up)
    axes[1].axhline(0, color="0.6", linewidth=0.8, zorder=0)
    real = of[of["variant"] == "real"]
    for association, cell in real.groupby("association"):
        at = sorted(colors).index(association)
        axes[2].plot([at - 0.12] * len(cell), cell["fact layer"], "o", markersize=4, color=colors[association])
        entailment = cell["entailment layer"]
        axes[2].plot([at + 0.12] * len(cell), entailment, "s", markersize=4, color=colors[association], mfc="white")
    axes[2].plot([], [], "o", color="0.3", markersize=4, label="fact")
    axes[2].plot([], [], "s", color="0.3", markersize=4, mfc="white", label="entailment")
    axes[2].legend(fontsize=8, frameon=False, loc="lower left")
    axes[2].set_xticks([])
    axes[2].set_title("False and arbitrary entailments\nappear in the last layers", fontsize=9)
    axes[2].set_ylabel("first layer above the null")
    for panel in axes:
        bare(panel)
    dots = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colors[name], label=name) for name in colors]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=8, frameon=False)
    return figure


def inferred(records: list[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean OCR score over seeds of each pair, by its fact's answer, of each variant and association."""
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        held = record.held_out["first-token"]
        fact_of = {entailment: fact for fact, entailment in load_association(record.association).pairs}
        of = scores.setdefault(record.data.variant, {}).setdefault(record.association, {})
        for target in sorted(set(held.target.tolist())):
            of.setdefault(fact_of[held.answers[target]], []).append(float(held.scores[held.target == target].mean()))
    return {
        variant: {name: {pair: float(np.mean(each)) for pair, each in of.items()} for name, of in by_name.items()}
        for variant, by_name in scores.items()
    }


def of_links(
    links: dict[str, dict[str, float]], scores: dict[str, dict[str, dict[str, float]]], draws: int = DRAWS
) -> pd.DataFrame:
    """How the score of pairs goes with their W-rank before training, by variant and association."""
    rows = {}
    for variant, by_name in scores.items():
        cells = {name: ([links[name][pair] for pair in of], list(of.values())) for name, of in sorted(by_name.items())}
        for name, (before, _) in cells.items():
            tested = spearman([cells[name]], draws)
            rows[f"{variant}: {name}"] = {"pairs": len(before), "W-rank": f"{np.mean(before):.1f}"} | tested
        pairs = sum(len(before) for before, _ in cells.values())
        rows[f"{variant}: all"] = {"pairs": pairs, "W-rank": ""} | spearman(list(cells.values()), draws)
    return pd.DataFrame(rows).T


def shapes(records: list[Record]) -> pd.DataFrame:
    """The norm and the shape of each row's change, smallest first, with what is inferred over which links."""
    shared = {record.association for record in records if record.train.prevent}
    means = {}
    for row, runs in group_rows([record for record in records if record.association in shared]).items():
        if learned := [_shape(run) for run in runs if run.premises_hold]:
            means[row.setting] = {"runs": len(learned)} | dict(pd.DataFrame(learned).mean())
    return pd.DataFrame(means).T.sort_values("norm").round(2)


def _shape(record: Record) -> dict[str, float]:
    change = record.measures["weight-change"]
    return {
        "norm": change["frobenius"],
        "nuclear / Frobenius": change["nuclear"] / change["frobenius"],
        "effective rank": change["effective_rank"],
        "true links" if record.kind == "causal" else "arbitrary links": record.final["first-token"][
            "test_entailment"
        ].ocr_score,
    }


def patching(lines: list[dict]) -> pd.DataFrame:
    """Where the stream of another group's subject moves the answer, by association and place, over seeds."""
    rows = {}
    for name in sorted({line["association"] for line in lines}):
        of = [line["patching"] for line in lines if line["association"] == name]
        for place in ("name", "prompt"):
            layer, excess, ps = ([each[f"{place}_{key}"] for each in of] for key in ("layer", "excess", "p"))
            rows[f"{name}, end of the {place}"] = {
                "seeds": len(of),
                "layer": f"{np.mean(layer):.1f}",
                "nats": f"{np.mean(excess):+.2f}",
                "p": f"{stats.combine_pvalues(ps, method='fisher').pvalue:.2g}",
            }
    return pd.DataFrame(rows).T


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


def correlations(real: pd.DataFrame) -> pd.DataFrame:
    """How the score goes with each measure within associations."""
    rows = {}
    for name in ("norm of dW_OV", "effective rank", "ratio", "sharing", "constant direction"):
        if real[name].notna().all():
            rows[name] = spearman([(cell["OCR score"], cell[name]) for _, cell in real.groupby("association")], DRAWS)
    return pd.DataFrame(rows).T


def spearman(cells: list[tuple[Sequence[float], Sequence[float]]], draws: int) -> dict[str, str]:
    """Spearman's rho within cells, their mean, and its two-sided p from permutations within cells."""
    rng = np.random.default_rng(0)
    ranked = [(rank(a), rank(b)) for a, b in cells]
    rho = np.mean([a @ b for a, b in ranked])
    drawn = [np.mean([rng.permutation(a) @ b for a, b in ranked]) for _ in range(draws)]
    extreme = np.sum(np.abs(drawn) >= abs(rho) - 1e-12)
    return {"rho": f"{rho:+.2f}", "p": f"{(1 + extreme) / (1 + draws):.4f}"}


def rank(values: Sequence[float]) -> np.ndarray:
    """Centred ranks of unit length, so that a product of two is Spearman's rho; zeros where all are equal."""
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    return ranks / (np.linalg.norm(ranks) or 1.0)
