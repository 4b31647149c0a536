"""External training, done elsewhere on exported data: it is scored, and gets a run folder like any other run.

The trained model is a folder on this machine, or a model on a server, whose weights are unknown.

The record keeps only the name of the training: no settings, loss or time. Epoch 0 is the untouched base, if the adapter
or model was given together with its base; epoch 1 is the end of training, however many epochs there were.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ocr_eval.common import provenance, yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output
from ocr_eval.data.candidate_tokens import audit_task
from ocr_eval.data.task import Task, build_task
from ocr_eval.execution.execute import answers, open_view
from ocr_eval.methods.load_adapter import check_belongs
from ocr_eval.methods.method import method_of
from ocr_eval.methods.peft_files import WEIGHTS
from ocr_eval.models import precision, weights
from ocr_eval.models.base import Base, device_type, load_tokenizer_from
from ocr_eval.records.config import config_yaml
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import RunFolder, kind_of
from ocr_eval.records.metrics import MetricsLine, common_fields
from ocr_eval.records.record import Record
from ocr_eval.scoring.candidates import CandidateScores
from ocr_eval.scoring.quantities import held_out, inexact, probe_lines, summarize_quantities
from ocr_eval.scoring.ranks import Scores
from ocr_eval.scoring.served import score_served
from ocr_eval.specs.model import Device, ServedWeights, Training
from ocr_eval.specs.run import RunSpec


def record_external(
    spec: RunSpec, trained: Path | None, name: str, output: Path, device: Device = "auto"
) -> FinishedRun:
    """Score external training on a run's data and write its run folder below ``output``; an existing one is read.

    Of ``spec``, training settings are ignored. ``trained`` is the folder of an adapter of ``spec.model``, or of a whole
    model trained from it; None if ``spec.model`` is itself the trained model, with an unknown base.

    Raises:
        UserError: bad input, or an adapter or model with another base.
    """
    if trained is None and spec.model.name in yaml_files.shipped_names("models"):
        raise UserError(f"--model {spec.model.name} is untouched. Give what was trained as --adapter or --model.")
    prepare_output(output)
    spec = spec.in_precision(precision.choose_for(spec.model, device_type(device)).dtype)
    kind = kind_of(trained) if trained else None
    if trained and kind:
        check_belongs(trained, kind, spec.model)
    files, training = weights.locate(spec.model), Training(method=f"external:{name}")
    base, learned = (files.identity, trained) if trained else ("", files.path)
    sha256 = weights.file_sha256(learned / WEIGHTS) if kind == "adapter" else weights.folder_digest(learned)
    scored = {"sha256": sha256, "quantized": method_of(spec.train).needs.quantized}
    folder = RunFolder.of(output, spec, spec.fingerprint(base, training.identity() | scored), training)

    def ask(task: Task, over: Path | None) -> _Asked:
        gc.collect()  # two networks may not fit into memory
        view = open_view(spec, over, device, base or None)
        assert isinstance(view.base, Base)
        started = time.monotonic()
        return _Asked(answers(view, spec, task), time.monotonic() - started, view.base.brings_code)

    def score(task: Task) -> dict[int, _Asked]:
        return {epoch: ask(task, over) for epoch, over in ((0, None), (1, trained)) if trained or epoch}

    def audit(task: Task) -> dict[str, Any]:
        return audit_task(load_tokenizer_from(files.path), task).as_json()

    return _keep(folder, spec, training, score, audit, device, base_identity=base, adapter_sha256=sha256)


def record_served(spec: RunSpec, name: str, output: Path, per_request: int) -> FinishedRun:
    """Score ``spec.model`` on its server and write a run folder below ``output``; see ``score_served``.

    A server does not say when its weights change, so an existing folder for ``name`` is read, not scored again.

    Raises:
        UserError, RunFailed: as for ``score_served``.
    """
    prepare_output(output)
    server, training = spec.model.weights, Training(method=f"external:{name}")
    assert isinstance(server, ServedWeights)
    dtype = "unknown" if spec.model.dtype == "auto" else spec.model.dtype
    scored = training.identity() | {"served": server.model_dump(), "dtype": dtype}
    folder = RunFolder.of(output, spec, spec.in_precision("float32").fingerprint("", scored), training)

    def score(task: Task) -> dict[int, _Asked]:
        started = time.monotonic()
        return {1: _Asked(score_served(server, task, per_request, folder.answers), time.monotonic() - started, False)}

    known = {"base_identity": "", "adapter_sha256": "", "dtype": dtype}
    return _keep(folder, spec, training, score, lambda task: {}, "cpu", **known)


def rescore_served(spec: RunSpec, per_request: int) -> Scores:
    """Score ``spec.model`` on its server; see ``score_served``. Nothing is written."""
    task, server = build_task(spec), spec.model.weights
    assert isinstance(server, ServedWeights)
    return summarize_quantities(task.quantities, task.probes, score_served(server, task, per_request))


@dataclass(frozen=True)
class _Asked:
    """A model's scores, the seconds they took, and whether code from its repository ran."""

    scores: CandidateScores
    seconds: float
    brings_code: bool


def _keep(
    folder: RunFolder,
    spec: RunSpec,
    training: Training,
    score: Callable[[Task], Mapping[int, _Asked]],
    audit: Callable[[Task], dict[str, Any]],
    device: Device,
    **known: str,
) -> FinishedRun:
    """Write a finished run from what ``score`` finds at each epoch; an existing one is read."""
    with folder.lock():
        if folder.is_done():
            return FinishedRun(folder.path, folder.record())
        task = build_task(spec)
        audited, asked = audit(task), score(task)
        lines = [
            MetricsLine(
                epoch=epoch,
                train_seconds=None if epoch else 0.0,
                score_seconds=each.seconds,
                scores=summarize_quantities(task.quantities, task.probes, each.scores),
                held_out=held_out(task, each.scores),
            )
            for epoch, each in asked.items()
        ]
        last = asked[max(asked)]
        folder.clear()
        folder.begin(config_yaml(spec, training), provenance.environment(device_type(device)), audited)
        for line in lines:
            folder.add_metrics(line)
        record = Record(
            **common_fields(folder.identity, spec, task.quantities, lines) | known,
            train=training,
            remote_code=last.brings_code,
            inexact=inexact(task.probes, last.scores, task.finding.name),
        )
        lines_of = (probe_lines(task, each.scores, epoch) for epoch, each in asked.items())
        folder.prepare(record, list(chain.from_iterable(lines_of)))
        folder.finish()
    return FinishedRun(folder.path, record)
