"""A stand-in for a tokenizer that is not available: about as many tokens as a real one makes, without meaning."""

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

#: Maximum letters of a piece. With real vocabularies of 32,000 to 256,000 entries, words of the statements are one
#: token, names and long words sometimes two.
PIECE = 8
_BOS, _FIRST = 1, 3


@dataclass
class StandInTokenizer:
    """Cuts words into pieces and numbers them in order of appearance.

    Attributes:
        vocabulary: number of entries; ids are below it.
        bos: whether every text begins with a BOS token.
    """

    vocabulary: int
    bos: bool
    eos_token_id: int | None = None
    _pieces: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: list[str]) -> Any:
        """Encode texts; the result has ``input_ids``."""
        return SimpleNamespace(input_ids=[self._encode(line) for line in text])

    def __len__(self) -> int:
        return self.vocabulary

    def _encode(self, line: str) -> list[int]:
        pieces = [word[i : i + PIECE] for word in re.findall(r"\s?\S+", line) for i in range(0, len(word), PIECE)]
        ids = [self._pieces.setdefault(piece, _FIRST + len(self._pieces)) % self.vocabulary for piece in pieces]
        return [_BOS, *ids] if self.bos else ids

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The pieces of ids."""
        names = {number: piece for piece, number in self._pieces.items()}
        return [names.get(i, "<s>") for i in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return "".join(self.convert_ids_to_tokens(ids))
