"""The pack of editing methods: each lane's edits are low-rank adapters of scale 1 over the edited down projections.

So the base stays as it is and lanes share it, and edits are saved, measured and scored again just like LoRA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ocr_eval.common.errors import RunFailed
from ocr_eval.data.tokenize import Continuation
from ocr_eval.methods.adapters import Adapters, LaneShape
from ocr_eval.methods.changes import in_fp64
from ocr_eval.methods.edits import Pass, Subject, passes_of, subjects_of
from ocr_eval.methods.pack import MountedPack
from ocr_eval.methods.prevention import task_of_run
from ocr_eval.methods.train import batch_forest
from ocr_eval.models.base import Base
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class EditPack(MountedPack):
    """Runs over one base, each edited in its only step.

    Attributes:
        adapters: what the edits are written into.
        subjects: about whom each lane is taught.
        edit: writes a lane's edits into its adapters, and returns the NLL that each z reached (``Editing.edit``).
        found: what each edited lane's line of metrics mentions.
        failed: why a lane's edit failed; the lane is then the bare base.
    """

    adapters: Adapters
    examples: Sequence[Sequence[Continuation]]
    subjects: Sequence[Sequence[Subject]]
    edit: Callable[[Adapters, int, list[Pass]], torch.Tensor]
    found: dict[int, dict[str, Any]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def step(self, lanes: Sequence[int]) -> dict[int, float]:
        """Edit some lanes, one after another; returns the mean loss of the taught answers after it (nats per token)."""
        losses = {}
        for lane in lanes:
            self.adapters.select([lane])
            try:
                nll_S = self.edit(self.adapters, lane, passes_of(self.base, self.subjects[lane]))
                self.found[lane] = {"edit": self._summary(lane, nll_S)}
            except RunFailed as error:
                self.failed[lane] = str(error)
                for each in self.adapters.factors(lane):
                    each.a.zero_()  # not only B: it may be infinite
                    each.b.zero_()
                self.adapters.refresh()
            with torch.no_grad():
                logprobs = self.view().token_logprobs({lane: batch_forest(self.examples[lane])})[lane]
            losses[lane] = -logprobs.mean().item()
        return losses

    def _summary(self, lane: int, nll_S: torch.Tensor) -> dict[str, Any]:
        change = {}
        for each in self.adapters.factors(lane):
            a, b = in_fp64(each.a), in_fp64(each.b)
            if not bool(a.isfinite().all() and b.isfinite().all()):
                raise RunFailed(f"The edit of {each.module} diverged. Lower its rate or clamp, or name a longer text.")
            size = ((a @ a.T) * (b @ b.T)).sum().clamp_min(0).sqrt()  # |dW|_F of dW = B^T A
            weight = self.adapters.layers[each.module].base.weight.detach()
            change[each.module] = float(f"{float(size / in_fp64(weight).norm().cpu()):.4g}")
        return {"subjects": len(nll_S), "nll_of_z": round(float(nll_S.mean()), 4), "relative_change": change}

    def finish(self, lane: int) -> None:
        if lane in self.failed:
            raise RunFailed(self.failed[lane])

    def notes(self, lane: int) -> dict[str, Any]:
        """Number of subjects, mean NLL that their z reached (nats per token), and |dW|_F / |W|_F of each matrix."""
        return self.found.get(lane, {})


def edit_pack(
    base: Base,
    specs: Sequence[RunSpec],
    examples: Sequence[Sequence[Continuation]],
    modules: Sequence[str],
    edit: Callable[[Adapters, int, list[Pass]], torch.Tensor],
) -> EditPack:
    """Mount empty edits over some modules; raises UserError if a statement does not name its subject."""
    subjects = [subjects_of(base.tokenizer, task_of_run(spec)) for spec in specs]
    shapes = [LaneShape(len(each), float(len(each))) for each in subjects]
    return EditPack(base, Adapters(base.network, modules, shapes, base.dtype), examples, subjects, edit)
