"""The numbers of ``inside_page.py``: means, differences and rank correlations over seeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from inside_figures import VARIANTS
from scipy import stats

from ocr_eval.records.record import Record
from ocr_eval.records.rows import group_rows
from ocr_eval.specs.association import load_association

#: Permutations of a p.
DRAWS = 10_000
#: What is followed over epochs.
TRACKED = {"train_loss": "train loss", "ratio": "nuclear / Frobenius", "effective_rank": "effective rank"}


def by_epoch(of: pd.DataFrame) -> pd.DataFrame:
    """Loss, score and the shape of the change after the epochs that all runs have, on pairs and shuffled.

    Means over associations of a seed, then over the seeds that both have, with Student's 95 % interval of differences.
    """
    shared = set.intersection(*(set(seeds) for _, seeds in of.groupby("variant")["seed"]))
    of = of[of["seed"].isin(shared)].assign(ratio=of["nuclear"] / of["frobenius"])
    runs = of.groupby(["association", "variant", "seed"])
    epochs = sorted(set.intersection(*(set(each) for _, each in runs["epoch"])))
    means = of.groupby(["epoch", "variant", "seed"])[["train_loss", "score", "ratio", "effective_rank"]].mean()
    rows = {}
    for epoch in epochs:
        real, shuffled = means.loc[epoch, "real"], means.loc[epoch, "shuffled"]
        row = {"OCR score": f"{real['score'].mean():+.2f}", "shuffled": f"{shuffled['score'].mean():+.2f}"}
        for column, title in TRACKED.items():
            apart = (real[column] - shuffled[column]).dropna()
            row[title] = f"{real[column].mean():.2f}"
            row[f"{title}, less shuffled"] = f"{apart.mean():+.2f} ± {half_width(apart):.2f}"
        rows[epoch] = row
    return pd.DataFrame(rows).T.rename_axis("epoch")


def half_width(values: pd.Series) -> float:
    """Half of Student's 95 % interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


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


def link_maps(lines: list[dict]) -> pd.DataFrame:
    """W-rank of the taught pairs, and of others, by association: before, after, and of the change, over seeds."""
    rows: dict[str, dict[str, str | int]] = {}
    for name in sorted({line["association"] for line in lines}):
        of = [line["link-map"] for line in lines if line["association"] == name]
        row = rows[name] = {"seeds": len(of)}
        for key, title in (("base", "before"), ("trained", "after"), ("change", "change")):
            row[title] = f"{np.mean([each[f'{key}_rank'] for each in of]):.1f}"
            row[f"p, {title}"] = _fisher([each[f"{key}_p"] for each in of])
        for key, title in (("trained", "after"), ("change", "change")):
            row[f"others, {title}"] = f"{np.mean([each[f'{key}_untaught'] for each in of]):.1f}"
    return pd.DataFrame(rows).T


def _fisher(ps: Sequence[float]) -> str:
    """Several runs' p as one, by Fisher's method."""
    return f"{stats.combine_pvalues(ps, method='fisher').pvalue:.2g}"


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
                "p": _fisher(ps),
            }
    return pd.DataFrame(rows).T


def differences(of: pd.DataFrame) -> pd.DataFrame:
    """The pairs less each control: mean over seeds of the mean over associations, with Student's interval."""
    names = ["OCR score", "train loss", "norm of dW_OV", "effective rank", "ratio", "sharing"]
    by_seed = of.groupby(["variant", "seed"], observed=True)[names].mean()
    rows = {}
    for control in VARIANTS[1:]:
        apart = by_seed.loc["real"] - by_seed.loc[control]
        rows[f"real - {control}"] = {n: f"{apart[n].mean():+.3f} ± {half_width(apart[n]):.3f}" for n in names}
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
