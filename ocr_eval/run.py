"""RunSpec -> record: the one composition of data, model, training, scoring and disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ocr_eval import provenance, weights
from ocr_eval.audit import Audit, audit_dataset
from ocr_eval.dataset import build_dataset
from ocr_eval.injection import Injection, attach, detach, load_adapter
from ocr_eval.measure import facts_learned, held_out, probe_lines, summarize_quantities
from ocr_eval.models import Base, Device, load_base
from ocr_eval.progress import say
from ocr_eval.records import Record, Scores
from ocr_eval.runs import RunFolder, prepare_output
from ocr_eval.score import CandidateScores, score_candidates
from ocr_eval.specs import RunSpec
from ocr_eval.tokens import Continuation, ProbeTokens, probe_tokens, training_tokens
from ocr_eval.train import train_epoch

#: Seconds between checkpoints; a run loses at most this much, and a short run writes none.
CHECKPOINT_EVERY = 20.0


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its record, and whether it was there already."""

    folder: Path
    record: Record
    was_done: bool


def finetune(spec: RunSpec, output: Path, device: Device = "auto", force: bool = False, every: int = 1) -> Outcome:
    """Inject and score one run, or return it if the same run is done already; see ``finetune_all``."""
    return next(finetune_all([spec], output, device, force, every))


def finetune_all(
    specs: Iterable[RunSpec], output: Path, device: Device = "auto", force: bool = False, every: int = 1
) -> Iterator[Outcome]:
    """Inject and score runs one after another; a base that several share is loaded once.

    A run that is done already is returned and not repeated. An interrupted one goes on after its last
    checkpoint, with the result it would have had uninterrupted.

    Args:
        specs: the runs.
        output: the output folder; the runs' own lie below it.
        device: where to compute.
        force: run again even if it is done.
        every: score after every this many epochs (and after the last); never changes what is learned.

    Raises:
        UserError: bad input, found before any training of the run.
        RunFailed: training could not go on.
    """
    prepare_output(output)
    base: Base | None = None
    for spec in specs:
        located = weights.locate(spec.model)
        fingerprint = spec.fingerprint(located.identity, provenance.code_digest())
        folder = RunFolder.of(output, spec, fingerprint)
        if not force and folder.is_done():
            yield Outcome(folder.path, folder.record(), was_done=True)
            continue
        quantized = spec.train.method == "qlora"
        if base is None or (base.spec, base.quantized) != (spec.model, quantized):
            base = load_base(spec.model, located, device, quantized)
        material = _prepare(base, spec)
        with folder.lock():
            if force:
                folder.clear()
            was_done = folder.is_done()  # by another process, while this one was loading
            record = folder.record() if was_done else _inject(base, spec, folder, material, every)
        yield Outcome(folder.path, record, was_done)


def rescore(spec: RunSpec, adapter: Path | None, device: Device = "auto") -> Scores:
    """Score a model on a run's probes, with an adapter over it (unmerged) or untouched.

    Raises:
        UserError: no such adapter, or one of another base.
    """
    base = load_base(spec.model, weights.locate(spec.model), device, quantized=spec.train.method == "qlora")
    probes = probe_tokens(base.tokenizer, build_dataset(spec))
    if adapter is None:
        return summarize_quantities(probes, score_candidates(base, base.network, probes))
    network = load_adapter(base, adapter)
    try:
        return summarize_quantities(probes, score_candidates(base, network, probes))
    finally:
        detach(network)


@dataclass(frozen=True)
class _Material:
    """What a run learns and is asked, in tokens, and the audit of its candidates."""

    examples: Sequence[Continuation]
    probes: Sequence[ProbeTokens]
    audit: Audit


def _prepare(base: Base, spec: RunSpec) -> _Material:
    """Raises UserError where the tokenizer cannot do with the data, before anything is written."""
    dataset = build_dataset(spec)
    return _Material(
        examples=training_tokens(base.tokenizer, dataset),
        probes=probe_tokens(base.tokenizer, dataset),
        audit=audit_dataset(base.tokenizer, dataset),
    )


def _inject(base: Base, spec: RunSpec, folder: RunFolder, material: _Material, every: int) -> Record:
    """Train, score and write one run over a base that is as clean afterwards as before."""
    probes = material.probes
    folder.begin(spec, provenance.environment(str(base.device)), material.audit.as_json())
    injection = attach(base, spec, material.examples)
    try:
        lines: list[dict[str, Any]] = []
        if folder.checkpoint.is_file():
            injection.restore(folder.checkpoint)
            say(f"Going on after epoch {injection.epochs_done}")
            lines = [line for line in folder.metrics() if line["epoch"] <= injection.epochs_done]
        scores = _train(base, spec, folder, injection, probes, lines, every)
        injection.save_adapter(folder.adapter, spec)
    finally:
        detach(injection.network)
    record = _record(base, spec, folder, lines)
    folder.finish(record, folder.probes() + probe_lines(probes, scores, spec.train.epochs))
    return record


