"""``text-loss``: what an injection costs on unrelated prose.

    loss        nats per token over the first 20,480 tokens of data/texts/addresses.txt (or all, if fewer)
    base_loss   the same for the untouched base; absent after full fine-tuning, because the base is gone
    rise        loss - base_loss
    tokens      how many were predicted
    text        first 12 digits of the text's sha256

The text is read in windows of 256 tokens, or of the model's context (after that of ``in-context``) if that is shorter,
each after BOS if the tokenizer adds one; in each window, all tokens except the first are predicted. Nothing is fitted
to this text: covariances and anchors come from other texts. A pass costs about 40 TFLOP per billion parameters, so the
measure is taken only on request.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ocr_eval.common import yaml_files
from ocr_eval.common.files import read_bytes
from ocr_eval.data.tokenize import Ids, encode, windows
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.methods.texts import text_file
from ocr_eval.methods.view import View
from ocr_eval.packing.forest import Forest, read_answers

#: Most tokens per window, and in all.
_WINDOW, _MOST = 256, 20_480
_TEXT = "addresses.txt"


class TextLoss(Measure):
    """Reads the text in the trained model, and once in its base."""

    about = "Loss on 20,000 tokens of public-domain prose, before and after"

    def __init__(self) -> None:
        self._bases: WeakKeyDictionary[Any, dict[int, float]] = WeakKeyDictionary()

    def meaning(self, found: Mapping[str, Any]) -> str:
        before = f", {found['base_loss']:.3f} before" if "base_loss" in found else ""
        return f"Loss on unrelated prose: {found['loss']:.3f} nats per token{before}."

    def take(self, trained: Trained) -> dict[str, Any]:
        path, digest = text_file(str(yaml_files.shipped("texts") / _TEXT))
        (ids,) = encode(trained.view().base.tokenizer, [read_bytes(path).decode()])
        ids = ids[:_MOST]
        window = min(_WINDOW, trained.view().room(trained.lane))
        found: dict[str, Any] = {"loss": text_loss(trained.view(), trained.lane, ids, window)}
        if trained.has_base:
            base = trained.view(False)
            losses = self._bases.setdefault(base.base, {})
            if window not in losses:  # computed once for all runs on this base
                losses[window] = text_loss(base, trained.lane, ids, window)
            found["base_loss"] = losses[window]
            found["rise"] = found["loss"] - found["base_loss"]
        rounded = {key: float(f"{value:.6g}") for key, value in found.items()}
        pieces = windows(ids, trained.view().base.tokenizer.bos_token_id, window)
        return {**rounded, "tokens": sum(len(piece) - 1 for piece in pieces), "text": digest}


@torch.no_grad()
def text_loss(view: View, lane: int, ids: Ids, window: int) -> float:
    """Nats per token of a text, read in windows of ``window`` tokens whose first token is not predicted."""
    total, count = 0.0, 0
    for piece in windows(ids, view.base.tokenizer.bos_token_id, window):
        if len(piece) == 1:
            continue
        forest = Forest()
        reads, _ = read_answers(forest, [(piece[:1], [piece[1:]])])
        logprobs_T = view.token_logprobs({lane: (forest, reads)})[lane]
        total -= logprobs_T.cpu().double().sum().item()
        count += len(logprobs_T)
    return total / count
