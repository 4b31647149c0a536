"""Many seeds in a few cells: time and memory for the table and the page of 20,000 records, each in its own process.

The records are copies of a committed one with other seeds: a cell of real data and its no-entailment control, or two
cells of two associations. Prints seconds and peak memory; the targets are 20 s and 1 GB.

    python tests/benchmarks/bench_seeds.py [--records 20000]
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
MEASURED = """
import resource, sys
from ocr_eval.cli.app import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    records = parser.parse_args().records
    for what, cells in (("two associations", two_associations()), ("real and control", real_and_control())):
        with tempfile.TemporaryDirectory() as folder:
            for cell in cells:
                write_records(Path(folder), cell, records // 2)
            commands = {"table": [], "table as csv": ["--format", "csv"], "table --components": ["--components"]}
            for name, flags in {**commands, "report": ["-o", f"{folder}/report.html"]}.items():
                seconds, busy, megabytes = measure([name.split()[0], folder, *flags])
                took = f"{seconds:.1f} s ({busy:.1f} s of CPU time), {megabytes:,.0f} MB"
                print(f"{name} of {records:,} records, {what}: {took}", flush=True)


def _record(association: str) -> dict:
    (run,) = find_runs(*RESULTS.glob(f"smollm2-135m/runs/smollm2-135m/{association}/lora/seed0-*")).runs
    return json.loads(run.record.to_json())


def two_associations() -> list[dict]:
    return [_record("city-language"), _record("country-code")]


def real_and_control() -> list[dict]:
    real, control = _record("city-language"), _record("city-language")
    control["data"]["variant"] = "no-entailment"
    return [real, control]


def write_records(root: Path, record: dict, seeds: int) -> None:
    for seed in range(seeds):
        folder = root / f"runs/{record['association']}/{record['data'].get('variant', 'real')}/seed{seed}"
        folder.mkdir(parents=True)
        record |= {"seed": seed, "run": str(folder.relative_to(root))}
        (folder / "result.json").write_text(json.dumps(record))
        (folder / "status.json").write_text("{}")


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of a command; exit code 1 means that runs lack other files."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    assert done.returncode in (0, 1), done.stderr.decode()[-2000:]
    *_, busy, kilobytes = done.stderr.split()
    return time.perf_counter() - started, float(busy), int(kilobytes) / 1e3


if __name__ == "__main__":
    main()
