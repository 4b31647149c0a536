"""Records of rehearsals on disk, and the table of plan against measured that is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ocr_eval.common.files import prepare_output, write_atomic
from ocr_eval.planning.rehearsal import Rehearsal

TABLE = "rehearsals.md"


_INTRODUCTION = """# Rehearsals: plan against measured

True-size architectures with random weights: a few training steps on one batch of country-code (32 statements), then a
part of the probes scored. The peak is the process's own (a GPU's: the allocator's), with interpreter and libraries;
*planned* is what `--dry-run` says from the configuration alone. Seconds are of the fastest step, beside what the
calibration foretold just before; other work on the machine lengthens both. Written by `ocr-eval models rehearse MODEL
--method METHOD --output-dir FOLDER`.

"""


def write(rehearsal: Rehearsal, folder: Path) -> Path:
    """Write a rehearsal's record and renew the table of all that lie in the folder; returns the record's path.

    Raises:
        UserError: the folder cannot be written.
    """
    prepare_output(folder)
    built, whole = rehearsal.layers
    part = "" if built == whole else f"-{built}layers"
    path = folder / f"{rehearsal.model}-{rehearsal.method}-{rehearsal.dtype}{part}.json"
    write_atomic(path, json.dumps(rehearsal.as_json(), indent=2) + "\n")
    write_atomic(folder / TABLE, table(folder))
    return path


def table(folder: Path) -> str:
    """The table of all records of a folder, in markdown."""
    from tabulate import tabulate

    header = [
        "model",
        "layers",
        "method",
        "tokenizer",
        "GB planned",
        "GB at peak",
        "deviation",
        "s a step",
        "planned s",
    ]
    header += ["nodes", "probes scored", "in s", "matrices moved", "loss"]
    rows = [_row(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    text: str = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return _INTRODUCTION + text + "\n"


def _row(record: dict[str, Any]) -> list[str]:
    built, whole = record["layers"]
    return [
        record["model"],
        str(built) if built == whole else f"{built} of {whole}",
        f"{record['method']}, {record['dtype']}",
        "its own" if record["real_tokenizer"] else "stand-in",
        f"{record['plan']['total'] / 1e9:.2f}",
        f"{record['peak'] / 1e9:.2f}",
        f"{record['deviation']:+.1%}",
        f"{min(record['step_seconds']):.1f}",
        f"{record['planned_step']:.1f}",
        str(record["nodes"]),
        "{} of {}".format(*record["scored"]),
        f"{record['score_seconds']:.1f}",
        f"{record['moved']} of {record['adapters']}",
        f"{record['losses'][0]:.2f} -> {record['losses'][-1]:.2f}",
    ]
