"""Probes -> log-probabilities of every candidate under all scorings, from one forward pass a chunk.

- ``first-token``: log-probability of the first token of the candidate (the published scoring).
- ``sequence``: sum of the log-probabilities of all its tokens.
- ``per-token``: the same divided by their number.

All candidates' tails hang below their prompt in one token forest (forest.py), so a prompt is computed once,
candidates of a single token cost nothing more, and all scorings come from the same pass.
Log-softmax is in fp32. Ranks are computed from these numbers in ``stats``.

Dimension letters:  P probes,  C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_eval.forest import ForestBuilder, read_answers
from ocr_eval.forward import token_logprobs
from ocr_eval.models import Base
from ocr_eval.specs import Scoring
from ocr_eval.tokens import ProbeTokens

#: Nodes of a forest that is scored at once: enough rows to keep matrix products busy, few enough that
#: attention over all pairs of nodes (quadratic) stays small beside them.
CHUNK_NODES = 512


@dataclass(frozen=True)
class CandidateScores:
    """Log-probabilities in nats, [P, C] for each scoring; rows follow the probes."""

    logprobs: dict[Scoring, NDArray[np.float64]]


def score_candidates(base: Base, network: torch.nn.Module, probes: Sequence[ProbeTokens]) -> CandidateScores:
    """Score every candidate of every probe; the network is the base or the base under an adapter.

    Raises:
        ValueError: no probes.
    """
    if not probes:
        raise ValueError("no probes to score")
    network.eval()
    first: list[list[float]] = []
    whole: list[list[float]] = []
    lengths: list[list[int]] = []
    for chunk in _chunks(probes):
        builder = ForestBuilder()
        reads, spans = read_answers(builder, [(probe.prompt, probe.candidates) for probe in chunk])
        with torch.no_grad():
            logprobs = token_logprobs(base, network, builder.build(), reads).tolist()
        by_candidate = iter(spans)
        for probe in chunk:
            candidate_spans = [next(by_candidate) for _ in probe.candidates]
            first.append([logprobs[span[0]] for span in candidate_spans])
            whole.append([sum(logprobs[i] for i in span) for span in candidate_spans])
            lengths.append([len(span) for span in candidate_spans])
    whole_PC = np.array(whole)
    return CandidateScores(
        {"first-token": np.array(first), "sequence": whole_PC, "per-token": whole_PC / np.array(lengths)}
    )


def _chunks(probes: Sequence[ProbeTokens]) -> Iterator[list[ProbeTokens]]:
    """Cut probes, in order, into runs whose forest stays near CHUNK_NODES; neighbours share prefixes."""
    chunk: list[ProbeTokens] = []
    builder = ForestBuilder()
    for probe in probes:
        if chunk and len(builder) >= CHUNK_NODES:
            yield chunk
            chunk, builder = [], ForestBuilder()
        chunk.append(probe)
        read_answers(builder, [(probe.prompt, probe.candidates)])
    yield chunk
