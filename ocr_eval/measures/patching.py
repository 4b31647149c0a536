"""``patching``: which layer and token carry what determines a subject's entailment.

Test subjects of one group are asked for their entailment while the residual stream after one layer, at one token, is
replaced by that of a test subject from another group (activation patching, Vig et al. 2020, Meng et al. 2022). The
token is the last of the name or the last of the prompt. Each group has one donor group, chosen at random. With i the
donor's group and j the recipient's, in nats,

    effect   mean change of log p(c_i) - log p(c_j)
    excess   effect minus the mean gain of the other answers over c_j: what the donor adds, beyond the loss of the
             recipient's own answer

p: the share of pairings of groups with other groups' answers whose excess is as large in any layer, at this token. At
the top level, per token: the largest excess, its layer (from 0) and its p. At the last token of the prompt, the stream
after the last layer is the answer. At most 8 subjects per group are asked.

Dimension letters:  L layers,  P recipients,  n answers.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.data.tokenize import ProbeTokens
from ocr_eval.measures.inside import (
    assignments,
    by_answer,
    corrected_ps,
    decoder_of,
    first_ids,
    hooked,
    packed,
    residuals,
    rounded,
    up_to_subject,
)
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.scoring.candidates import Floats, cut_probes, with_room

#: Most subjects per group.
_SUBJECTS = 8


def patched(
    trained: Trained,
    probes: Sequence[ProbeTokens],
    spots: Sequence[ProbeTokens],
    donated_LPD: Tensor,
    layers: Sequence[int | None],
) -> Floats:
    """Logits of the in-use answers with the stream replaced after one layer, for each of ``layers``. [layers, P, n]

    ``spots`` are the prompts up to the token whose stream is replaced with ``donated_LPD``. Layer None replaces
    nothing.
    """
    view, tokens = trained.view(), torch.from_numpy(first_ids(probes)[:, : probes[0].probe.in_use])

    def patch(chosen: int | None, at: Tensor, donated_PD: Tensor, layer: int, hidden: Tensor) -> Tensor | None:
        if layer != chosen:
            return None
        changed = hidden.clone()
        changed[0, at] = donated_PD.to(hidden.device, hidden.dtype)
        return changed

    def read(size: int) -> Floats:
        found = np.zeros((len(layers), *tokens.shape))
        for chunk in cut_probes(probes, size):
            asked = [(of[i].prompt, [(0,)]) for of in (spots, probes) for i in chunk]
            batch, nodes = packed(view, trained.lane, asked)
            for row, chosen in enumerate(layers):
                see = partial(patch, chosen, nodes[: len(chunk)], donated_LPD[chosen or 0, chunk])
                with torch.no_grad(), hooked(view.network, see):
                    logits = view.logits(batch, [trained.lane])[0, batch.columns[len(chunk) :]]
                found[row, chunk] = logits.cpu().double().gather(1, tokens[chunk]).numpy()
        return found

    return with_room(view, 1, read)


class Patching(Measure):
    """Two forward passes per layer."""

    about = "Effect of another group's residual stream on the entailment, by layer and token (activation patching)"

    def meaning(self, found: Mapping[str, Any]) -> str:
        parts = [
            f"at the end of the {place} after layer {found[f'{place}_layer']} ({found[f'{place}_excess']:+.1f} "
            f"nats, p {found[f'{place}_p']:.2g} for the best layer)"
            for place in ("name", "prompt")
        ]
        return f"Patching in another group's stream favours that group's answer most {', and '.join(parts)}."

    def take(self, trained: Trained) -> dict[str, Any]:
        asked = trained.asked("finding")
        n, stream = asked[0].probe.in_use, f"{trained.spec.stream('data')}/patching"
        groups = [[each for each in asked if each.probe.target == g][:_SUBJECTS] for g in range(n)]
        if len({len(group) for group in groups}) != 1:
            raise UserError("It needs the same number of subjects for each answer.")
        pairings = assignments(n, stream, fixed=False)[0]
        donor = pairings[streams.integer(stream) % len(pairings)]  # the donor group of each
        each_group = len(groups[0])
        probes = [each for group in groups for each in group]
        from_P = [each_group * int(donor[g]) + k for g in range(n) for k in range(each_group)]
        targets = [each.probe.target for each in probes]
        layers: dict[str, list[float]] = {}
        count = len(decoder_of(trained.pack.base.network).layers)  # type: ignore[arg-type]
        layers["layer"] = list(range(count))
        found: dict[str, Any] = {}
        for place, spots in (("name", up_to_subject(trained.pack.base.tokenizer, probes)), ("prompt", probes)):
            stream_LPD = residuals(trained.view(), trained.lane, spots)[:, from_P]
            logits = patched(trained, probes, spots, stream_LPD, [None, *range(count)])
            moved_LPn = logits[1:] - logits[0]
            own_P = np.arange(len(probes)), targets
            moved_Lnn = by_answer(moved_LPn - moved_LPn[:, *own_P][..., None], targets)
            effect_L = moved_Lnn[:, np.arange(n), donor].mean(axis=1)
            excess_L = effect_L - moved_Lnn.sum(axis=(1, 2)) / (n * (n - 1))  # the diagonal is 0
            ps_L, best = corrected_ps(moved_Lnn, stream, donor.tolist()), int(excess_L.argmax())
            found |= {f"{place}_layer": best, f"{place}_excess": float(excess_L[best]), f"{place}_p": float(ps_L[best])}
            layers |= {f"{place}_effect": rounded(effect_L), f"{place}_excess": rounded(excess_L)}
            layers[f"{place}_p"] = rounded(ps_L)
        return {**found, "layers": layers}
