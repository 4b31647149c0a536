"""Probes -> log-probabilities of every candidate under all scorings, from one forward pass per chunk.

The probes of several runs are scored side by side, each run through its own lane.

- ``first-token``: log-probability of the candidate's first token (the published scoring); of all its tokens in a
  probe whose candidates share a first token.
- ``sequence``: sum of the log-probabilities of all its tokens.
- ``per-token``: the same divided by their number.

All candidates branch off their prompt in one token forest (packing/forest.py), so a prompt is computed once,
candidates of a single token cost nothing extra, and all scorings come from the same pass.
Log-softmax is in fp32. Ranks are computed from these numbers in ``ranks``.

Dimension letters:  P probes,  C candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_eval.common.errors import RunFailed
from ocr_eval.common.messages import say
from ocr_eval.common.out_of_memory import free_cache, is_out_of_memory
from ocr_eval.data.tokenize import Ids, ProbeTokens
from ocr_eval.methods.view import View
from ocr_eval.packing.batch import PASS_NODES
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.packing.logprobs import Reader, read_logprobs
from ocr_eval.specs.run import Scoring

T = TypeVar("T")
Floats = NDArray[np.float64]

#: Approximate maximum nodes per run in a pass: attention that does not support clumps is quadratic in them.
CHUNK_NODES = 512
#: When memory runs out, passes are halved down to this many nodes.
_LEAST_NODES = 32


@dataclass(frozen=True)
class CandidateScores:
    """Log-probabilities in nats, [P, C] for each scoring; rows follow the probes.

    Rows with fewer than C candidates are padded with -inf, which outranks nothing. A server may give only
    ``first-token``, and not for all candidates: ``exact`` then says whose rank is exact. [P, C]
    """

    logprobs: dict[Scoring, Floats]
    exact: NDArray[np.bool_] | None = None

    @property
    def are_numbers(self) -> bool:
        """Whether none is NaN, as from a model whose weights are no longer finite."""
        return not any(np.isnan(values).any() for values in self.logprobs.values())


def first_tokens(probe: ProbeTokens) -> ProbeTokens:
    """A probe whose candidates are cut after their first tokens, so that a forward pass over its prompt is enough."""
    return replace(probe, candidates=tuple(ids[:1] for ids in probe.candidates))


def for_first_token(probe: ProbeTokens) -> ProbeTokens:
    """A probe with only those tokens of its candidates that first-token scoring reads."""
    return probe if probe.begin_alike else first_tokens(probe)


def score_candidates(view: View, probes: Sequence[ProbeTokens]) -> CandidateScores:
    """Score every candidate of every probe of one run; see ``score_lanes``."""
    return score_lanes(view, {0: probes})[0]


def score_lanes(view: View, probes: Mapping[int, Sequence[ProbeTokens]]) -> dict[int, CandidateScores]:
    """Score every candidate of every probe of several runs, each through its lane of the view.

    Raises:
        ValueError: a run without probes.
        RunFailed: not even a few prompts fit into memory.
    """
    if not all(probes.values()):
        raise ValueError("no probes to score")
    scores = {}
    for lane, found in _read_lanes(view, probes, read_logprobs).items():
        logprobs = [[values_T.tolist() for values_T in of_probe] for of_probe in found]
        scores[lane] = collected(logprobs, [probe.begin_alike for probe in probes[lane]])
    return scores


def with_room(view: View, lanes: int, score: Callable[[int], T]) -> T:
    """Call ``score`` with the nodes of each run in a pass: the usual number, halved whenever memory runs out.

    Raises:
        RunFailed: not even a few prompts fit into memory.
    """
    size = chunk_nodes(view.base.device.type, lanes)
    if view.cut.chunk_nodes is not None:
        size = min(size, view.cut.chunk_nodes)
    while True:
        try:
            return score(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        free_cache(view.base.device)
        if size <= _LEAST_NODES:
            raise RunFailed(
                f"There is too little memory to score even a few prompts at once ({reason}); see --dry-run."
            )
        size = view.cut.chunk_nodes = size // 2
        say(f"Out of memory: scoring continues in passes of about {size} nodes")


def chunk_nodes(device: str, lanes: int) -> int:
    """Approximate nodes of each run in a scoring pass, with ``lanes`` runs on a type of device."""
    return min(CHUNK_NODES, max(64, PASS_NODES.get(device, PASS_NODES["cpu"]) // lanes))


def read_probes(view: View, lane: int, probes: Sequence[ProbeTokens], reader: Reader) -> list[list[Floats]]:
    """What a reader finds at each token of each candidate of a run's probes. [probes][candidates][T, ...]

    Raises:
        RunFailed: not even a few prompts fit into memory.
    """
    return _read_lanes(view, {lane: probes}, reader)[lane]


def _read_lanes(
    view: View, probes: Mapping[int, Sequence[ProbeTokens]], reader: Reader
) -> dict[int, list[list[Floats]]]:
    """``read_probes`` of several runs side by side."""

    def read(size: int) -> dict[int, list[list[Floats]]]:
        found: dict[int, dict[int, list[Floats]]] = {lane: {} for lane in probes}
        for chunks in zip_longest(*(cut_probes(each, size) for each in probes.values())):
            side_by_side = {lane: chunk for lane, chunk in zip(probes, chunks, strict=True) if chunk is not None}
            rows, spans = {}, {}
            for lane, chunk in side_by_side.items():
                forest = Forest()
                reads, spans[lane] = read_answers(forest, [_question(probes[lane][i]) for i in chunk])
                rows[lane] = forest, reads
            with torch.no_grad():
                values = view.read(rows, reader)
            for lane, chunk in side_by_side.items():
                values_T, span = values[lane].cpu().double().numpy(), iter(spans[lane])
                found[lane] |= {i: [values_T[next(span)] for _ in probes[lane][i].candidates] for i in chunk}
        return {lane: [of[i] for i in range(len(of))] for lane, of in found.items()}

    return with_room(view, len(probes), read)


def collected(logprobs: Sequence[Sequence[Sequence[float]]], begin_alike: Sequence[bool]) -> CandidateScores:
    """All scores from the log-probability of each probe, candidate and token; which probes' candidates begin alike."""
    most = max(map(len, logprobs))

    def rows(of: Sequence[Sequence[float]], fill: float) -> Floats:
        return np.array([[*row, *[fill] * (most - len(row))] for row in of])

    whole = [[sum(tokens) for tokens in probe] for probe in logprobs]
    first = [
        sums if alike else [tokens[0] for tokens in probe]
        for probe, sums, alike in zip(logprobs, whole, begin_alike, strict=True)
    ]
    whole_PC, lengths_PC = rows(whole, -np.inf), rows([list(map(len, probe)) for probe in logprobs], 1)
    return CandidateScores(
        {"first-token": rows(first, -np.inf), "sequence": whole_PC, "per-token": whole_PC / lengths_PC}
    )


def cut_probes(probes: Sequence[ProbeTokens], size: int) -> list[list[int]]:
    """Split probes, by index, into nearly equal parts of at most about ``size`` nodes.

    Prompts with the same beginning stay together, so that a name is computed once for all questions about it.
    """
    order = sorted(range(len(probes)), key=lambda i: probes[i].prompt)
    forest, ends = Forest(), []
    for i in order:
        read_answers(forest, [_question(probes[i])])
        ends.append(len(forest.ids))
    parts = -(-ends[-1] // size)
    cuts: list[list[int]] = [[] for _ in range(parts)]
    for i, end in zip(order, ends, strict=True):
        cuts[(end - 1) * parts // ends[-1]].append(i)
    return [cut for cut in cuts if cut]


def _question(probe: ProbeTokens) -> tuple[Ids, Sequence[Ids]]:
    return probe.prompt, probe.candidates
