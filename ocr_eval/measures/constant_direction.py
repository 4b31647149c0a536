"""``constant-direction``: whether the change adds the same direction to every token, as a steering vector would.

Wang et al. (arXiv 2507.08218) find that LoRA often does. A changed matrix adds a_t = dW h_t to its output at token t,
where h_t is its input. Over the T tokens of the probes' prompts (a shared prefix counts once), with u_t = a_t / |a_t|:

    cosine   mean cosine of the additions to two different tokens, (|sum u_t|^2 - T) / (T (T - 1)); 1 for a constant
             direction, which could not tell groups apart
    chance   the same for a_t = dW P h_t, where P permutes the coordinates of all inputs in the same way: a change with
             the same singular values that learned nothing about its inputs; its outputs are alike if the inputs are

At the top level, means over all changed matrices; in ``layers`` (from 0) and ``kinds``, means per layer and kind.

Dimension letters:  M matrices,  T tokens,  I inputs,  O outputs.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.measures.inside import packed, rounded
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.changes import WeightChange, in_fp64, layer_of
from ocr_eval.scoring.candidates import Floats, cut_probes, with_room


def mean_cosine(sum_O: Tensor, count: int) -> float:
    """Mean cosine between two different vectors out of ``count`` unit vectors, given their sum."""
    return (float(sum_O.square().sum()) - count) / (count * (count - 1))


def cosines(trained: Trained, changes: Sequence[WeightChange]) -> Floats:
    """Cosine of each change, and its value by chance. [M, 2]"""
    view, stream = trained.view(), f"{trained.spec.stream('data')}/constant-direction"

    def read(size: int) -> Floats:
        sums: dict[str, Tensor] = {}
        tokens = 0

        def hook(change: WeightChange, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h_TI = inputs[0][0].float()
            permuted_TI = h_TI[:, streams.permutation(f"{stream}/{change.module}", h_TI.shape[1])]
            added_2TO = torch.stack([h_TI, permuted_TI]) @ change.dense().to(h_TI.device).T
            sum_2O = in_fp64(torch.nn.functional.normalize(added_2TO, dim=2)).sum(dim=1).cpu()
            sums[change.module] = sums.get(change.module, 0) + sum_2O

        with torch.no_grad(), ExitStack() as stack:
            for change in changes:
                changed = view.network.get_submodule(change.module)
                stack.enter_context(changed.register_forward_pre_hook(partial(hook, change)))
            for chunk in cut_probes(trained.probes, size):
                batch, _ = packed(view, trained.lane, [(trained.probes[i].prompt, [(0,)]) for i in chunk])
                tokens += batch.ids.shape[1]
                view.logits(batch, [trained.lane])
        return np.array([[mean_cosine(each, tokens) for each in sums[change.module]] for change in changes])

    return with_room(view, 1, read)


class ConstantDirection(Measure):
    """Multiplies out one matrix at a time; costs about three forward passes over all prompts."""

    about = "Whether the change adds the same direction to every token, as a steering vector would"

    def meaning(self, found: Mapping[str, Any]) -> str:
        return (
            f"The change's additions to two tokens have a mean cosine of {found['cosine']:+.2f} (by chance "
            f"{found['chance']:+.2f}); a constant direction would have 1 and could not tell groups apart."
        )

    def take(self, trained: Trained) -> dict[str, Any]:
        changes = [each for each in trained.changes() if layer_of(each.module) >= 0]
        if not changes:
            raise UserError("This run changed no matrix of any layer.")
        values_M2 = cosines(trained, changes)
        names = ("cosine", "chance")
        found: dict[str, Any] = dict(zip(names, values_M2.mean(axis=0).tolist(), strict=True))
        places: dict[str, list[Any]] = {
            "layer": [layer_of(each.module) for each in changes],
            "kind": [each.module.rpartition(".")[2] for each in changes],
        }
        for place, of in places.items():
            distinct = sorted(set(of))
            means = [values_M2[[each == one for each in of]].mean(axis=0) for one in distinct]
            columns = zip(names, map(rounded, np.transpose(means)), strict=True)
            found[f"{place}s"] = {place: distinct, **dict(columns)}
        return found
