"""``weight-change``: how large the change of the weights is, and how many directions it has.

With singular values s_1 >= s_2 >= ... of the change dW of one matrix:

    Frobenius      |dW|_F = sqrt(sum s_i^2)
    nuclear        |dW|_* = sum s_i
    spectral       |dW|   = s_1
    stable rank    |dW|_F^2 / |dW|^2
    effective rank exp(-sum p_i ln p_i),  p_i = s_i / sum s       (Roy and Vetterli, EUSIPCO 2007)

Over all matrices together: the root of the sum of squares, the sum, the largest, and the means.
"""

import math
from typing import Any

import torch

from ocr_eval.common.errors import RunFailed
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.method import Needs


def norms(singular_values: torch.Tensor) -> dict[str, float]:
    """The five of one matrix; the ranks of no change are 0."""
    total = float(singular_values.sum())
    share = singular_values / total if total else singular_values
    entropy = float(torch.special.entr(share).sum())
    frobenius, spectral = float(singular_values.norm()), float(singular_values.max())
    return {
        "frobenius": frobenius,
        "nuclear": total,
        "spectral": spectral,
        "stable_rank": (frobenius / spectral) ** 2 if total else 0.0,
        "effective_rank": math.exp(entropy) if total else 0.0,
    }


class WeightChangeNorms(Measure):
    """Computes the norms of each changed matrix; low-rank changes are not multiplied out."""

    about = "Nuclear, Frobenius and spectral norm, stable and effective rank of the change of each matrix"

    def by_default(self, needs: Needs) -> bool:
        """For adapters it takes a tenth of a second; dense changes of a large model take minutes."""
        return needs.adapters and not needs.whole

    def take(self, trained: Trained) -> dict[str, Any]:
        """Norms over all matrices, and in ``modules`` a column of each, to four digits.

        Raises:
            RunFailed: the method changes no weights.
        """
        found = [(change.module, norms(change.singular_values())) for change in trained.changes()]
        if not found:
            raise RunFailed(f"method '{trained.spec.train.method_name}' changes no weights.")
        columns = {name: [of_module[name] for _, of_module in found] for name in found[0][1]}
        rounded = {name: [float(f"{value:.4g}") for value in values] for name, values in columns.items()}
        return {
            "frobenius": math.hypot(*columns["frobenius"]),
            "nuclear": math.fsum(columns["nuclear"]),
            "spectral": max(columns["spectral"]),
            **{name: math.fsum(columns[name]) / len(found) for name in ("stable_rank", "effective_rank")},
            "modules": {"name": [name for name, _ in found], **rounded},
        }
