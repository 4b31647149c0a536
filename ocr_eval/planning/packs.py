"""Which runs are trained together: runs -> packs that share a base and fill a forward pass. Pure."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from ocr_eval.methods.method import method_of
from ocr_eval.methods.prevention import hooks_network
from ocr_eval.packing.batch import PASS_NODES
from ocr_eval.specs.run import RunSpec

#: Approximate number of token-forest nodes per statement of a batch; names and relations share prefixes.
NODES_A_STATEMENT = 5


#: How many of these runs, at most the given number, fit into memory at once.
Fit = Callable[[Sequence[RunSpec], int], int]


def cut_into_packs(
    specs: Sequence[RunSpec],
    device: str,
    fit: Fit = lambda specs, lanes: lanes,
    workers: int = 1,
) -> list[list[RunSpec]]:
    """Cut runs, in order, into packs of nearly the same number of runs.

    Runs of a pack share base, precision, method and adapted modules. Neighbours should have batches of about the same
    size, because rows of a pass are padded to the longest, and the smallest should come first.

    Runs that need several packs are split evenly over ``workers``, which work at the same time; on GPUs so are runs
    that would fit into fewer packs. ``fit`` is called only if several runs would fill a pass.
    """
    packs: list[list[RunSpec]] = []
    start = 0
    for end in range(1, len(specs) + 1):
        if end == len(specs) or share_key(specs[end]) != share_key(specs[start]):
            group = specs[start:end]
            lanes = min(_lanes(group, device), len(group))
            if device == "cuda":  # each worker has its own GPU, which would otherwise be idle
                lanes = min(lanes, -(-len(group) // workers))
            count = -(-len(group) // (fit(group, lanes) if lanes > 1 else 1))
            if count > 1:  # round up to a multiple of the workers
                count = min(len(group), -(-count // workers) * workers)
            size, more = divmod(len(group), count)  # the first packs may have one run more
            bounds = [k * size + min(k, more) for k in range(count + 1)]
            packs += [list(group[first:last]) for first, last in pairwise(bounds)]
            start = end
    return packs


def share_key(spec: RunSpec) -> tuple[object, ...]:
    """A key that is equal for runs that may share a pack."""
    alone = spec if hooks_network(spec.train) else None
    return spec.model, spec.train.method, spec.train.targets, alone


def _lanes(specs: Sequence[RunSpec], device: str) -> int:
    """How many runs fill a pass; full fine-tuning changes the base, so its runs do not share one."""
    if method_of(specs[0].train).needs.whole:
        return 1
    nodes = max(spec.train.batch_size for spec in specs) * NODES_A_STATEMENT
    return max(1, PASS_NODES.get(device, PASS_NODES["cpu"]) // nodes)
