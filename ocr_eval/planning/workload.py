"""RunSpec -> the amount of computation: examples, tokens, steps, and the shapes of the largest passes."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.data.stand_in_tokenizer import StandInTokenizer
from ocr_eval.data.task import Task
from ocr_eval.data.tokenize import Continuation, ProbeTokens, probe_tokens, training_tokens
from ocr_eval.methods.pack import batches_of_epoch
from ocr_eval.methods.prevention import task_of_run
from ocr_eval.models import weights
from ocr_eval.models.architecture import read_config
from ocr_eval.models.base import load_tokenizer_from
from ocr_eval.models.hub import TOKENIZER_FILES
from ocr_eval.packing.batch import lay_out
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.planning.simulation import Geometry
from ocr_eval.scoring import candidates
from ocr_eval.specs import schedule
from ocr_eval.specs.model import ModelSpec
from ocr_eval.specs.run import RunSpec

#: Architectures whose tokenizers prepend a BOS token.
_WITH_BOS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral")


@dataclass(frozen=True)
class Workload:
    """The amount of work of one run.

    Attributes:
        real_tokenizer: whether tokens were counted with the model's own tokenizer, or with a stand-in.
        tokens: statement tokens per epoch, without sharing prefixes.
        nodes: nodes of the forests per epoch, with padding, which are what is computed.
        training: the largest training batch.
        scored_nodes: nodes per scoring.
        scorings: how often all probes are scored at most.
    """

    task: Task
    real_tokenizer: bool
    tokens: int
    nodes: int
    steps: int
    training: Geometry
    probes: Sequence[ProbeTokens]
    scored_nodes: int
    scorings: int

    def passes(self, device: str, lanes: int = 1) -> tuple[Geometry, Geometry]:
        """The largest batch and the largest scoring pass of ``lanes`` runs like this one side by side."""
        chunks = _chunks(self.probes, candidates.chunk_nodes(device, lanes))
        scoring = max(chunks, key=lambda chunk: chunk.reads)
        return replace(self.training, lanes=lanes), replace(scoring, lanes=lanes)


def measure(spec: RunSpec, tokenizer: Path | None = None, score_at: str = schedule.DEFAULT) -> Workload:
    """The work of a run, counted with the tokenizer in a folder, else the model's if on this disk, else a stand-in.

    Raises:
        UserError: the tokenizer cannot encode the data.
    """
    tokens, is_real = tokenizer_at_hand(spec.model, tokenizer)
    task = task_of_run(spec)
    examples = training_tokens(tokens, task)
    probes = probe_tokens(tokens, task)
    epochs = spec.train.epochs
    # One epoch represents all; if the thirds of training differ, one epoch represents each third.
    tried = [1 + third * epochs // 3 for third in range(3)] if any(e.thirds for e in examples) else [1]
    taught = [batch for epoch in tried for batch in batches_of_epoch(examples, spec.stream("order"), epoch, spec.train)]
    batches = [batch_geometry(batch) for batch in taught]
    due = [epoch for epoch in range(1, epochs + 1) if epoch == epochs or schedule.is_due(score_at, epoch)]
    return Workload(
        task=task,
        real_tokenizer=is_real,
        tokens=sum(len(e.prompt) + len(e.answer) for batch in taught for e in batch) // len(tried),
        nodes=sum(batch.nodes for batch in batches) // len(tried),
        steps=len(batches) * epochs // len(tried),
        training=max(batches, key=lambda batch: batch.nodes),
        probes=probes,
        scored_nodes=sum(chunk.nodes for chunk in _chunks(probes, candidates.CHUNK_NODES)),
        scorings=1 + min(epochs, len(due) + 1),  # plus one when premises first hold
    )


def _chunks(probes: Sequence[ProbeTokens], size: int) -> list[Geometry]:
    """The passes that score a run's probes, each of about ``size`` nodes."""
    return [chunk_geometry([probes[i] for i in part]) for part in candidates.cut_probes(probes, size)]


def tokenizer_at_hand(spec: ModelSpec, folder: Path | None = None) -> tuple[Any, bool]:
    """The model's tokenizer if it is on this disk (True), else a stand-in with the same vocabulary size (False).

    Raises:
        UserError: ``folder`` has no tokenizer.
    """
    if folder is not None:
        return load_tokenizer_from(folder), True
    folder = weights.cached(spec, TOKENIZER_FILES)
    if folder is not None:
        with suppress(UserError):  # a model folder may have no tokenizer
            return load_tokenizer_from(folder), True
    config = read_config(spec)
    return StandInTokenizer(config.vocab_size, bos=config.model_type in _WITH_BOS), False


def batch_geometry(batch: Sequence[Continuation]) -> Geometry:
    """The shape of a training batch."""
    return _geometry([(example.prompt, [example.answer]) for example in batch])


def chunk_geometry(chunk: Sequence[ProbeTokens]) -> Geometry:
    """The shape of a scoring pass."""
    return _geometry([(probe.prompt, probe.candidates) for probe in chunk])


def _geometry(questions: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, ...]]]]) -> Geometry:
    forest = Forest()
    reads, _ = read_answers(forest, questions)
    batch = lay_out([(forest, reads)])
    nodes, clumps = batch.ids.shape[1], batch.sees.shape[1]
    return Geometry(lanes=1, nodes=nodes, reads=len(batch.kept), tokens=len(reads.tokens), clumps=clumps)
