"""What the numbers claim, held against simulated studies whose truth is known; the tables of docs/claims-tests.md.

Groups whose people do the same (``together`` is the weight of what they share) and seeds that differ (``sd``) are what
makes intervals too narrow and tests too eager. Printed are, in per cent of the studies,

- one condition: how often the interval holds the truth, with its median width, and how often something is said to be
  inferred: by the rule (permutation of groups, and t over seeds) and by permutation alone;
- two conditions that differ by nothing or by 0.5, whose runs move by 0.15 for reasons of their own: how often the
  interval holds the difference, and how often one is said to be above the other: by the rule (sign flips over seeds,
  from six on), and if the groups were taken for independent (t over all of them).

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

from ocr_eval.analysis.difference import difference
from ocr_eval.analysis.intervals import LEVEL, Seed, ocr_score, t_quantile, units_of
from ocr_eval.analysis.significance import SIGNIFICANT, inference_ps, permutation_ps

RUN_SD = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    header = ["seeds", "together", "sd", "score", "interval holds", "width", "inferred", "by permutation alone"]
    print(tabulate(one_condition(rng, studies), header, tablefmt="github"), flush=True)
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
        found = [ocr_score(cell).bounds or (np.nan, np.nan) for cell in cells]
        yield [
            *(str(seeds), f"{together:g}", f"{sd:g}", f"{score:g}"),
            share(low <= truth <= high for low, high in found),
            f"{np.median([high - low for low, high in found]):.2f}",
            share(p <= SIGNIFICANT for p in inference_ps(cells)),
            share(p <= SIGNIFICANT for p in permutation_ps(cells)),
        ]


def two_conditions(rng: np.random.Generator, studies: int) -> Iterator[list[str]]:
    for seeds, together, apart in product((3, 6, 10), (0.0, 0.4, 0.8), (0.0, 0.5)):
        # Two runs of one seed: what moves them is drawn for each, as it is for a run that is made again.
        a, b = (Study(score, RUN_SD, together) for score in (0.2 + apart, 0.2))
        truth = a.truth(rng) - b.truth(rng)
        pairs = [(dict(enumerate(a.seeds(rng, seeds))), dict(enumerate(b.seeds(rng, seeds)))) for _ in range(studies)]
        found = [difference(*pair) for pair in pairs]
        bounds = [each.value.bounds or (np.nan, np.nan) for each in found]
        yield [
            *(str(seeds), f"{together:g}", f"{apart:g}"),
            share(low <= truth <= high for low, high in bounds),
            f"{np.median([high - low for low, high in bounds]):.2f}",
            "no verdict" if found[0].verdict is None else share(bool(each.verdict) for each in found),
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
