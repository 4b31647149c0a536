"""The page of ``inside_study.py``: its tables and its picture, from what was taken."""

import json
from collections.abc import Sequence
from pathlib import Path

import inside_tables as tables
import numpy as np
import pandas as pd
from inside_figures import VARIANTS, blocks_picture, picture

from ocr_eval.common.files import write_atomic
from ocr_eval.records.find import find_runs
from ocr_eval.report.figures.style import draw

MADE, LINKS = Path("results/inside/measures.jsonl"), Path("results/inside/links.json")
EPOCHS, PICTURE = Path("results/inside/epochs.csv"), Path("results/inside/inside.png")
BLOCKS, BESIDE_TOY = Path("results/inside/blocks.json"), Path("results/inside/blocks.png")
#: The records that a scorecard is of.
CARD = (Path("results/smollm2-135m"), Path("results/scorecard"))
#: The records that links are compared with, by model.
RECORDS = {
    "smollm2-135m": (Path("results/smollm2-135m"), Path("results/controls/no-entailment")),
    "gemma3-270m": (Path("results/gemma3-270m"),),
}
TITLES = {"smollm2-135m": "SmolLM2-135M", "gemma3-270m": "Gemma-3-270M"}
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
PAGE = """# Inside two small models, after training

Written by `python tests/benchmarks/inside_study.py show` from `measures.jsonl`: LoRA at the models' defaults in
bfloat16, seeds {seeds}, five associations. *real* teaches pairs; *no-entailment* facts alone; *shuffled* gives each
person in a group a different entailment. Measures: `ov-change` (mean over all heads of all layers), `logit-lens` (first
layer, from 0, whose answers rank above their null, mean over the seeds that have one; a dash if none has), `sharing`
(excess cosine of matched pairs), `constant-direction` (mean cosine of what the change adds to two tokens, which is 1
for a steering vector, and its chance value; over the {steered} of {all} runs in which it was measured).
The picture is of SmolLM2-135M.

![Rank, sharing and layers of answers after each training](inside.png)
{models}{blocks}
## Does the shape of the change order what is inferred?

Runs of the scorecard (results/scorecard; SmolLM2-135M, city-language, country-code and sport-music): the whole change,
by row, mean over runs that learned. Nuclear norm (summed over matrices) over Frobenius norm is small where few
directions carry the change. Effective rank is the mean over matrices.

{shapes}
{epochs}"""
OF_MODEL = """
## {title}: means over seeds

{means}
"""
CONTROLS = """
## {title}: what differs with inference

Differences of the same seed, averaged over the five associations, mean over seeds with Student's 95 % interval.

{differences}
"""
WITHIN = """
Over all runs of *real*, within each association ({runs} in all; Spearman's rho averaged over associations; p from
{draws} permutations within associations):

{correlations}
"""
BEFORE = """
## {title}: links before training

Each pair of fact and entailment: its W-rank in the untouched model (as in `audit --model`; null {null}) and its OCR
score, averaged over the seeds that teach it. Spearman's rho over the pairs of an association, negative where linked
pairs are inferred; p from {draws} permutations of the pairs ("all": mean over associations, permuted within each).

{links}
"""
SIDE_BY_SIDE = """
## The weight blocks and those of the symbolic model

![Cosine of what is read in favour of each fact's and each entailment's answer](blocks.png)

Cosine of what the weights read in favour of a fact's answer b_i and an entailment's answer c_j, both less their means.
Symbolic model: rows of W_OV over all subjects, n = 5, m_train = 4, m_test = 16. SmolLM2-135M: rows of dW_OV, all heads,
mean over layers, country-code ({seeds}).

{table}
"""
BY_EPOCH = """
## SmolLM2-135M: does the rank fall while it infers?

The whole change after some epochs, on pairs and (*less shuffled*) minus the shuffled control's: mean over the five
associations and over seeds, with Student's 95 % interval. Effective rank is the mean over matrices.

{table}
"""
LINK_MAP = """
## {title}: the map between answers, before and after

`link-map`, *real* runs: W-rank of the taught pairs (0 if a link is wired in; null {null}) before training, after it,
and in the difference of the two maps, means over seeds. p for the ranks as low, by Fisher's method over seeds; the
last two columns are the W-rank of the pairs that the run does not teach.

{table}
"""
PATCHING = """
## {title}: where answers come from

`patching`, *real* runs: the largest gain of the donor's answer over any other (nats) and the layer after which it
appears, means over seeds. p for the best of all layers, by Fisher's method over seeds.

{table}
"""


