"""Which runs are trained together: runs -> packs that share a base and fill a forward pass; their memory and time."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import torch

from ocr_eval.common.messages import duration, say
from ocr_eval.methods.method import method_of
from ocr_eval.methods.prevention import hooks_network
from ocr_eval.models.architecture import examine
from ocr_eval.packing.batch import PASS_NODES
from ocr_eval.planning import memory, timing, workload
from ocr_eval.planning.memory import MemoryPlan
from ocr_eval.planning.workload import Workload
from ocr_eval.specs import schedule
from ocr_eval.specs.run import RunSpec

#: Approximate number of token-forest nodes per statement of a batch; names and relations share prefixes.
_NODES_A_STATEMENT = 5
#: Assumed GPU memory in bytes, for planning packs on a machine without a GPU.
_ASSUMED_GPU = 40_000_000_000


def cut(specs: Sequence[RunSpec], device: str, at_once: int = 1) -> list[list[RunSpec]]:
    """Cut runs into packs of nearly the same number of runs, for a type of device.

    Runs of a pack share base, precision, method and adapted modules, and have batches of similar size, because rows of
    a pass are padded to the longest. Runs that need several packs are split evenly over the ``at_once`` that run at a
    time; on GPUs so are runs that would fit into fewer packs.
    """
    groups: dict[tuple[object, ...], list[RunSpec]] = defaultdict(list)
    for spec in specs:
        alone = spec if hooks_network(spec.train) else None
        groups[spec.model, spec.train.method, spec.train.targets, alone].append(spec)
    packs: list[list[RunSpec]] = []
    for group in groups.values():
        group.sort(key=lambda spec: spec.train.batch_size)
        lanes = min(_lanes(group, device), len(group))
        if device == "cuda":  # each process has its own GPU, which would otherwise be idle
            lanes = min(lanes, -(-len(group) // at_once))
        count = -(-len(group) // (lanes_that_fit(group, lanes, device) if lanes > 1 else 1))
        if count > 1:  # round up to a multiple of those that run at a time
            count = min(len(group), -(-count // at_once) * at_once)
        size, more = divmod(len(group), count)  # the first packs may have one run more
        bounds = [k * size + min(k, more) for k in range(count + 1)]
        packs += [group[first:last] for first, last in pairwise(bounds)]
    return packs


def _lanes(specs: Sequence[RunSpec], device: str) -> int:
    """How many runs fill a pass; full fine-tuning changes the base, so its runs do not share one."""
    if method_of(specs[0].train).needs.whole:
        return 1
    nodes = max(spec.train.batch_size for spec in specs) * _NODES_A_STATEMENT
    return max(1, PASS_NODES.get(device, PASS_NODES["cpu"]) // nodes)


def lanes_that_fit(specs: Sequence[RunSpec], wanted: int, device: str) -> int:
    """How many of these runs, from one to ``wanted``, may share a pack on a type of device, by the memory plan."""
    spec, free = widest(specs), room(device)
    work = workload.measure(spec)

    def is_too_much(lanes: int) -> bool:
        return not pack_memory(spec, work, lanes, device).fits(free)

    return max(1, bisect_left(range(1, wanted), True, key=is_too_much)) if is_too_much(wanted) else wanted


def room(device: str) -> int:
    """Free bytes on a type of device; assumed for a GPU that this machine lacks."""
    if device == "cuda" and not torch.cuda.is_available():
        return _ASSUMED_GPU
    return memory.available(torch.device(device))


def widest(pack: Sequence[RunSpec]) -> RunSpec:
    """The run of a pack that needs the most memory."""
    return max(pack, key=lambda spec: (spec.train.batch_size, spec.train.rank))


def pack_memory(spec: RunSpec, work: Workload, lanes: int, device: str) -> MemoryPlan:
    """The peak of a pack of ``lanes`` runs like this one."""
    return memory.estimate(spec.model, spec.train, *work.passes(device, lanes), device)


def describe_packs(
    packs: Sequence[Sequence[RunSpec]],
    done: Sequence[Sequence[bool]],
    device: str,
    workers: int,
    score_at: str = schedule.DEFAULT,
) -> list[str]:
    """A few lines per pack (its runs, which of them are ``done``, memory, time), and the time left in total.

    A pack unlike those before takes seconds, because it is simulated; stderr shows the progress. ``workers`` is how
    many packs run at once, ``score_at`` the schedule of scorings.
    """
    place = torch.device(device) if device != "cuda" or torch.cuda.is_available() else None
    lines, total, largest = [], 0.0, 0
    for number, (pack, finished) in enumerate(zip(packs, done, strict=True), start=1):
        say(f"Planning pack {number}/{len(packs)}")
        left = len(pack) - sum(finished)
        spec = widest(pack)
        work = workload.measure(spec, score_at=score_at)
        needed = pack_memory(spec, work, len(pack), device)
        largest = max(largest, needed.total)
        short = "" if needed.fits(room(device)) else f", MORE than the {room(device) / 1e9:.1f} GB that are free"
        line = f"pack {number}/{len(packs)}: {len(pack)} runs, {sum(finished)} done, {needed.total / 1e9:.1f} GB{short}"
        if place is not None and left:
            seconds = _seconds(spec, work, left, place, workers)
            total += seconds
            line += f", about {duration(seconds)}"
        lines.append(line)
        for spec, is_done in zip(pack, finished, strict=True):
            taught = " + ".join([spec.train.method, *spec.train.prevent])
            train = f"{taught} lr {spec.train.lr:g} rank {spec.train.rank} epochs {spec.train.epochs}"
            shape = f"m_train {spec.data.m_train} {spec.data.variant}"
            run = f"{spec.model.name} {spec.association.name} seed {spec.seeds} {train} {shape}"
            lines.append(f"  {run}{' done' if is_done else ''}")
    models = {(spec.model.name, spec.precision): spec.model for pack in packs for spec in pack}
    lines += [
        f"dtype: {name} in {dtype}{timing.faster_note(model, place) if place else ''}"
        for (name, dtype), model in sorted(models.items())
    ]
    notes = {memory.note(spec.train) for pack in packs for spec in pack} - {""}
    lines += [f"note: {note.removeprefix('; ')}" for note in sorted(notes)]
    if workers > 1:
        lines.append(f"processes: {workers}, each with its own pack, {workers * largest / 1e9:.1f} GB together")
    if place is None:
        return [*lines, f"memory: assuming a {_ASSUMED_GPU / 1e9:.0f} GB GPU, as this machine has none; time: unknown"]
    left_over = f"{duration(total / workers)} for what is left"
    return [*lines, f"time: about {left_over}, from the speed of this device's matrix products"]


def _seconds(spec: RunSpec, work: Workload, lanes: int, place: torch.device, workers: int) -> float:
    """Seconds for a pack of ``lanes`` runs like this one, with its share of the threads."""
    passes, threads = work.passes(place.type, lanes), torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        return timing.calibrate(spec.model, examine(spec.model), spec.train, *passes, place).run(work)
    finally:
        torch.set_num_threads(threads)
