"""How rows of the table look in figures: each has one colour, marker and name in all of them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from zlib import crc32

from ocr_eval.records.record import Record
from ocr_eval.records.rows import group_rows
from ocr_eval.report.figures.style import COLORS, MARKERS

#: Rows prefer one of this many markers, the clearest.
_ASKED = 6
#: ``name:key=value:key=value``, a method or prevention with its settings, or a prevention without.
_CALL = re.compile(r"[\w.-]+(?::[\w.-]+=[^:,\s]+)+|(?<=\+ )[\w.-]+")


@dataclass(frozen=True)
class Look:
    """Colour and marker of a row."""

    color: str
    marker: str

    def face(self, unlearned: bool) -> str:
        """The fill of its marker: its colour, or none if a run did not learn what it was taught."""
        return "white" if unlearned else self.color


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each row, by name.

    Each name has a preferred colour and marker, so that it tends to look the same among other rows, too. If earlier
    rows have taken them, it gets the nearest ones among the least used.
    """
    colors, markers, found = Counter[int](), Counter[int](), dict[str, tuple[int, int]]()

    def cost(pair: tuple[int, int], wish: tuple[int, int]) -> tuple[int, ...]:
        used = markers[pair[1]], colors[pair[0]]
        return (pairs[pair], *used, (pair[0] - wish[0]) % len(COLORS), (pair[1] - wish[1]) % len(MARKERS))

    pairs = Counter[tuple[int, int]]()
    for name in dict.fromkeys(names):
        hashed = crc32(name.encode())
        wish = hashed % len(COLORS), hashed // len(COLORS) % _ASKED
        choices = product(range(len(COLORS)), range(len(MARKERS)))
        found[name] = pair = min(choices, key=lambda pair: cost(pair, wish))
        pairs[pair] += 1
        colors[pair[0]] += 1
        markers[pair[1]] += 1
    return {name: Look(COLORS[color], MARKERS[marker]) for name, (color, marker) in found.items()}


def seeds_by_row(records: Sequence[Record]) -> dict[str, int]:
    """Number of seeds of each row, controls included, by name, over all of its associations."""
    return {key.name: len({run.seed for run in runs}) for key, runs in group_rows(records).items()}


def in_words(name: str, *notes: str) -> str:
    """A row's name for people (``decay:strength=0.1`` as ``decay: strength 0.1``), with notes in parentheses."""

    def call(found: re.Match[str]) -> str:
        called, colon, settings = found[0].partition(":")
        told = settings.replace(":", ", ").replace("=", " ").replace("_", " ")
        return f"{called.replace('-', ' ')}{colon and ': '}{told}"

    noted = ", ".join(note for note in notes if note)
    return _CALL.sub(call, name) + (f" ({noted})" if noted else "")


def counted(seeds: int | str | None) -> str:
    """``1 seed``, ``3 seeds``, ``1-3 seeds``; empty if unknown."""
    return "" if seeds in (None, "") else f"{seeds} seed{'' if str(seeds) == '1' else 's'}"