def _train(
    base: Base,
    spec: RunSpec,
    folder: RunFolder,
    injection: Injection,
    probes: Sequence[ProbeTokens],
    lines: list[dict[str, Any]],
    every: int,
) -> CandidateScores:
    """Train to the end, scoring and writing ``lines`` as it goes; returns the scores after the last epoch."""
    if not lines:
        scores, line = _scored_line(base, spec, injection, probes, train_loss=None, train_seconds=0.0)
        folder.write_probes(probe_lines(probes, scores, epoch=0))
        lines.append(line)
        folder.write_metrics(lines)
    saved_at = time.monotonic()
    while injection.epochs_done < spec.train.epochs:
        started = time.monotonic()
        loss = train_epoch(base, injection)
        seconds = time.monotonic() - started
        done = injection.epochs_done
        if done % every == 0 or done == spec.train.epochs:
            scores, line = _scored_line(base, spec, injection, probes, loss, seconds)
        else:
            line = {"epoch": done, "train_loss": loss, "train_seconds": seconds}
        lines.append(line)
        folder.write_metrics(lines)
        if done < spec.train.epochs and time.monotonic() - saved_at >= CHECKPOINT_EVERY:
            folder.write_checkpoint(injection.checkpoint())
            saved_at = time.monotonic()
    return scores


def _scored_line(
    base: Base,
    spec: RunSpec,
    injection: Injection,
    probes: Sequence[ProbeTokens],
    train_loss: float | None,
    train_seconds: float,
) -> tuple[CandidateScores, dict[str, Any]]:
    """Score now; the raw scores and the line of metrics.jsonl."""
    started = time.monotonic()
    scores = score_candidates(base, injection.network, probes)
    summaries = summarize_quantities(probes, scores)
    say(_progress_line(spec, injection.epochs_done, train_loss, summaries))
    line = {
        "epoch": injection.epochs_done,
        "train_loss": train_loss,
        "train_seconds": train_seconds,
        "score_seconds": time.monotonic() - started,
        "scores": {
            scoring: {quantity: score.model_dump() for quantity, score in by_quantity.items()}
            for scoring, by_quantity in summaries.items()
        },
        "held_out": {scoring: ranks.model_dump() for scoring, ranks in held_out(probes, scores).items()},
    }
    return scores, line


def _record(base: Base, spec: RunSpec, folder: RunFolder, lines: list[dict[str, Any]]) -> Record:
    final = TypeAdapter(Scores).validate_python(lines[-1]["scores"])
    return Record.model_validate(
        {
            "run": folder.identity,
            "model": spec.model.name,
            "published_as": spec.model.published_as,
            "association": spec.association.name,
            "kind": spec.association.kind,
            "seed": spec.seed,
            "dtype": spec.model.dtype,
            "data": spec.data,
            "train": spec.train,
            "facts_learned": facts_learned(final),
            "base": lines[0]["scores"],
            "final": final,
            "base_held_out": lines[0]["held_out"],
            "held_out": lines[-1]["held_out"],
            "train_loss": lines[-1]["train_loss"],
            "seconds": {
                "train": round(sum(line["train_seconds"] for line in lines), 2),
                "score": round(sum(line.get("score_seconds", 0.0) for line in lines), 2),
            },
            "base_identity": base.identity,
            "adapter_sha256": weights.file_sha256(folder.adapter / "adapter_model.safetensors"),
            "code": provenance.code_digest(),
        }
    )


def _progress_line(spec: RunSpec, epoch: int, train_loss: float | None, scores: Scores) -> str:
    first = scores["first-token"]
    finding = first["test_entailment"]
    control = " no-entailment" if spec.data.m_train == 0 else " shuffled" if spec.data.variant == "shuffled" else ""
    loss = "untouched base" if train_loss is None else f"loss {train_loss:7.4f}"
    width = len(str(spec.train.epochs))
    return (
        f"{spec.association.name}{control} seed {spec.seed} epoch {epoch:>{width}}/{spec.train.epochs}  {loss:>14}  "
        f"facts known {first['test_fact'].top1:4.0%}  held-out mean rank {finding.mean_rank:.2f} "
        f"(null {finding.null_rank:.2f})  OCR score {finding.ocr_score:+.2f}"
    )
