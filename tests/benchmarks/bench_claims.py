"""Intervals and tests on simulated studies with known truth; prints the tables of ocr_eval/docs/numbers.md.

Correlated people within groups (``together`` is the weight of what they share) and differences between seeds (``sd``)
make intervals too narrow and tests too liberal. It prints, in per cent of the studies,

- one condition: how often the interval covers the truth, its median width, and how often an inference is reported: by
  the rule (permutation of groups, and t over seeds) and by permutation alone;
- the same with three seeds, for other intervals: t over seeds without the floor; percentiles of a bootstrap over seeds
  and then groups; bootstrap-t over seeds; the jackknife over all groups; inverted sign flips of all groups;
- two conditions that differ by 0 or by 0.5, whose runs have independent noise of 0.15: how often the interval covers
  the difference, and how often a difference is reported: by the rule (sign flips over seeds, from six seeds), and if
  groups were treated as independent (t over all of them).

    python tests/benchmarks/bench_claims.py [--studies 1000]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))

from simulated import Study

from ocr_eval.analysis.difference import difference, verdicts
from ocr_eval.analysis.intervals import LEVEL, Seed, Units, estimate, of_metric, t_quantile, units_of
from ocr_eval.analysis.significance import SIGNIFICANT, inference_ps, permutation_ps
from ocr_eval.scoring.ranks import Floats

RUN_SD = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    header = ["seeds", "together", "sd", "score", "interval holds", "width", "inferred", "by permutation alone"]
    print(tabulate(one_condition(rng, studies), header, tablefmt="github"), flush=True)
    header = ["together", "sd", "score", *INTERVALS]
    print("\n" + tabulate(intervals(rng, studies), header, tablefmt="github"), flush=True)
    header = [
        "seeds",
        "together",
        "difference",
        "interval holds",
        "width",
        "said to differ",
        "if groups were independent",
    ]
    print("\n" + tabulate(two_conditions(rng, studies), header, tablefmt="github"))


def one_condition(rng: np.random.Generator, studies: int) -> Iterator[list[str]]:
    for seeds, together, sd, score in product((3, 6), (0.0, 0.4, 0.8), (0.0, 0.1, 0.2), (0.0, 0.3, 0.7)):
        study = Study(score, sd, together)
        truth = study.truth(rng)
        cells = [study.seeds(rng, seeds) for _ in range(studies)]
        found = [of_metric(cell).bounds or (np.nan, np.nan) for cell in cells]
        yield [
            *(str(seeds), f"{together:g}", f"{sd:g}", f"{score:g}"),
            share(low <= truth <= high for low, high in found),
            f"{np.median([high - low for low, high in found]):.2f}",
            share(p <= SIGNIFICANT for p in inference_ps(cells)),
            share(p <= SIGNIFICANT for p in permutation_ps(cells)),
        ]


def t_of(values: Floats, error: float, degrees: int) -> tuple[float, float]:
    half = t_quantile(degrees, (1 + LEVEL) / 2) * error
    return float(values.mean() - half), float(values.mean() + half)


def of_seeds(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    means_S = values_Sn.mean(axis=1)
    return t_of(means_S, means_S.std(ddof=1) / np.sqrt(len(means_S)), len(means_S) - 1)


def bootstrap(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    seeds, n = values_Sn.shape
    seed_BS1 = rng.integers(0, seeds, size=(500, seeds, 1))
    means_B = values_Sn[seed_BS1, rng.integers(0, n, size=(500, seeds, n))].mean(axis=(1, 2))
    low, high = np.quantile(means_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_t(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    means_S = values_Sn.mean(axis=1)
    error = means_S.std(ddof=1) / np.sqrt(len(means_S))
    drawn_BS = rng.choice(means_S, size=(500, len(means_S)))
    errors_B = drawn_BS.std(axis=1, ddof=1) / np.sqrt(len(means_S))
    some_B = errors_B > 0
    t_B = (drawn_BS.mean(axis=1)[some_B] - means_S.mean()) / errors_B[some_B]
    low, high = np.quantile(t_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if some_B.any() else (0.0, 0.0)
    return float(means_S.mean() - high * error), float(means_S.mean() - low * error)


def jackknife(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    values = values_Sn.ravel()
    without = (values.sum() - values) / (len(values) - 1)
    error = np.sqrt((len(values) - 1) * ((without - without.mean()) ** 2).mean())
    return t_of(values, error, len(values) - 1)


def sign_flips(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """The values that a two-sided test of flipped group deviations does not reject, by bisection on either side."""
    values = values_Sn.ravel()
    signs_BG = rng.choice([-1, 1], size=(500, len(values)))

    def edge(far: float) -> float:
        inside, outside = values.mean(), far
        for _ in range(12):
            middle = (inside + outside) / 2
            apart = values - middle
            p = np.mean(abs(signs_BG @ apart) >= abs(apart.sum()) - 1e-9)
            inside, outside = (middle, outside) if p > 1 - LEVEL else (inside, middle)
        return float(inside)

    return edge(-2.0), edge(2.0)


def floored(values_Sn: Floats, rng: np.random.Generator) -> tuple[float, float]:
    weights = np.full(values_Sn.shape[1], 1 / values_Sn.shape[1])
    found = estimate([Units(values, weights) for values in values_Sn])
    return found.bounds or (np.nan, np.nan)


INTERVALS = {
    "the one used": floored,
    "t over seeds": of_seeds,
    "bootstrap": bootstrap,
    "bootstrap-t": bootstrap_t,
    "jackknife": jackknife,
    "sign flips": sign_flips,
}


def intervals(rng: np.random.Generator, studies: int) -> Iterator[list[str]]:
    for together, sd, score in product((0.0, 0.4, 0.8), (0.0, 0.1, 0.2), (0.0, 0.3, 0.7)):
        study = Study(score, sd, together)
        truth = study.truth(rng)
        cells = [np.stack([units_of(seed).values for seed in study.seeds(rng, 3)]) for _ in range(studies)]
        found = [[method(cell, rng) for cell in cells] for method in INTERVALS.values()]
        yield [
            *(f"{together:g}", f"{sd:g}", f"{score:g}"),
            *(share(low <= truth <= high for low, high in bounds) for bounds in found),
        ]


def two_conditions(rng: np.random.Generator, studies: int) -> Iterator[list[str]]:
    for seeds, together, apart in product((3, 6, 10), (0.0, 0.4, 0.8), (0.0, 0.5)):
        # The two runs of a seed draw their noise separately, like a run and its rerun.
        a, b = (Study(score, RUN_SD, together) for score in (0.2 + apart, 0.2))
        truth = a.truth(rng) - b.truth(rng)
        pairs = [(dict(enumerate(a.seeds(rng, seeds))), dict(enumerate(b.seeds(rng, seeds)))) for _ in range(studies)]
        found = [difference(*pair) for pair in pairs]
        bounds = [each.value.bounds or (np.nan, np.nan) for each in found]
        yield [
            *(str(seeds), f"{together:g}", f"{apart:g}"),
            share(low <= truth <= high for low, high in bounds),
            f"{np.median([high - low for low, high in bounds]):.2f}",
            "no verdict" if verdicts(found[:1]) == [None] else share(verdicts([each]) != [0] for each in found),
            share(groups_differ(list(one.values()), list(other.values())) for one, other in pairs),
        ]


def groups_differ(a: Sequence[Seed], b: Sequence[Seed]) -> bool:
    values = np.concatenate([(units_of(x) - units_of(y)).values for x, y in zip(a, b, strict=True)])
    half = t_quantile(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return bool(abs(values.mean()) > half)


def share(hits: Iterator[bool]) -> str:
    found = list(hits)
    return f"{100 * sum(found) / len(found):.0f}"


if __name__ == "__main__":
    main()
