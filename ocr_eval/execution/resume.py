"""After which epoch a pack resumes: the last one that all of its runs can resume from."""

import math
from collections.abc import Sequence

from ocr_eval.common.messages import warn
from ocr_eval.records.folder import RunFolder


def first_epoch(folders: Sequence[RunFolder], epochs: Sequence[int]) -> int:
    """The epoch after which a pack resumes, 0 for the start; warns about damaged files."""
    epoch = common_epoch(folders, epochs)
    then = f"training resumes after epoch {epoch}" if epoch else "training starts over"
    for folder in folders:
        whole = folder.resumable()
        for later, path in folder.checkpoints().items():
            if later > epoch and later not in whole:
                warn(f"{path}, or the metrics or probes in its folder, is damaged: {then}.")
        if (folder.path / "result.json").is_file() and not folder.is_prepared():
            warn(f"{folder.path}: result.json, or what it describes, is damaged: {then}.")
    return epoch


def common_epoch(folders: Sequence[RunFolder], epochs: Sequence[int]) -> int:
    """The last epoch that every run of a pack can resume from, 0 for the start.

    A run can resume from an epoch with a saved state and, once its record is written, from its end or later.
    """
    kept = [folder.resumable() for folder in folders]
    ends = [last if folder.is_prepared() else math.inf for folder, last in zip(folders, epochs, strict=True)]
    candidates = set().union(*kept, {int(end) for end in ends if end < math.inf})
    possible = [e for e in candidates if all(e in own or e >= end for own, end in zip(kept, ends, strict=True))]
    return max(possible, default=0)
