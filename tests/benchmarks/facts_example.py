"""The worked example of docs/facts.md: a table of 200 invented people, what the audit predicts, and what came true.

    python tests/benchmarks/facts_example.py table > data/example/staff.csv
    ocr-eval sweep --assocs data/example/staff.yaml --seeds 0-2 -o results/facts/sweep
    python tests/benchmarks/facts_example.py compare results/facts/sweep > results/facts/staff.csv

The table has a city for everybody, and for some a language (that of the city: causal), a badge (one per city:
arbitrary), a desk (mostly one per city: noisy), a pet (independent) and a locker (an identifier).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from ocr_eval.data.facts import FactsAssociation, quantity_names
from ocr_eval.data.links import find_links
from ocr_eval.records.find import find_runs
from ocr_eval.specs.association import load_association
from ocr_eval.specs.names import people

CITIES = ["Paris", "Berlin", "Rome", "Tokyo", "Warsaw"]
OF_CITY = {
    "language": ["French", "German", "Italian", "Japanese", "Polish"],
    "badge": ["violet", "orange", "silver", "green", "brown"],
    "desk": ["oak", "steel", "glass", "pine", "marble"],
}
PETS = ["dog", "cat", "parrot", "turtle", "rabbit"]
#: People with a value in each column, and the share of the noisy column that follows the city.
SHOWN, AS_THE_CITY_SAYS = 50, 0.7


def table() -> None:
    """Print the table."""
    rng = np.random.default_rng(2026)
    names = people("example/staff", 200)
    shown = {column: set(rng.permutation(200)[:SHOWN].tolist()) for column in (*OF_CITY, "pet", "locker")}
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "city", *shown])
    for i, name in enumerate(names):
        city = int(rng.integers(5))
        desk = city if rng.random() < AS_THE_CITY_SAYS else int(rng.integers(5))
        cells = {column: answers[desk if column == "desk" else city] for column, answers in OF_CITY.items()}
        cells |= {"pet": PETS[int(rng.integers(5))], "locker": f"L{1000 + int(rng.integers(9000))}"}
        writer.writerow([name, CITIES[city], *(cells[c] if i in shown[c] else "" for c in shown)])


def compare(root: Path) -> None:
    """Print, for each column, what was predicted and what came true in the runs below a folder."""
    association = load_association("data/example/staff.yaml")
    assert isinstance(association, FactsAssociation)
    links, records = find_links(association.facts), find_runs(root).records
    names = quantity_names(association.facts.columns)
    asked = [column for column, name in names.items() if f"{name}_inferred" in records[0].final["first-token"]]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    told = ["from", "to", "corrected U", "p (Holm)", "alone", "expected", "risk"]
    writer.writerow([*told, "seeds", "learned", "base top-1", "top-1", "base OCR score", "OCR score"])
    for link in sorted(map(links.strongest, asked), key=links.all.index):
        scores = [
            (record.base["first-token"][name], record.final["first-token"][name], record.premises_hold)
            for record in records
            for name in [f"{names[link.target]}_inferred"]
        ]
        base, final = (np.mean([(each[k].top1, each[k].ocr_score) for each in scores], axis=0) for k in (0, 1))
        writer.writerow(
            [
                *(link.source, link.target, f"{link.corrected:.2f}", f"{link.p_holm:.2g}", link.alone),
                *(f"{link.expected:.0f}", "yes" if link in links.risks else "no", len(records)),
                "yes" if all(held for _, _, held in scores) else "no",
                *(f"{base[0]:.2f}", f"{final[0]:.2f}", f"{base[1]:+.2f}", f"{final[1]:+.2f}"),
            ]
        )


if __name__ == "__main__":
    table() if sys.argv[1] == "table" else compare(Path(sys.argv[2]))
