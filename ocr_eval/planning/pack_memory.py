"""What a sweep will need: how many runs fit into a pack, and each pack's memory and time."""

from bisect import bisect_left
from collections.abc import Sequence

import torch

from ocr_eval.common.messages import duration, say
from ocr_eval.models.architecture import examine
from ocr_eval.planning import memory, timing, workload
from ocr_eval.planning.memory import MemoryPlan
from ocr_eval.planning.packs import Fit
from ocr_eval.planning.workload import Workload
from ocr_eval.specs import schedule
from ocr_eval.specs.run import RunSpec

#: Assumed GPU memory in bytes, for planning packs on a machine without a GPU.
ASSUMED_GPU = 40_000_000_000


def room(device: str) -> int:
    """Free bytes on a type of device; for a GPU that this machine lacks, ``ASSUMED_GPU``."""
    if device == "cuda" and not torch.cuda.is_available():
        return ASSUMED_GPU
    return memory.available(torch.device(device))


def lanes_that_fit(device: str) -> Fit:
    """A ``Fit``: how many runs may share a pack on a type of device, by the memory plan; at least one."""

    def fit(specs: Sequence[RunSpec], wanted: int) -> int:
        spec, free = widest(specs), room(device)
        work = workload.measure(spec)

        def is_too_much(lanes: int) -> bool:
            return not pack_memory(spec, work, lanes, device).fits(free)

        return max(1, bisect_left(range(1, wanted), True, key=is_too_much)) if is_too_much(wanted) else wanted

    return fit


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
        return [*lines, f"memory: assuming a {ASSUMED_GPU / 1e9:.0f} GB GPU, as this machine has none; time: unknown"]
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
