"""What a run would do, from its spec alone."""

from __future__ import annotations

import math
from pathlib import Path

from ocr_eval import weights
from ocr_eval.dataset import build_dataset
from ocr_eval.runs import config_yaml
from ocr_eval.specs import RunSpec


def describe(spec: RunSpec, output: Path) -> str:
    """The resolved spec as YAML with the amount of work as comments; nothing is trained or written."""
    dataset = build_dataset(spec)
    steps = math.ceil(len(dataset.train) / spec.train.batch_size) * spec.train.epochs
    here = weights.cached(spec.model)
    lines = [
        f"# weights:  {here or 'not on this disk, would be fetched'}",
        f"# output:   {output}/runs/{spec.model.name}/{spec.association.name}/{spec.train.method}/",
        f"# subjects: {len(dataset.subjects)} in {spec.data.n} groups",
        f"# training: {len(dataset.train)} statements, {spec.train.epochs} epochs, {steps} steps",
        f"# probes:   {len(dataset.probes)} at each of {spec.train.epochs + 1} scorings",
    ]
    return "\n".join(lines) + "\n" + config_yaml(spec)