def read() -> list[dict]:
    """What was taken."""
    return [json.loads(line) for line in MADE.read_text().splitlines()] if MADE.is_file() else []


def show() -> None:
    """Print the page."""
    lines = read()
    keys = ("association", "variant", "seed")
    of = pd.DataFrame([{key: line[key] for key in keys} | {n: f(line) for n, f in COLUMNS.items()} for line in lines])
    of["variant"] = pd.Categorical(of["variant"], VARIANTS)
    of["model"] = [line["run"].split("/")[0] for line in lines]
    cells = of.groupby(["model", "variant"], observed=True)["seed"]
    shared = sorted(set.intersection(*(set(seeds) for _, seeds in cells)))
    same = of[of["seed"].isin(shared)]
    links = json.loads(LINKS.read_text())
    page = PAGE.format(
        seeds=", ".join(map(str, shared)),
        steered=of["by chance"].count(),
        all=len(of),
        models="".join(
            of_model(title, of[of["model"] == model], same[same["model"] == model], links[model], RECORDS[model])
            + studied(title, [line for line in lines if line["run"].startswith(f"{model}/")])
            for model, title in TITLES.items()
            if model in set(of["model"])
        ),
        blocks=blocks(json.loads(BLOCKS.read_text())) if BLOCKS.is_file() else "",
        shapes=tables.shapes(find_runs(*CARD, measures=("weight-change",)).records).to_markdown(),
        epochs=BY_EPOCH.format(table=tables.by_epoch(pd.read_csv(EPOCHS)).to_markdown()) if EPOCHS.is_file() else "",
    )
    write_atomic(PICTURE, draw(picture(same[same["model"] == "smollm2-135m"]), "png", "inside"))
    print(page, end="")


def of_model(
    title: str, of: pd.DataFrame, same: pd.DataFrame, links: dict[str, dict[str, float]], records: Sequence[Path]
) -> str:
    """A model's means over the seeds that all trainings share, its controls, and its links before training."""
    means = same.groupby(["association", "variant"], observed=True)[list(COLUMNS)].mean()
    filled = means.round(3).dropna(axis="columns", how="all").reset_index()
    real = of[of["variant"] == "real"]
    found = tables.inferred(find_runs(*records).records)
    text = OF_MODEL.format(title=title, means=filled.to_markdown(index=False).replace("nan", "-"))
    if set(VARIANTS) <= set(same["variant"]):
        text += CONTROLS.format(title=title, differences=tables.differences(same).to_markdown())
    within = tables.correlations(real).to_markdown()
    text += WITHIN.format(runs=len(real), draws=f"{tables.DRAWS:,}", correlations=within)
    null = (len(links["city-language"]) - 1) / 2
    return text + BEFORE.format(
        title=title, null=null, draws=f"{tables.DRAWS:,}", links=tables.of_links(links, found).to_markdown()
    )


def studied(title: str, lines: list[dict]) -> str:
    """What was measured in some of a model's runs on pairs."""
    real = [line for line in lines if line["variant"] == "real"]
    mapped, patched = ([line for line in real if name in line] for name in ("link-map", "patching"))
    text = ""
    if mapped:
        text += LINK_MAP.format(
            title=title, null=mapped[0]["link-map"]["null"], table=tables.link_maps(mapped).to_markdown()
        )
    if patched:
        text += PATCHING.format(title=title, table=tables.patching(patched).to_markdown())
    return text


def blocks(of: dict[str, list[list[float]]]) -> str:
    """The section on weight blocks; it also draws them."""
    titles = {"real": "SmolLM2, pairs", "shuffled": "SmolLM2, shuffled"}
    matrices = {titles.get(name, name): np.array(values) for name, values in of.items()}
    write_atomic(BESIDE_TOY, draw(blocks_picture(matrices), "png", "blocks"))
    rows = {}
    for name, matrix in matrices.items():
        own = np.eye(len(matrix), dtype=bool)
        rows[name] = {"own entailment": f"{matrix[own].mean():+.2f}", "another's": f"{matrix[~own].mean():+.2f}"}
    table = pd.DataFrame(rows).T.to_markdown()
    return SIDE_BY_SIDE.format(seeds="three seeds of pairs, one of shuffled", table=table)
