"""Which runs go together: a grid of runs -> packs that share a base and fill a forward pass. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ocr_eval.specs import RunSpec

#: Nodes that one pass holds, over all lanes. On a CPU matrix products are at full speed from about 500 rows and
#: more rows only leave the caches; a GPU wants thousands.
PASS_NODES = {"cpu": 640, "cuda": 16_384, "mps": 4_096}

#: Nodes of a token forest for each statement of a batch, about: a name, a relation, shared beginnings.
NODES_A_STATEMENT = 5


#: Says how many of some runs, at most the number given, fit into memory at once.
Fit = Callable[[Sequence[RunSpec], int], int]


def cut_into_packs(
    specs: Sequence[RunSpec], device: str, fit: Fit = lambda specs, lanes: lanes, workers: int = 1
) -> list[list[RunSpec]]:
    """Cut runs, in order, into packs of nearly equal size.

    Runs go together when they share base, precision, method and adapted modules; neighbours should be of one
    association, because rows of a pass are padded to the longest.

    Args:
        specs: the runs.
        device: the device's type.
        fit: is asked where several runs would fill a pass.
        workers: how many packs may be done at once; runs that fill several are cut so that all have the same to do.
    """
    packs: list[list[RunSpec]] = []
    start = 0
    for end in range(1, len(specs) + 1):
        if end == len(specs) or _shares(specs[end]) != _shares(specs[start]):
            group = specs[start:end]
            lanes = min(_lanes(group, device), len(group))
            packs += _cut(group, fit(group, lanes) if lanes > 1 else 1, workers)
            start = end
    return packs


def _shares(spec: RunSpec) -> tuple[object, ...]:
    return spec.model, spec.train.method, spec.train.targets


def _lanes(specs: Sequence[RunSpec], device: str) -> int:
    """How many runs fill a pass; a run that trains every parameter has the base for itself."""
    if specs[0].train.method == "full":
        return 1
    nodes = max(spec.train.batch_size for spec in specs) * NODES_A_STATEMENT
    return max(1, PASS_NODES.get(device, PASS_NODES["cpu"]) // nodes)


def _cut(specs: Sequence[RunSpec], lanes: int, workers: int) -> list[list[RunSpec]]:
    count = -(-len(specs) // lanes)
    if count > 1:
        count = min(len(specs), -(-count // workers) * workers)
    bounds = [round(i * len(specs) / count) for i in range(count + 1)]
    return [list(specs[start:end]) for start, end in pairwise(bounds)]
