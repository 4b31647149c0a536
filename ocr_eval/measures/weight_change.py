"""``weight-change``: how large the change of the weights is, and how many directions it has.

With singular values s_1 >= s_2 >= ... of the change dW of one matrix:

    Frobenius      |dW|_F = sqrt(sum s_i^2)
    nuclear        |dW|_* = sum s_i
    spectral       |dW|   = s_1
    stable rank    |dW|_F^2 / |dW|^2
    effective rank exp(-sum p_i ln p_i),  p_i = s_i / sum s       (Roy and Vetterli, EUSIPCO 2007)

Over several matrices (all, or those of a layer), these are combined by root of the sum of squares, sum, maximum, and
mean (both ranks).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ocr_eval.common.errors import RunFailed
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.changes import layer_of
from ocr_eval.methods.method import Needs


def norms(singular_values: torch.Tensor) -> dict[str, float]:
    """The five numbers of one matrix; without a change the ranks are 0."""
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

    by_epoch = True
    about = "Nuclear, Frobenius and spectral norm, stable and effective rank of the change of each matrix"

    def by_default(self, needs: Needs) -> bool:
        """It takes a tenth of a second for adapters, but minutes for dense changes of a large model."""
        return needs.adapters and not needs.whole

    def take(self, trained: Trained) -> dict[str, Any]:
        """Norms over all matrices; in ``modules`` per matrix and in ``layers`` per layer, to four digits."""
        found = [(change.module, norms(change.singular_values())) for change in trained.changes()]
        if not found:
            raise RunFailed(f"method '{trained.spec.train.method_name}' changes no weights.")
        layers: dict[int, list[dict[str, float]]] = {}
        for module, of_module in found:
            layers.setdefault(layer_of(module), []).append(of_module)
        numbers = sorted(number for number in layers if number >= 0)
        by_layer = [together(layers[number]) for number in numbers]
        return {
            **together([of_module for _, of_module in found]),
            "modules": {"name": [module for module, _ in found], **_columns([of_module for _, of_module in found])},
            "layers": {"layer": numbers, **_columns(by_layer)},
        }


def together(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The five numbers of several matrices combined."""
    columns = {name: [of_module[name] for of_module in found] for name in found[0]}
    return {
        "frobenius": math.hypot(*columns["frobenius"]),
        "nuclear": math.fsum(columns["nuclear"]),
        "spectral": max(columns["spectral"]),
        **{name: math.fsum(columns[name]) / len(found) for name in ("stable_rank", "effective_rank")},
    }


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [float(f"{row[name]:.4g}") for row in rows] for name in (rows[0] if rows else ())}
