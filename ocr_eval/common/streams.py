"""Named random streams without state: items are shuffled by sorting on a keyed hash.

A run has three streams (``RunSpec.stream``), each named by a seed and a purpose, so that drawing more from one never
changes another. Nothing else in a run is random: there is no dropout, and scoring is deterministic.

    <seed>/data                   pairs, names and groups; which answers the shuffled control teaches to whom
    <train seed>/order            the order of statements in each epoch
    <train seed>/initialization   an adapter's A; B starts at zero, and full fine-tuning at the base

The train seed equals the seed unless it is given. The hash (SHA-256) makes draws the same on every machine and under
every version of Python and its libraries.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def _key(stream: str, item: str) -> bytes:
    return hashlib.sha256(f"{stream}\0{item}".encode()).digest()


def permutation(stream: str, n: int) -> list[int]:
    """A uniformly random order of 0..n-1 for this stream."""
    return sorted(range(n), key=lambda i: _key(stream, str(i)))


def shuffled(stream: str, items: Sequence[Item]) -> list[Item]:
    """The items in this stream's random order, which depends on their number but not on their values."""
    return [items[i] for i in permutation(stream, len(items))]


def integer(stream: str) -> int:
    """A seed in [0, 2^63) for a library's own generator."""
    return int.from_bytes(_key(stream, "integer")[:8], "big") >> 1
