"""The cost of a scoring: all probes, only the premises by first token, and ranks in the whole vocabulary.

One run of the default model in bf16 on a CPU, with the untouched base. Prints the median seconds of three rounds.

    python tests/benchmarks/bench_scoring.py [--assoc country-code]
"""

from __future__ import annotations

import argparse
import statistics
import time

from ocr_eval.execution.execute import Bases
from ocr_eval.execution.live_run import prepare
from ocr_eval.measures.vocabulary import in_vocabulary
from ocr_eval.methods.view import View
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec


def main() -> None:
    """Time each in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assoc", default="country-code")
    association = load_association(parser.parse_args().assoc)
    spec = make_run_spec(load_model_spec("smollm2-135m"), association, {}, {}, 0).in_precision("bfloat16")
    base = Bases("cpu").get(spec)
    asked, view = prepare(base.tokenizer, spec), View(base, base.network)
    jobs = {
        "all probes": lambda: score_candidates(view, asked.probes),
        "only premises": lambda: score_candidates(view, asked.premises),
        "vocabulary, one model": lambda: in_vocabulary(view, 0, asked.probes),
    }
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(3):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            took[name].append(time.perf_counter() - started)
    for name, seconds in took.items():
        print(f"{name:26}{statistics.median(seconds):6.2f} s")


if __name__ == "__main__":
    main()
