"""``sharing``: whether a group's fact and its entailment were learned in the same direction.

In the symbolic study the weight blocks of a group's two answers become similar. For each layer, this gives the mean
cosine of a group's fact answer b_i and entailment answer c_i, and that of b_i and another group's c_j:

    weights   of dW_OV' u_b and dW_OV' u_c, all heads concatenated: what the changed heads read from the residual stream
              in favour of a token; u is the token's row of the head, with the final norm's gain, minus the side's mean
    shift     over the finding's subjects s, of lens(h'_s) - lens(h_s) at b and at c: how training moved the logit lens
              at the last token of the name, minus the means over subjects and over the side's answers. Not available
              after full fine-tuning, because the base is gone

``tokens`` is the cosine of u_b and u_c themselves, which a change unrelated to both would reproduce. p: the share of
assignments of c to b whose excess over the mean is as large in any layer. At the top level, per kind: the excess of
matched over other pairs, averaged over layers, and the smallest p.

Dimension letters:  L layers,  S subjects,  n answers,  H heads,  D width of the residual stream.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ocr_eval.measures.inside import (
    corrected_ps,
    decoder_of,
    first_ids,
    lens,
    linked,
    residuals,
    rounded,
    up_to_subject,
)
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.measures.ov_change import gain, ov_changes
from ocr_eval.scoring.candidates import Floats


def cosines(a_nX: Floats, b_nX: Floats) -> Floats:
    """Cosine of each row of a with each row of b; 0 if either is zero. [n, n]"""
    a_nX, b_nX = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (a_nX, b_nX))
    return a_nX @ b_nX.T


def reading_cosines(trained: Trained) -> tuple[list[Floats], Floats]:
    """For each layer, the cosines of what the changed heads read in favour of b_i and of c_j, and those of u_b and u_c.

    A layer that did not change has zeros. [n, n]
    """
    facts, findings, answer_of = linked(trained)
    network: Any = trained.pack.base.network
    head = network.get_output_embeddings().weight
    final = gain(decoder_of(network).norm, head.shape[1], head)
    ids = first_ids(facts)[0][: len(answer_of)], first_ids(findings)[0][answer_of]
    sides = [head[torch.from_numpy(each)].detach().cpu().double() * final for each in ids]
    u_b, u_c = (side - side.mean(dim=0) for side in sides)
    found = []
    for layer in ov_changes(network, trained.changes()):
        images = [(layer.left.transpose(1, 2) @ u.T).transpose(1, 2) @ layer.right for u in (u_b, u_c)]  # [H, n, D]
        found.append(cosines(*(image.transpose(0, 1).flatten(1).numpy() for image in images)))
    return found, cosines(u_b.numpy(), u_c.numpy())


class Sharing(Measure):
    """Needs the factors of dW_OV and two forward passes over the names."""

    about = "Cosine between the changes for a group's fact and entailment answers, against other pairs"

    def meaning(self, found: Mapping[str, Any]) -> str:
        parts = [
            f"by {kind}, the cosine of a group's fact and entailment exceeds that of other pairs by {found[kind]:+.2f} "
            f"(smallest p {found[f'{kind}_p']:.2g})"
            for kind in ("weights", "shift")
            if kind in found
        ]
        return "; ".join(parts) + f"; their tokens alone have a cosine of {found['tokens']:+.2f}."

    def take(self, trained: Trained) -> dict[str, Any]:
        facts, findings, answer_of = linked(trained)
        b_n = first_ids(facts)[0][: len(answer_of)]
        c_n = first_ids(findings)[0][answer_of]
        of_weights, tokens = reading_cosines(trained)
        by_kind = {"weights": of_weights}
        changed = [bool(values.any()) for values in of_weights]
        if trained.has_base:
            by_kind["shift"] = self._shifts(trained, up_to_subject(trained.pack.base.tokenizer, findings), b_n, c_n)
        found: dict[str, Any] = {"tokens": float(tokens.diagonal().mean())}
        layers: dict[str, list[float]] = {"layer": list(range(len(by_kind["weights"])))}
        for kind, cosines_L in by_kind.items():
            values_Lnn = np.stack(cosines_L)
            n = values_Lnn.shape[1]
            same_L = values_Lnn.diagonal(axis1=1, axis2=2).mean(axis=1)
            other_L = (values_Lnn.sum(axis=(1, 2)) - n * same_L) / (n * (n - 1))
            ps = corrected_ps(values_Lnn, f"{trained.spec.stream('data')}/sharing/{kind}")
            layers |= {kind: rounded(same_L), f"{kind}_other": rounded(other_L), f"{kind}_p": rounded(ps)}
            apart_L = (same_L - other_L)[changed if kind == "weights" else slice(None)]
            found |= {kind: float(apart_L.mean()) if len(apart_L) else 0.0, f"{kind}_p": float(ps.min())}
        return {**found, "layers": layers}

    @staticmethod
    def _shifts(trained: Trained, names: Any, b_n: Any, c_n: Any) -> list[Floats]:
        """Cosines, over subjects, of the shift of the logit lens at each layer."""
        after, before = (residuals(trained.view(which), trained.lane, names) for which in (True, False))
        tokens = np.tile(np.concatenate([b_n, c_n]), (len(names), 1))
        network, found = trained.pack.base.network, []
        for h_after, h_before in zip(after, before, strict=True):
            moved_S = lens(network, h_after, tokens) - lens(network, h_before, tokens)
            sides = [side - side.mean(axis=1, keepdims=True) for side in np.split(moved_S, [len(b_n)], axis=1)]
            found.append(cosines(*((side - side.mean(axis=0)).T for side in sides)))
        return found
