"""``link-map``: the linear map from a model's beliefs about facts to those about entailments, before and after.

After Peng et al. (arXiv 2502.04520). Over 360 names that were not taught, the log-probabilities z_T of the entailment's
answers are fitted from those of the fact's answers, z_S, by ridge regression: z_T ~ W z_S + b. (``audit --model`` does
so before training, by least squares: measures/untouched.py.) W-rank is the rank of a pair's entailment answer in the
row of its fact answer:

    base_rank, trained_rank, change_rank   W-rank of the taught pairs: for W before, after, and for the difference
    null                                   (C - 1) / 2
    ..._p                                  share of assignments of the taught pairs whose W-rank is as low
    ..._untaught                           W-rank of the association's other pairs
    base_correlation, trained_correlation  of predicted and true log-probabilities, over held-out names
    ..._chance                             the same, for a W fitted to names in random order

``pairs`` has the rank of each pair. A base_rank near 0 means that the model has the link before it is taught anything.
After full fine-tuning the base is gone, so only ``trained`` is available.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.data.pairs import PairAssociation
from ocr_eval.measures.inside import corrected_ps, linked, rounded
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.measures.untouched import first_logprobs, fit, sides_of
from ocr_eval.methods.prevention import task_of_run
from ocr_eval.scoring.ranks import midranks

#: Weight of |W|^2; ranks hardly change from 0 to 10.
_RIDGE = 1.0


class LinkMap(Measure):
    """Scores 360 names in the trained model and in its base."""

    about = "Linear map from fact to entailment logits over untaught names (Peng et al., arXiv 2502.04520)"

    def meaning(self, found: Mapping[str, Any]) -> str:
        parts = [
            f"{name} {found[f'{name}_rank']:.1f} (p {found[f'{name}_p']:.2g})"
            for name in ("base", "trained", "change")
            if f"{name}_rank" in found
        ]
        return (
            f"W-rank of the taught pairs ({found['null']:.1f} by chance, 0 if a link is wired in): {', '.join(parts)}."
        )

    def take(self, trained: Trained) -> dict[str, Any]:
        association = trained.spec.association
        if not isinstance(association, PairAssociation):
            raise UserError(f"'{association.name}' has no pairs of fact and entailment answers.")
        facts, _, _ = linked(trained)
        sides = sides_of(association, trained.spec.data.probe_template)
        answers = association.answers("fact")
        taught = [answers.index(answer) for answer in facts[0].probe.candidates[: facts[0].probe.in_use]]
        others = [i for i in range(len(answers)) if i not in taught]
        names = {each.probe.subject for each in trained.probes}
        names |= {example.subject for example in task_of_run(trained.spec).train}  # preventions teach others, too
        stream = f"{trained.spec.stream('data')}/link-map"
        models = {"base": False, "trained": True} if trained.has_base else {"trained": True}
        found: dict[str, Any] = {"null": (len(answers) - 1) / 2}
        weights = {}
        for name, is_trained in models.items():
            view = trained.view(is_trained)
            z_S, z_T = (first_logprobs(view, *side, trained.lane, names) for side in sides.values())
            weights[name], found[f"{name}_correlation"] = fit(z_S, z_T, _RIDGE)
            found[f"{name}_chance"] = fit(z_S[streams.permutation(f"{stream}/names", len(z_S))], z_T, _RIDGE)[1]
        if len(weights) == 2:
            weights["change"] = weights["trained"] - weights["base"]
        pairs: dict[str, list[Any]] = {"fact": answers, "entailment": association.answers("entailment")}
        pairs["taught"] = [int(i in taught) for i in range(len(answers))]
        for name, weights_RC in weights.items():
            ranks_RC = midranks(weights_RC)
            rank_R = ranks_RC.diagonal()
            pairs[name] = rounded(rank_R)
            found[f"{name}_rank"] = float(rank_R[taught].mean())
            found |= {f"{name}_untaught": float(rank_R[others].mean())} if others else {}
            found[f"{name}_p"] = float(corrected_ps(-ranks_RC[np.ix_(taught, taught)][None], stream)[0])
        return {**found, "pairs": pairs}
