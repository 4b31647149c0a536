"""Training that was done elsewhere, on exported data: it is scored, and leaves a run's folder like any other.

Of the training the record holds its name and nothing else: no setting, loss or time. Epoch 0 is the untouched base,
where an adapter or a model is given over one; epoch 1 is the end, after however many there were.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

from ocr_eval.common import provenance, yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output
from ocr_eval.common.out_of_memory import free_cache
from ocr_eval.data.audit import audit_task
from ocr_eval.data.task import build_task
from ocr_eval.execution.execute import answers, open_view
from ocr_eval.execution.run_pack import common_fields
from ocr_eval.methods.method import method_of
from ocr_eval.methods.peft_files import WEIGHTS
from ocr_eval.methods.trained import check_belongs
from ocr_eval.models import precision, weights
from ocr_eval.models.base import Base, device_type
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import RunFolder, config_yaml, kind_of
from ocr_eval.records.metrics import MetricsLine
from ocr_eval.records.record import Record
from ocr_eval.scoring.quantities import held_out, probe_lines, summarize_quantities
from ocr_eval.specs.model import Device, Training
from ocr_eval.specs.run import RunSpec


def record_external(
    spec: RunSpec, trained: Path | None, name: str, output: Path, device: Device = "auto"
) -> FinishedRun:
    """Score what someone trained on a run's data, and leave its folder below ``output``; one that is there is read.

    Args:
        spec: model and data; its training settings are those of nobody.
        trained: the folder of an adapter, or of a model trained in all its parameters, whose base is ``spec.model``;
            None where that model itself is what was trained, from a base that is not known.
        name: what the training is called.

    Raises:
        UserError: bad input, or an adapter or model of another base.
    """
    if trained is None and spec.model.name in yaml_files.shipped_names("models"):
        raise UserError(
            f"--model {spec.model.name} is untouched. Name what was trained: --adapter FOLDER, or --model FOLDER "
            "where it is a whole model."
        )
    prepare_output(output)
    spec = spec.in_precision(precision.choose_for(spec.model, device_type(device)).dtype)
    kind = kind_of(trained) if trained is not None else None
    if trained and kind:
        check_belongs(trained, kind, spec.model)
    files, training = weights.locate(spec.model), Training(method=f"external:{name}")
    learned = trained or files.path
    sha256 = weights.file_sha256(learned / WEIGHTS) if kind == "adapter" else weights.folder_digest(learned)
    base = files.identity if trained is not None else ""
    scored = {"sha256": sha256, "quantized": method_of(spec.train).needs.quantized}
    fingerprint = spec.fingerprint(base, training.identity() | scored)
    folder = RunFolder.of(output, spec, fingerprint, training)
    with folder.lock():
        if not folder.is_done():
            folder.clear()
            _score(spec, trained, base, training, sha256, folder, device)
    return FinishedRun(folder.path, folder.record())


def _score(
    spec: RunSpec, trained: Path | None, base: str, training: Training, sha256: str, folder: RunFolder, device: Device
) -> None:
    task, lines, probes = build_task(spec), list[MetricsLine](), list[dict[str, Any]]()
    brings_code = False
    for epoch, over in enumerate((None, trained)) if base else ((1, None),):
        view = open_view(spec, over, device, base or None)
        assert isinstance(view.base, Base)
        if not lines:
            brings_code, audit = view.base.brings_code, audit_task(view.base.tokenizer, task).as_json()
            folder.begin(config_yaml(spec, training), provenance.environment(str(view.base.device)), audit)
        started = time.monotonic()
        scores = answers(view, spec, task)
        line = MetricsLine(
            epoch=epoch,
            train_seconds=None if epoch else 0.0,
            score_seconds=time.monotonic() - started,
            scores=summarize_quantities(task.quantities, task.probes, scores),
            held_out=held_out(task, scores),
        )
        folder.add_metrics(line)
        lines.append(line)
        probes += probe_lines(task, scores, epoch)
        place = view.base.device
        del view  # two networks need not fit into memory
        gc.collect()
        free_cache(place)
    record = Record(
        **common_fields(folder, spec, task.quantities, lines),
        train=training,
        base_identity=base,
        adapter_sha256=sha256,
        remote_code=brings_code,
    )
    folder.prepare(record, probes)
    folder.finish()
