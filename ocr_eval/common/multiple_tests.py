"""Correction for multiple testing. Pure."""

from collections.abc import Sequence


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, which controls the family-wise error rate (Holm 1979)."""
    adjusted, so_far = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = so_far
    return adjusted
