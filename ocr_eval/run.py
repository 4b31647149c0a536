"""RunSpec -> record: the one composition of data, model, training, scoring and disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ocr_eval import provenance, stats, weights
from ocr_eval.dataset import QUANTITIES, RelationName, Split, build_dataset
from ocr_eval.injection import Injection, attach, detach, load_adapter
from ocr_eval.models import Base, Device, load_base
from ocr_eval.progress import say
from ocr_eval.records import HeldOut, Quantity, Record, Score, Scores
from ocr_eval.runs import RunFolder, prepare_output
from ocr_eval.score import CandidateScores, score_candidates
from ocr_eval.specs import SCORINGS, RunSpec, Scoring
from ocr_eval.tokens import ProbeTokens, probe_tokens, training_tokens
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
    """Inject and score one run, or return it if the same run is done already.

    An interrupted run goes on after its last checkpoint, with the result it would have had uninterrupted.

    Args:
        spec: the run.
        output: the output folder; the run's own lies below it.
        device: where to compute.
        force: run again even if it is done.
        every: score after every this many epochs (and after the last); never changes what is learned.

    Raises:
        UserError: bad input, found before any training.
        RunFailed: training could not go on.
    """
    prepare_output(output)
    located = weights.locate(spec.model)
    fingerprint = spec.fingerprint(located.identity, provenance.code_digest())
    folder = RunFolder.of(output, spec, fingerprint)
    with folder.lock():
        if folder.is_done() and not force:
            return Outcome(folder.path, folder.record(), was_done=True)
        if force:
            folder.clear()
        base = load_base(spec.model, located, device)
        return Outcome(folder.path, _inject(base, spec, folder, every), was_done=False)


def rescore(spec: RunSpec, adapter: Path | None, device: Device = "auto") -> Scores:
    """Score a model on a run's probes, with an adapter over it (unmerged) or untouched.

    Raises:
        UserError: no such adapter, or one of another base.
    """
    base = load_base(spec.model, weights.locate(spec.model), device)
    probes = probe_tokens(base.tokenizer, build_dataset(spec))
    if adapter is None:
        return summarize_quantities(probes, score_candidates(base, base.network, probes))
    network = load_adapter(base, adapter)
    try:
        return summarize_quantities(probes, score_candidates(base, network, probes))
    finally:
        detach(network)


def _inject(base: Base, spec: RunSpec, folder: RunFolder, every: int) -> Record:
    """Train, score and write one run over a base that is as clean afterwards as before."""
    dataset = build_dataset(spec)
    examples = training_tokens(base.tokenizer, dataset)
    probes = probe_tokens(base.tokenizer, dataset)
    folder.begin(spec, provenance.environment(str(base.device)))
    injection = attach(base, spec, examples)
    try:
        if folder.checkpoint.is_file():
            injection.restore(folder.checkpoint)
            say(f"Going on after epoch {injection.epochs_done}")
        lines = (
            [line for line in folder.metrics() if line["epoch"] <= injection.epochs_done]
            if injection.epochs_done
            else []
        )
        scores = _train(base, spec, folder, injection, probes, lines, every)
        injection.save_adapter(folder.adapter, spec)
    finally:
        detach(injection.network)
    record = _record(base, spec, folder, lines, probes, scores)
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
    }
    return scores, line


def quantity_ranks(
    probes: Sequence[ProbeTokens], scores: CandidateScores, scoring: Scoring, split: Split, relation: RelationName
) -> stats.Ranks | None:
    """Ranks of the probes of one quantity, None where the protocol leaves it without probes (m_train = 0)."""
    rows = [i for i, p in enumerate(probes) if p.statement.subject.split == split and p.statement.relation == relation]
    if not rows:
        return None
    targets = [probes[i].target for i in rows]
    return stats.rank_probes(scores.logprobs[scoring][rows], targets, probes[rows[0]].in_use)


def summarize_quantities(probes: Sequence[ProbeTokens], scores: CandidateScores) -> Scores:
    """Mean rank, null rank, OCR score and top-1 of each of the four quantities under both scorings.

    A quantity without probes is absent.
    """
    result: Scores = {scoring: {} for scoring in SCORINGS}
    for scoring in SCORINGS:
        for split, relation in QUANTITIES:
            ranks = quantity_ranks(probes, scores, scoring, split, relation)
            if ranks is not None:
                result[scoring][quantity_name(split, relation)] = Score(**asdict(stats.summarize(ranks)))
    return result


def quantity_name(split: Split, relation: RelationName) -> Quantity:
    """A quantity's name in files."""
    names: dict[tuple[Split, RelationName], Quantity] = {
        ("train", "fact"): "train_fact",
        ("train", "entailment"): "train_entailment",
        ("test", "fact"): "test_fact",
        ("test", "entailment"): "test_entailment",
    }
    return names[split, relation]


def probe_lines(probes: Sequence[ProbeTokens], scores: CandidateScores, epoch: int) -> list[dict[str, Any]]:
    """The lines of probes.jsonl for one epoch."""
    ranks = {
        scoring: stats.rank_probes(scores.logprobs[scoring], [p.target for p in probes], probes[0].in_use)
        for scoring in SCORINGS
    }
    return [
        {
            "epoch": epoch,
            "subject": probe.statement.subject.name,
            "group": probe.statement.subject.group,
            "quantity": quantity_name(probe.statement.subject.split, probe.statement.relation),
            "prompt": probe.statement.prompt,
            "answer": probe.statement.answer,
            "candidates": list(probe.answers),
            "in_use": probe.in_use,
            "logprobs": {scoring: [round(v, 5) for v in scores.logprobs[scoring][i].tolist()] for scoring in SCORINGS},
            "rank": {scoring: float(ranks[scoring].rank[i]) for scoring in SCORINGS},
            "null_rank": {scoring: float(ranks[scoring].null[i]) for scoring in SCORINGS},
        }
        for i, probe in enumerate(probes)
    ]


def facts_learned(scores: Scores) -> bool:
    """Whether top-1 (first token) on the facts of every kind of subject reached 95 %."""
    facts = [score for quantity, score in scores["first-token"].items() if quantity in ("train_fact", "test_fact")]
    return all(score.top1 >= stats.LEARNED_TOP1 for score in facts)


def _record(
    base: Base,
    spec: RunSpec,
    folder: RunFolder,
    lines: list[dict[str, Any]],
    probes: Sequence[ProbeTokens],
    scores: CandidateScores,
) -> Record:
    final = summarize_quantities(probes, scores)
    held_out = {
        scoring: HeldOut(rank=ranks.rank.tolist(), null=ranks.null.tolist())
        for scoring in SCORINGS
        if (ranks := quantity_ranks(probes, scores, scoring, "test", "entailment"))
    }
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
            "held_out": held_out,
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
    loss = "untouched base" if train_loss is None else f"loss {train_loss:7.4f}"
    return (
        f"{spec.association.name} epoch {epoch:>{len(str(spec.train.epochs))}}/{spec.train.epochs}  {loss:>14}  "
        f"facts known {first['test_fact'].top1:4.0%}  "
        f"held-out mean rank {finding.mean_rank:.2f} (null {finding.null_rank:.2f})  OCR score {finding.ocr_score:+.2f}"
    )
