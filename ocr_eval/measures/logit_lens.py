"""``logit-lens``: the layer from which the right answers of facts and entailments rise above their null.

The final norm and the head are applied to the residual stream after each layer, at the last token of each prompt
(nostalgebraist 2020). For each quantity and layer, over its probes, by first token:

    rank         mean rank of the right answer among the candidates; after the last layer it is the model's own
    null         mean rank of the answers in use
    in_use_rank  mean rank among only the answers in use; by chance (n - 1) / 2
    p            share of assignments of answers to groups whose mean in-use rank is as low in any layer

``<quantity>_layer`` is the first layer, from 0, with p <= 0.05; absent if there is none. ``<quantity>_rank`` is the
rank after the last layer. With n groups p is at least 1 / n!.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ocr_eval.common.errors import UserError
from ocr_eval.measures.inside import by_answer, corrected_ps, first_ids, first_layer, lens, residuals, rounded
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.scoring.ranks import midranks, rank_probes


class LogitLens(Measure):
    """One forward pass over all prompts."""

    about = "First layer in which the right answers rise above their null (logit lens)"

    def meaning(self, found: Mapping[str, Any]) -> str:
        layers = {key.removesuffix("_layer"): value for key, value in found.items() if key.endswith("_layer")}
        none = [key.removesuffix("_rank") for key in found if key.endswith("_rank") and key[:-5] not in layers]
        parts = [f"{quantity} first rises above chance after layer {layer}" for quantity, layer in layers.items()]
        return "; ".join([*parts, *(f"{quantity} in no layer" for quantity in none)]) + "."

    def take(self, trained: Trained) -> dict[str, Any]:
        view = trained.view()
        network = trained.pack.base.network
        found: dict[str, Any] = {}
        layers: dict[str, list[float]] = {}
        stream = trained.spec.stream("data")
        for quantity in trained.quantities:
            probes = [each for each in trained.probes if each.probe.quantity == quantity.name]
            if not probes:
                continue
            tokens, targets = first_ids(probes), [each.probe.target for each in probes]
            in_use = probes[0].probe.in_use
            logits_L = [lens(network, residual, tokens) for residual in residuals(view, trained.lane, probes)]
            ranks_L = [rank_probes(logits, targets, in_use) for logits in logits_L]
            name = quantity.name
            layers.setdefault("layer", list(range(len(ranks_L))))
            layers[f"{name}_rank"] = rounded([ranks.rank.mean() for ranks in ranks_L])
            layers[f"{name}_null"] = rounded([ranks.null.mean() for ranks in ranks_L])
            layers[f"{name}_in_use_rank"] = rounded([ranks.in_use.mean() for ranks in ranks_L])
            if set(targets) == set(range(in_use)):
                places = np.stack([midranks(logits[:, :in_use]) for logits in logits_L])
                ps = corrected_ps(-by_answer(places, targets), f"{stream}/logit-lens/{name}")
                layers[f"{name}_p"] = rounded(ps)
                first = first_layer(ps)
                found |= {} if first is None else {f"{name}_layer": first}
            found[f"{name}_rank"] = layers[f"{name}_rank"][-1]
        if not layers:
            raise UserError("There are no probes to read.")
        return {**found, "layers": layers}
