"""What each hand-written part gains: a training step and a full scoring as they are, and without one part at a time.

All variants compute gradients of the same batches and score the same probes, in turn in one process, so that they are
exposed to the same noise. A ratio says how many times longer it takes without a part. With one thread (as in a sweep)
times are CPU time, which other processes do not disturb; with more, wall time. The fastest round counts.

    python tests/benchmarks/bench_kernels.py [--dtype float32] [--lanes 4] [--threads 1] [--rounds 4]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from unittest import mock

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import training_tokens
from ocr_eval.execution.live_run import prepare
from ocr_eval.methods import view
from ocr_eval.methods.pack import GradientPack, attach
from ocr_eval.methods.train import _gradients
from ocr_eval.models import grouped_attention
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.specs.association import load_association
from ocr_eval.specs.model import load_model_spec
from ocr_eval.specs.run import make_run_spec


@contextmanager
def library_attention(pack: GradientPack, name: str) -> Iterator[None]:
    """The library's attention, on rows that are not divided into clumps."""
    pack.base.network.set_attn_implementation(name)
    yield
    pack.base.network.set_attn_implementation(grouped_attention.NAME)


def plain_logprobs(logits_SV: Tensor, rows_T: Tensor, tokens_T: Tensor, at_once: int) -> Tensor:
    """All logits in fp32 at once."""
    return logits_SV.float().log_softmax(-1)[rows_T, tokens_T]


@contextmanager
def none_of_them(ways: list[Callable[[], AbstractContextManager[object]]]) -> Iterator[None]:
    """Several changes at once."""
    with ExitStack() as stack:
        for changed in ways:
            stack.enter_context(changed())
        yield


def one_clump(rows: list, by_clump: bool) -> object:
    """Rows that are not divided."""
    return LAY_OUT(rows, by_clump=False)


LAY_OUT = view.lay_out


def main() -> None:
    """Time all variants in turn, and print how much longer a step and a scoring take without each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model_spec("smollm2-135m").model_copy(update={"dtype": arguments.dtype})
    association = load_association("country-code")
    specs = [make_run_spec(model, association, {}, {}, seed) for seed in range(arguments.lanes)]
    base = load_base(model, locate(model), device="cpu")
    examples = [training_tokens(base.tokenizer, build_task(spec)) for spec in specs]
    pack = attach(base, specs, examples)
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "as it is": lambda: mock.patch.object(view, "lay_out", LAY_OUT),
        "sdpa for attention": lambda: library_attention(pack, "sdpa"),
        "eager for attention": lambda: library_attention(pack, "eager"),
        "without clumps": lambda: mock.patch.object(view, "lay_out", one_clump),
        "log-softmax at once": lambda: mock.patch.object(view, "read_logprobs", plain_logprobs),
    }
    ways["eager, and no other"] = partial(
        none_of_them,
        [ways[way] for way in ways if way not in ("as it is", "sdpa for attention", "without clumps")],
    )
    batch = {lane: injection.batches()[0] for lane, injection in enumerate(pack.learners)}
    probes = prepare(base.tokenizer, specs[0]).probes
    jobs: dict[str, Callable[[], object]] = {
        "step": lambda: _gradients(pack, batch),
        "scoring": lambda: score_candidates(view.View(base, base.network), probes),
    }
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for way, changed in ways.items():
            for name, job in jobs.items():
                with changed():
                    started = clock()
                    job()
                    seconds.setdefault((way, name), []).append(clock() - started)
    best = {key: min(times[1:]) for key, times in seconds.items()}
    print(f"{arguments.dtype}, {torch.backends.cpu.get_cpu_capability()}, {arguments.lanes} lanes, ", end="")
    print(f"{arguments.threads} threads, best of {arguments.rounds}: ", end="")
    print(", ".join(f"{best['as it is', name]:.3f} s per {name}" for name in jobs))
    for way in ways:
        print(f"{way:24}" + "".join(f"{best[way, name] / best['as it is', name]:6.2f}x" for name in jobs))


if __name__ == "__main__":
    main()
