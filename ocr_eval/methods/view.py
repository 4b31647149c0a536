"""The forward pass: token forests in, log-probabilities of the expected tokens out.

Training and scoring both run a network through a ``View``, so what is trained is what is scored.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ocr_eval.common.errors import UserError
from ocr_eval.methods.trainable import Trainable
from ocr_eval.models import grouped_attention
from ocr_eval.models.base import Base
from ocr_eval.packing.batch import Batch, lay_out
from ocr_eval.packing.forest import Forest, Reads
from ocr_eval.packing.logprobs import Reader, block_rows, read_logprobs


def longest(config: Any) -> int:
    """Tokens that every layer attends over. Forests have no sliding windows, so no sequence may be longer."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(getattr(config, "max_position_embeddings", None) or sys.maxsize, window or sys.maxsize)


@dataclass
class Cut:
    """How work is split after memory ran out; remembered, so that it runs out only once.

    Attributes:
        parts: in how many parts, one after another, a batch goes through the network.
        chunk_nodes: maximum nodes of a run in a scoring pass; None for the usual number.
    """

    parts: int = 1
    chunk_nodes: int | None = None


@dataclass(frozen=True)
class View:
    """A way to run a base: untouched, through the adapters of a pack, or through a PEFT adapter.

    Attributes:
        base: gives tokenizer, device, precision and attention; of a model in another program's training, an object with
            only these (integrations.py).
        network: the base's network, or a PEFT model around it.
        adapters: what the lanes learn, mounted in it, if anything.
        trained: whether to run ``adapters``, or the base without them.
        autocast: whether the network has fp32 weights that autocast brings to the base's precision.
    """

    base: Base
    network: torch.nn.Module
    adapters: Trainable | None = None
    trained: bool = True
    autocast: bool = False
    cut: Cut = field(default_factory=Cut)

    def token_logprobs(self, rows: Mapping[int, tuple[Forest, Reads]]) -> dict[int, torch.Tensor]:
        """Log-probability (nats, fp32) of each expected token, lane by lane; differentiable. [T]

        Logits are computed only where they are read; the log-softmax is in fp32.

        Args:
            rows: for each lane, its packed sequences and where they are read. Without adapters, lanes are only labels.
        """
        return self.read(rows, read_logprobs)

    def read(self, rows: Mapping[int, tuple[Forest, Reads]], read: Reader) -> dict[int, torch.Tensor]:
        """What a reader finds at each expected token, lane by lane (packing/logprobs.py).

        Raises:
            UserError: a sequence is longer than what every layer attends over.
        """
        placed = [self.place(lane, *of) for lane, of in rows.items()]
        length, most = 1 + max(max(forest.depths) for forest, _ in placed), longest(self.network.config)
        if length > most:
            raise UserError(
                f"A statement or question has {length:,} tokens, but some layers of this model attend over {most:,} at "
                "most. Shorten it, or choose another model."
            )
        batch = lay_out(placed, by_clump=self.base.attention == grouped_attention.NAME)
        logits_KRV = self.logits(batch, list(rows))
        device, (_, reads, vocabulary) = logits_KRV.device, logits_KRV.shape
        rows_T, tokens_T = (batch.rows * reads + batch.columns).to(device), batch.tokens.to(device)
        found_T = read(logits_KRV.flatten(0, 1), rows_T, tokens_T, block_rows(vocabulary, device.type))
        return dict(zip(rows, found_T.split(batch.counts), strict=True))

    def place(self, lane: int, forest: Forest, reads: Reads) -> tuple[Forest, Reads]:
        """A forest and its reads as a lane reads them, for example after a context."""
        return forest, reads

    def room(self, lane: int) -> int:
        """The most tokens that a lane can read at once."""
        return longest(self.network.config)

    def logits(self, batch: Batch, lanes: Sequence[int]) -> torch.Tensor:
        """The logits that a batch keeps, each row through its lane; differentiable. [K, R, V]"""
        base = self.base
        if self.adapters:
            self.adapters.select(lanes if self.trained else None)
        with base.autocast() if self.autocast else nullcontext():
            logits_KRV: torch.Tensor = self.network(**batch.inputs(base.device, base.dtype), use_cache=False).logits
        return logits_KRV
