"""The table of ten thousand records: reading, validating, testing and printing, in a separate process.

The records are copies of the committed ones with other rates: 3,334 cells of three seeds each, in the shape of the
published protocol. Prints the seconds of the fastest round for each format; the target is 3.

    python tests/benchmarks/bench_table.py [--records 10000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ocr_eval.records.find import find_runs

RESULTS = Path(__file__).parent.parent.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), arguments.records)
        for form in ("md", "csv"):
            seconds = min(seconds_of(Path(folder), form) for _ in range(arguments.rounds))
            print(f"table of {arguments.records:,} records as {form}: {seconds:.2f} s")


def write_records(root: Path, count: int) -> None:
    originals = [json.loads(record.to_json()) for record in find_runs(RESULTS / "smollm2-135m").records]
    originals = [record for record in originals if record["seed"] < 3][:15]
    for i in range(count):
        copy, original = divmod(i, len(originals))
        record = originals[original]
        folder = root / f"runs/{record['association']}/{copy:05d}/seed{record['seed']}"
        folder.mkdir(parents=True)
        record["train"]["lr"] = (copy + 1) * 1e-5
        record["run"] = str(folder.relative_to(root))
        ranks = {scoring: held["ranks"] for scoring, held in record["held_out"].items()}
        record.setdefault("matched", {"epoch": 8, "scores": record["final"], "ranks": ranks})
        (folder / "result.json").write_text(json.dumps(record))
        for name in ("status.json", "config.yaml", "env.json", "audit.json", "metrics.jsonl", "probes.jsonl"):
            (folder / name).write_text("{}")


def seconds_of(folder: Path, form: str) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "ocr_eval", "table", folder, "--format", form]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
