"""Token forests side by side as one batch of a Hugging Face causal model.

A node attends only to its few ancestors, so most attention scores in a forest would be computed only to be masked. For
attention that supports clumps (models/grouped_attention.py) each forest is therefore split into clumps of trees, which
attend only within themselves; all rows have equally many, equally wide clumps. Otherwise a row is one clump.

    row:   | padding, nodes, nodes read | padding, nodes, nodes read | ...      C clumps of B nodes, the last R read

Dimension letters:  K rows,  C clumps per row,  B nodes per clump,  N = C * B nodes per row,  R nodes read per clump,
T expected tokens in all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_eval.packing.forest import ROOT, Forest, Reads

#: Nodes per pass, over all lanes. On a CPU, matrix products reach full speed at about 500 rows, and more rows only
#: overflow the caches; a GPU needs thousands.
PASS_NODES = {"cpu": 640, "cuda": 16_384, "mps": 4_096}
#: Approximate nodes per clump: wider ones have more scores to mask, narrower ones more padding and smaller products.
CLUMP_NODES = 80
#: A larger tree is split at its root, and every clump with a part of it has a copy of the root.
_TREE_NODES = CLUMP_NODES // 2
#: How many nodes, from a root on, may be copied: BOS and a template's first words, but not a longer shared beginning.
_COPIED_NODES = 8


@dataclass(frozen=True)
class Batch:
    """Forests side by side.

    Attributes:
        ids, positions: [K, N].
        sees: which node of a clump attends to which; padding attends to itself. [K, C, B, B]
        kept: the places whose logits are needed, the same in every row; C * R of them.
        rows, columns, tokens: row, index into ``kept``, and id of each expected token. [T]
        counts: number of expected tokens in each row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    kept: list[int]
    rows: torch.Tensor
    columns: torch.Tensor
    tokens: torch.Tensor
    counts: list[int]

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of the model: ids, positions, additive mask [K * C, 1, B, B], and which logits to keep.

        The last is a list: with a model spread over several devices, accelerate's hooks would move a tensor to another
        device than that of the hidden states.
        """
        sees = self.sees.flatten(0, 1)
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        return {
            "input_ids": self.ids.to(device),
            "position_ids": self.positions.to(device),
            "attention_mask": mask[:, None].to(device),
            "logits_to_keep": self.kept,
        }


def lay_out(rows: Sequence[tuple[Forest, Reads]], by_clump: bool = True) -> Batch:
    """Lay out forests and their reads side by side, padded to the widest clump and the most nodes read in one.

    Without ``by_clump``, for attention that does not support clumps, a row is one clump.
    """
    pieces = [pieces_of(forest) for forest, _ in rows]
    widest = max(len(piece) for of_row in pieces for piece in of_row)
    nodes = max(len(forest.ids) for forest, _ in rows)
    count = max(1, round(nodes / max(CLUMP_NODES, widest))) if by_clump else 1
    parted = [part(of_row, reads, count) for of_row, (_, reads) in zip(pieces, rows, strict=True)]
    width = max(len(clump.nodes) for clumps in parted for clump in clumps)
    wanted = max(clump.reads for clumps in parted for clump in clumps)
    ids, positions = np.zeros((2, len(rows), count, width), dtype=np.int64)
    sees = np.zeros((len(rows), count, width, width), dtype=bool)
    sees[..., np.arange(width), np.arange(width)] = True
    columns: list[int] = []
    for k, ((forest, reads), clumps) in enumerate(zip(rows, parted, strict=True)):
        column_of = {}
        for c, clump in enumerate(clumps):
            first = width - len(clump.nodes)
            slot = {node: first + i for i, node in enumerate(clump.nodes)}
            ids[k, c, first:] = [forest.ids[node] for node in clump.nodes]
            positions[k, c, first:] = [forest.depths[node] for node in clump.nodes]
            for node in sorted(clump.nodes):  # parents before children
                if forest.parents[node] != ROOT:
                    sees[k, c, slot[node]] |= sees[k, c, slot[forest.parents[node]]]
            for i, node in enumerate(clump.nodes[len(clump.nodes) - clump.reads :]):
                column_of[node] = c * wanted + wanted - clump.reads + i
        columns += [column_of[reads.nodes[row]] for row in reads.rows]
    counts = [len(reads.tokens) for _, reads in rows]
    kept: NDArray[np.int64] = np.arange(count)[:, None] * width + np.arange(width - wanted, width)
    return Batch(
        ids=torch.from_numpy(ids).flatten(1),
        positions=torch.from_numpy(positions).flatten(1),
        sees=torch.from_numpy(sees),
        kept=kept.ravel().tolist(),
        rows=torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
        columns=torch.tensor(columns),
        tokens=torch.tensor([token for _, reads in rows for token in reads.tokens]),
        counts=counts,
    )


@dataclass(frozen=True)
class Clump:
    """Some trees of a forest, or parts of trees with copies of their ancestors; the last ``reads`` nodes are read."""

    nodes: list[int]
    reads: int


def part(pieces: Sequence[list[int]], reads: Reads, count: int) -> list[Clump]:
    """Split a forest into clumps of nearly equal size: the largest piece first, each to where the sum is smallest.

    Every node is in one clump or, if it is near the root of a large tree, in several; only one of them reads it.
    """
    is_read = set(reads.nodes)
    members: list[set[int]] = [set() for _ in range(count)]

    def size_with(piece: list[int], nodes: set[int]) -> int:
        whole = nodes.union(piece)
        return len(whole) + len(whole & is_read)

    for piece in sorted(pieces, key=lambda piece: (-len(piece), piece)):
        min(members, key=partial(size_with, piece)).update(piece)
    clumps = []
    for nodes in members:
        read = sorted(nodes & is_read)
        is_read -= nodes
        clumps.append(Clump([*sorted(nodes.difference(read)), *read], len(read)))
    return clumps


def pieces_of(forest: Forest) -> list[list[int]]:
    """The trees of a forest, and the branches of large trees, each with its ancestors."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(forest.parents):
        children.setdefault(parent, []).append(node)

    def below(node: int) -> list[int]:
        nodes = [node]
        for each in nodes:  # grows during the loop
            nodes += children.get(each, ())
        return nodes

    def cut(node: int, path: list[int]) -> list[list[int]]:
        nodes = below(node)
        if len(nodes) <= _TREE_NODES or len(path) >= _COPIED_NODES:
            return [[*path, *nodes]]
        return [piece for child in children.get(node, ()) for piece in cut(child, [*path, node])]

    return [piece for root in children.get(ROOT, ()) for piece in cut(root, [])]
