"""What commands conclude from simulated run folders whose truth is known: from ranks on disk to the printed verdict."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_records import CONTROL, record
from msgspec.structs import replace
from simulated import Study

from ocr_eval.records.folder import RunFolder
from ocr_eval.records.record import Record
from ocr_eval.scoring.ranks import HeldOut
from ocr_eval.specs.run import SCORINGS

LINKS = (("city-language", "causal"), ("country-code", "spurious"))
#: Enough for a verdict on two differences.
SEEDS = 7
#: What groups share and seeds differ by in every study.
NOTHING = Study(0.0, seed_sd=0.15, together=0.4)
KNOWN = Study(0.4, seed_sd=0.15, together=0.4)
MUCH = Study(0.9, seed_sd=0.15, together=0.4)


def ranked(run: Record, held: HeldOut, base: HeldOut | None = None) -> Record:
    """A run whose held-out answers rank so."""
    score = replace(
        run.final["first-token"]["test_entailment"],
        probes=len(held.target),
        mean_rank=float(held.rank.mean()),
        null_rank=float(held.null.mean()),
        top1=float((held.rank == 0).mean()),
        mrr=float((1 / (held.rank + 1)).mean()),
        in_use_rank=float(held.in_use_rank.mean()),
        ocr_score=held.ocr_score,
    )
    final = {scoring: {**of, "test_entailment": score} for scoring, of in run.final.items()}
    held_out, base_held_out = (dict.fromkeys(SCORINGS, each) for each in (held, base or held))
    return replace(run, final=final, held_out=held_out, base_held_out=base_held_out)


def study_of(folder: Path, rng: np.random.Generator, real: Study, control: Study) -> Path:
    """The runs of a study: both links, with their no-entailment controls."""
    for condition, changes in ((real, {}), (control, {"data": CONTROL})):
        for name, kind in LINKS:
            for seed, (held,) in enumerate(condition.seeds(rng, SEEDS)):
                run = ranked(record(name, kind, seed=seed, **changes), held)
                place = folder / f"{name}-{len(changes)}-{seed}"
                place.mkdir(parents=True)
                (place / "result.json").write_text(replace(run, run=str(place)).to_json())
                (place / "status.json").write_text("{}")
    return folder


class Seen:
    """What ``table`` and ``compare`` print of one study."""

    def __init__(self, ocr_eval, folder: Path) -> None:
        table = ocr_eval("table", folder, "--no-published", "--format", "json")
        sides = ocr_eval("compare", "variant=real", "variant=no-entailment", folder, "--json")
        assert (table.code, sides.code) == (0, 0), table.err + sides.err
        compared = json.loads(sides.out)
        self.finding, self.verdict = table.err, compared["verdict"]
        self.cells = json.loads(table.out)["cells"]
        self.real = [cell for cell in self.cells if cell["lift"] is not None]
        self.differences = [each["paired"]["value"] for each in compared["contrasts"]]

    def shows(self, p: str) -> int:
        """Of how many links a corrected p says that something is there."""
        return sum(cell[p] is not None and cell[p] <= 0.05 for cell in self.real)


def held(low: float, high: float, truth: float) -> bool:
    return low - 1e-6 <= truth <= high + 1e-6  # six decimals are printed


@pytest.mark.parametrize("study", [NOTHING, KNOWN], ids=["nothing", "known"])
def test_what_is_not_there_is_seldom_said_to_be(ocr_eval, tmp_path, study):
    """Both conditions are alike, with nothing inferred or all of it known before; at most 1 study in 20 says otherwise.

    Of 32 such studies 4 or fewer do 98 times in 100.
    """
    rng = np.random.default_rng(11)
    seen = [Seen(ocr_eval, study_of(tmp_path / str(i), rng, study, study)) for i in range(32)]
    assert all(len(each.real) == len(LINKS) for each in seen)
    if study is NOTHING:
        assert sum(each.shows("p_holm") > 0 for each in seen) <= 4
    assert sum(each.shows("lift_p_holm") > 0 for each in seen) <= 4
    assert sum(re.search("it (generalized|hallucinated)", each.finding) is not None for each in seen) <= 4
    assert sum(re.search("A is.* (above|below) B", each.verdict) is not None for each in seen) <= 4
    truth = study.truth(rng)
    scores = [held(c["ocr_score_low"], c["ocr_score_high"], truth) for each in seen for c in each.cells]
    lifts = [held(cell["lift_low"], cell["lift_high"], 0.0) for each in seen for cell in each.real]
    differences = [held(found["low"], found["high"], 0.0) for each in seen for found in each.differences]
    assert min(np.mean(scores), np.mean(lifts), np.mean(differences)) >= 0.92
    assert np.mean([*scores, *lifts, *differences]) <= 0.99


def test_what_is_there_is_found(ocr_eval, tmp_path):
    rng = np.random.default_rng(12)
    seen = [Seen(ocr_eval, study_of(tmp_path / str(i), rng, MUCH, NOTHING)) for i in range(10)]
    for p in ("p_holm", "lift_p_holm"):
        assert np.mean([each.shows(p) == len(LINKS) for each in seen]) >= 0.9
    assert np.mean(["it generalized: " in each.finding for each in seen]) >= 0.9
    assert np.mean(["it hallucinated: " in each.finding for each in seen]) >= 0.9
    assert np.mean(["A is above B on city-language (+" in each.verdict for each in seen]) >= 0.9


@pytest.fixture
def controls(ocr_eval, tiny, tmp_path):
    """The command over finished runs of its three conditions, whose ranks are replaced by simulated ones."""
    flags = ["country-code", "--model", tiny, "--n", 3, "--m-train", 2, "--m-test", 3, "--epochs", 1, "--seeds", "0-5"]
    command = ["controls", *flags, "--measures", "none", "-o", tmp_path, "--quiet", "--json"]
    assert ocr_eval(*command).code == 0
    paths = sorted(tmp_path.glob("runs/*/*/*/*/result.json"))
    made = [(path, RunFolder(path.parent).record()) for path in paths]
    assert len(made) == 18

    def call(rng: np.random.Generator, real: Study, others: Study) -> tuple[str, list[dict]]:
        for path, run in made:
            study = real if run.data.variant == "real" else others
            ranks, base = (each.seeds(rng, 1)[0][0] for each in (study, others))
            path.write_text(ranked(learned(run), ranks, base).to_json())
        answer = ocr_eval(*command)
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        return found["verdict"], found["conditions"]

    return call


def learned(run: Record) -> Record:
    """The run as if it had learned whatever it was taught."""
    final = {
        scoring: {name: replace(score, top1=1.0) for name, score in of.items()} for scoring, of in run.final.items()
    }
    return replace(run, final=final, matched=None)


def test_controls_say_what_is_there_and_seldom_what_is_not(controls):
    """A finding that stands has to be above three controls at once, so that nearly none does by chance."""
    rng = np.random.default_rng(13)
    for study, stand in ((NOTHING, False), (KNOWN, False), (MUCH, True)):
        seen = [controls(rng, study, NOTHING if stand else study) for _ in range(6)]
        stood = [verdict.startswith("The finding stands") for verdict, _ in seen]
        assert np.mean(stood) >= 0.8 if stand else sum(stood) <= 1
        truth = study.truth(rng)
        covered = [held(real["score"]["low"], real["score"]["high"], truth) for _, (real, *_) in seen]
        assert np.mean(covered) >= 0.8
