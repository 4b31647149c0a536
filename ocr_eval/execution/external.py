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
from ocr_eval.data.audit import audit_task
from ocr_eval.data.task import build_task
from ocr_eval.execution.execute import answers, open_view
from ocr_eval.methods.method import method_of
from ocr_eval.methods.peft_files import WEIGHTS
from ocr_eval.methods.trained import check_belongs
from ocr_eval.models import precision, weights
from ocr_eval.models.base import Base, device_type, load_tokenizer_from
from ocr_eval.records.config import config_yaml
from ocr_eval.records.find import FinishedRun
from ocr_eval.records.folder import RunFolder, kind_of
from ocr_eval.records.metrics import MetricsLine, common_fields
from ocr_eval.records.record import Record
from ocr_eval.scoring.quantities import held_out, probe_lines, summarize_quantities
from ocr_eval.specs.model import Device, Training
from ocr_eval.specs.run import RunSpec


def record_external(
    spec: RunSpec, trained: Path | None, name: str, output: Path, device: Device = "auto"
) -> FinishedRun:
    """Score what someone trained on a run's data, and leave its folder below ``output``; one that is there is read.

    ``spec`` states model and data; its training settings are nobody's. ``trained`` is the folder of an adapter, or of a
    whole model, over ``spec.model``; None where that model itself was trained, from a base that is not known.

    Raises:
        UserError: bad input, or an adapter or model of another base.
    """
    if trained is None and spec.model.name in yaml_files.shipped_names("models"):
        raise UserError(f"--model {spec.model.name} is untouched. Name what was trained by --adapter or --model.")
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
    with folder.lock():
        if folder.is_done():
            return FinishedRun(folder.path, folder.record())
        task, lines, probes, brings_code = build_task(spec), list[MetricsLine](), list[dict[str, Any]](), False
        audit = audit_task(load_tokenizer_from(files.path), task).as_json()
        folder.clear()
        folder.begin(config_yaml(spec, training), provenance.environment(device_type(device)), audit)
        for epoch, over in ((0, None), (1, trained)) if trained else ((1, None),):
            view = open_view(spec, over, device, base or None)
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
            assert isinstance(view.base, Base)
            brings_code = view.base.brings_code
            del view  # two networks need not fit into memory
            gc.collect()
        record = Record(
            **common_fields(folder.identity, spec, task.quantities, lines),
            train=training,
            base_identity=base,
            adapter_sha256=sha256,
            remote_code=brings_code,
        )
        folder.prepare(record, probes)
        folder.finish()
    return FinishedRun(folder.path, record)
