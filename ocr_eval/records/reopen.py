"""A finished run whose weights are used again: its resolved spec and its folder, checked against each other."""

from pathlib import Path

from ocr_eval.common.errors import UserError
from ocr_eval.records.config import read_config
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.record import Record
from ocr_eval.specs.run import RunSpec


def read_trained(path: Path) -> tuple[RunSpec, RunFolder]:
    """Spec and folder of a finished run that still has its weights.

    Raises:
        UserError: it is not such a run, or its files do not belong together.
    """
    spec, folder = read_config(path), RunFolder(path)
    if not folder.is_done():
        raise UserError(f"'{path}' is not a finished run. Rerun its command to finish it.")
    if not folder.learned.is_dir():
        raise UserError(f"'{path}' has no {folder.learned.name}/: its weights were not kept. Rerun it with --force.")
    record = folder.record()
    if folder.learned_sha256() != record.adapter_sha256:
        raise UserError(
            f"'{folder.learned}' does not match the run's record (its sha256 differs). Rerun it with --force."
        )
    if differing := _unlike(spec, record):
        raise UserError(f"{path / 'config.yaml'}: {differing} differs from result.json. Undo the edit, or rerun it.")
    return spec, folder


def _unlike(spec: RunSpec, record: Record) -> str | None:
    """The first thing in which a resolved spec differs from that of a record; None if it does not."""
    digest = spec.association.digest()
    both: list[tuple[str, object, object]] = [
        ("the model's name", spec.model.name, record.model),
        ("the seed", spec.seed, record.seed),
        ("the train seed", spec.train_seed, record.train_seed),
        ("the association", spec.association.name, record.association),
        ("the association's content", digest, record.association_digest or digest),
        *((name, value, getattr(record.data, name)) for name, value in spec.data),
        *((name, value, getattr(record.train, name)) for name, value in spec.train),
    ]
    return next((name for name, ours, theirs in both if ours != theirs), None)
