"""``frozen-layers``: what remains of a run's answers when early, or late, layers are restored to the base.

Feng et al. (arXiv 2412.04614) freeze layers afterwards, by undoing what was learned in them, and split at three
quarters of the depth: a taught first hop is stored in early layers, a second hop in late ones.

    cut                            the first late layer, from 0
    early_frozen_<quantity>_rank   mean rank with only the late layers trained
    late_frozen_<quantity>_rank    mean rank with only the early layers trained
    <quantity>_rank                mean rank with all layers trained

By first token, among candidates.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.changes import layer_of
from ocr_eval.methods.pack import MountedPack


@contextmanager
def taken_back(trained: Trained, layers: Container[int]) -> Iterator[None]:
    """Set the run's adapters in these layers to zero, then restore them bit for bit; ValueError if it has none."""
    pack = trained.pack
    if not isinstance(pack, MountedPack) or not pack.adapters.factors(trained.lane):
        raise ValueError("it needs low-rank adapters, and this method has none")
    factors = pack.adapters.factors(trained.lane)
    taken = [(each.b, each.b.clone()) for each in factors if layer_of(each.module) in layers]
    try:
        for b, _ in taken:
            b.zero_()
        pack.adapters.refresh()
        yield
    finally:
        for b, kept in taken:
            b.copy_(kept)
        pack.adapters.refresh()


class FrozenLayers(Measure):
    """Scores the run three times: as it is, and with either part of the layers restored."""

    about = "Mean ranks with early or late layers restored to the base (Feng et al., arXiv 2412.04614)"

    def take(self, trained: Trained) -> dict[str, Any]:
        layers = trained.pack.base.network.config.get_text_config().num_hidden_layers
        cut = layers * 3 // 4
        found: dict[str, Any] = {"cut": cut}
        for prefix, frozen in (("", range(0)), ("early_frozen_", range(cut)), ("late_frozen_", range(cut, layers))):
            with taken_back(trained, frozen):
                for quantity, score in trained.first_token(trained.view(), trained.probes).items():
                    found[f"{prefix}{quantity}_rank"] = round(score.mean_rank, 6)
        return found
