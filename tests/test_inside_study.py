"""The page of the study of the inside: its statistics by hand, and that it is committed as made."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import inside_page
import inside_tables


def test_what_links_foretell_by_hand():
    """Over three pairs rho is 1 - (1 + 4 + 1) / 4 = -1/2, and of six permutations none is nearer to zero."""
    links = {"one": {"a": 0, "b": 1, "c": 2, "d": 9}, "two": {"a": 0, "b": 1, "c": 2, "d": 3}}
    scores = {"one": {"a": 0.9, "b": 0.1, "c": 0.3}, "two": {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}}
    found = inside_tables.of_links(links, {"real": scores}, draws=2000).T.to_dict()
    assert found["real: one"] == {"pairs": 3, "W-rank": "1.0", "rho": "-0.50", "p": "1.0000"}
    assert found["real: two"] | {"p": ""} == {"pairs": 4, "W-rank": "1.5", "rho": "-1.00", "p": ""}
    assert float(found["real: two"]["p"]) == pytest.approx(2 / 24, abs=0.02)
    assert (found["real: all"]["pairs"], found["real: all"]["rho"]) == (7, "-0.75")
    assert float(found["real: all"]["p"]) == pytest.approx(14 / 144, abs=0.02)  # -1 and at most -1/2; -1/2 and -1


def test_patching_over_seeds_by_hand():
    """Two p of 0.1 have Fisher's statistic -2 ln 0.01, with p = 0.01 (1 - ln 0.01)."""
    seeds = [{"name_layer": 3, "name_excess": 1.0, "name_p": 0.1}, {"name_layer": 4, "name_excess": 2.0, "name_p": 0.1}]
    lines = [
        {"association": "one", "patching": each | {key.replace("name", "prompt"): value for key, value in each.items()}}
        for each in seeds
    ]
    found = inside_tables.patching(lines).T.to_dict()["one, end of the name"]
    assert found == {"seeds": 2, "layer": "3.5", "nats": "+1.50", "p": f"{0.01 * (1 - np.log(0.01)):.2g}"}


def test_the_committed_page_is_what_its_records_show(capsys, monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    monkeypatch.setattr(inside_tables, "DRAWS", 10)
    inside_page.show()
    shown, page = capsys.readouterr().out, (root / "results/inside/inside.md").read_text()
    assert shown.splitlines()[:25] == page.splitlines()[:25]
