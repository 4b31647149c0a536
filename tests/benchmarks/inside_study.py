"""What is inside two small models after training: on pairs and, for SmolLM2, without entailments and shuffled.

    python tests/benchmarks/inside_study.py take RUNS...    # into measures.jsonl, what is not there yet
    python tests/benchmarks/inside_study.py take --measures link-map,patching RUNS...
    python tests/benchmarks/inside_study.py epochs RUNS...  # where all probes are scored, into epochs.csv
    python tests/benchmarks/inside_study.py blocks RUNS...  # of country-code, into blocks.json
    python tests/benchmarks/inside_study.py show > results/inside/inside.md

``take`` needs the adapters of the runs, which a repository does not hold: ``make results`` leaves them on disk. Of each
model and association it also keeps, in links.json, the W-rank of every pair in the untouched model.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from inside_page import BLOCKS, EPOCHS, LINKS, MADE, read, show
from ocr_toy.descent import descend, usual_descent
from ocr_toy.model import BOTH
from ocr_toy.task import noise_free

from ocr_eval import epochs_frame
from ocr_eval.common.files import write_atomic
from ocr_eval.execution.execute import reopen
from ocr_eval.measures.measure import Trained, take_measure
from ocr_eval.measures.sharing import cosines, reading_cosines
from ocr_eval.measures.untouched import first_logprobs, fit, sides_of
from ocr_eval.records.find import find_runs
from ocr_eval.records.reopen import read_trained
from ocr_eval.scoring.ranks import midranks

MEASURES = ("ov-change", "logit-lens", "sharing", "constant-direction")


def take(folders: list[Path], measures: list[str]) -> None:
    """Add to each run's line the measures that it lacks, and each association's links."""
    lines = {line["run"]: line for line in read()}
    links = json.loads(LINKS.read_text()) if LINKS.is_file() else {}
    runs = find_runs(*folders).runs
    for i, run in enumerate(runs):
        record = run.record
        score = record.final["first-token"]["test_entailment"].ocr_score
        about = {"association": record.association, "variant": record.data.variant, "seed": record.seed}
        line = lines.setdefault(record.run, {"run": record.run, **about, "score": score, "loss": record.train_loss})
        missing = [name for name in measures if name not in line]
        known = links.setdefault(record.model, {})
        if not missing and record.association in known:
            continue
        print(f"{i + 1}/{len(runs)} {record.run}", file=sys.stderr)
        trained = reopen(*read_trained(run.folder), "auto")
        for name in missing:
            line[name] = numbers(take_measure(name, trained))
        write_atomic(MADE, "".join(json.dumps(each) + "\n" for each in lines.values()))
        if record.association not in known:
            known[record.association] = links_before(trained)
            write_atomic(LINKS, json.dumps(links, indent=1) + "\n")


def take_epochs(folders: list[Path]) -> None:
    """Keep the norms of each run's change, its loss and its score after each epoch."""
    columns = {f"weight-change.{name}": name for name in ("frobenius", "nuclear", "effective_rank")}
    columns["test_entailment_ocr_score"] = "score"
    frame = epochs_frame(*folders).rename(columns=columns).dropna(subset=["effective_rank"])
    kept = ["association", "variant", "seed", "epoch", "train_loss", *columns.values()]
    write_atomic(EPOCHS, frame[kept].round(4).to_csv(index=False))


def take_blocks(folders: list[Path]) -> None:
    """Keep how alike each fact's and each entailment's answer are read: in the symbolic model, and by each training."""
    blocks: dict[str, list[np.ndarray]] = {}
    for param in BOTH:
        task = noise_free(5, 4, 16)
        w_ov = descend(task, usual_descent(param, task, 0)).w_ov
        b, c = (side[:, : task.n_subjects] for side in np.split(w_ov, 2))
        blocks[f"symbolic model, {param}"] = [cosines(*(side - side.mean(axis=0) for side in (b, c)))]
    for run in find_runs(*folders).runs:
        of_layers, _ = reading_cosines(reopen(*read_trained(run.folder), "auto"))
        blocks.setdefault(run.record.data.variant, []).append(np.mean(of_layers, axis=0))
    means = {name: np.mean(each, axis=0).round(3).tolist() for name, each in blocks.items()}
    write_atomic(BLOCKS, json.dumps(means, indent=1) + "\n")


def links_before(trained: Trained) -> dict[str, float]:
    """W-rank of each pair, by its fact's answer, in the untouched model."""
    sides = sides_of(trained.spec.association)
    z_S, z_T = (first_logprobs(trained.view(False), *side) for side in sides.values())
    ranks = midranks(fit(z_S, z_T)[0]).diagonal()
    return dict(zip(sides["fact"][0], ranks.round(1).tolist(), strict=True))


def numbers(found: dict) -> dict:
    """What a measure has at its top, without layers and heads."""
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("take")
    taking.add_argument("runs", type=Path, nargs="+")
    taking.add_argument("--measures", default=",".join(MEASURES), type=lambda text: text.split(","))
    commands.add_parser("epochs").add_argument("runs", type=Path, nargs="+")
    commands.add_parser("blocks").add_argument("runs", type=Path, nargs="+")
    commands.add_parser("show")
    given = parser.parse_args()
    if given.command == "take":
        take(given.runs, given.measures)
    elif given.command == "epochs":
        take_epochs(given.runs)
    elif given.command == "blocks":
        take_blocks(given.runs)
    else:
        show()
