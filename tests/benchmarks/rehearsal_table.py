"""The table of rehearsals, plan against measurement, from the records in a folder (``make rehearsals``).

python tests/benchmarks/rehearsal_table.py results/rehearsal > results/rehearsal/rehearsals.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

_INTRODUCTION = """# Rehearsals: plan against measured

True-size architectures with random weights: a few training steps on one batch of country-code (32 statements), then a
part of the probes scored. The peak is the process's own (a GPU's: the allocator's), with interpreter and libraries;
*planned* is what `--dry-run` says from the configuration alone. Seconds are those of the fastest step, next to what the
calibration predicted just before; other work on the machine increases both. Written by `make rehearsals`.

"""


def _row(record: dict[str, Any]) -> dict[str, str]:
    """A record as a row of the table, by column."""
    built, whole = record["layers"]
    return {
        "model": record["model"],
        "layers": str(built) if built == whole else f"{built} of {whole}",
        "method": f"{record['method']}, {record['dtype']}",
        "tokenizer": "its own" if record["real_tokenizer"] else "stand-in",
        "GB planned": f"{record['plan']['total'] / 1e9:.2f}",
        "GB at peak": f"{record['peak'] / 1e9:.2f}",
        "deviation": f"{record['deviation']:+.1%}",
        "s a step": f"{min(record['step_seconds']):.1f}",
        "planned s": f"{record['planned_step']:.1f}",
        "nodes": str(record["nodes"]),
        "probes scored": "{} of {}".format(*record["scored"]),
        "in s": f"{record['score_seconds']:.1f}",
        "matrices moved": f"{record['moved']} of {record['adapters']}",
        "loss": f"{record['losses'][0]:.2f} -> {record['losses'][-1]:.2f}",
    }


if __name__ == "__main__":
    rows = [_row(json.loads(record.read_text())) for record in sorted(Path(sys.argv[1]).glob("*.json"))]
    print(_INTRODUCTION + tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
