"""Token forests: sequences packed into one row in which every distinct prefix is computed once.

Statements are short (about six tokens) and share beginnings: a subject's fact and entailment share the
name, a prompt's candidates share the prompt. Laid out as a forest, each node is one (prefix, token); a node
attends to its ancestors and itself, and its position is its depth. The network then sees exactly what it
would see for each sequence alone, without padding and without computing a shared prefix twice. This is the
layout of training batches and of scoring alike.

Several forests side by side make a batch, a row each (``lay_out``).

Dimension letters:  K rows,  N nodes a row,  R read positions a row,  T expected tokens in all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ocr_eval.tokens import Ids

ROOT = -1


@dataclass(frozen=True)
class Forest:
    """Packed sequences.

    Attributes:
        ids: token of each node, parents before children.
        parents: index of each node's parent, ``ROOT`` for a first token.
        depths: position of each node in its sequence, from 0.
    """

    ids: list[int]
    parents: list[int]
    depths: list[int]


class ForestBuilder:
    """Adds sequences one by one, reusing the prefixes that are there already."""

    def __init__(self) -> None:
        self._forest = Forest([], [], [])
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._forest.ids)

    def add(self, sequence: Iterable[int], after: int = ROOT) -> list[int]:
        """Add a sequence below a node and return the node of each of its tokens."""
        path, parent = [], after
        for token in sequence:
            node = self._children.get((parent, token))
            if node is None:
                forest = self._forest
                node = self._children[parent, token] = len(forest.ids)
                forest.ids.append(token)
                forest.parents.append(parent)
                forest.depths.append(0 if parent == ROOT else forest.depths[parent] + 1)
            path.append(node)
            parent = node
        return path

    def build(self) -> Forest:
        """The forest of everything added so far."""
        return self._forest


@dataclass(frozen=True)
class Reads:
    """Where a forest's logits are read and which token is expected there.

    Attributes:
        nodes: the distinct nodes that logits are read at, in the order of the rows of ``logits``. [R]
        rows: for each expected token, the row of its logits.
        tokens: the expected tokens.
    """

    nodes: list[int]
    rows: list[int]
    tokens: list[int]


def read_answers(
    builder: ForestBuilder, questions: Sequence[tuple[Ids, Sequence[Ids]]]
) -> tuple[Reads, list[list[int]]]:
    """Pack prompts with the answers after them and note where each answer token is predicted.

    The last token of an answer is never fed: nothing is predicted from it.

    Args:
        builder: receives the sequences.
        questions: (prompt, answers) each.

    Returns:
        The reads, and for each (question, answer) in order, the indices into ``reads.tokens`` of its tokens.
    """
    rows_of_node: dict[int, int] = {}
    nodes: list[int] = []
    rows: list[int] = []
    tokens: list[int] = []
    spans: list[list[int]] = []
    for prompt, answers in questions:
        end = builder.add(prompt)[-1]
        for answer in answers:
            span = []
            for node, token in zip([end, *builder.add(answer[:-1], after=end)], answer, strict=True):
                if node not in rows_of_node:
                    rows_of_node[node] = len(nodes)
                    nodes.append(node)
                span.append(len(tokens))
                rows.append(rows_of_node[node])
                tokens.append(token)
            spans.append(span)
    return Reads(nodes, rows, tokens), spans


@dataclass(frozen=True)
class Batch:
    """Forests side by side, as a Hugging Face causal model takes them.

    In a row, padding comes first and the nodes that logits are read at come last, so that one number says
    which logits are wanted of every row.

    Attributes:
        ids, positions: [K, N].
        sees: which node attends to which; padding to itself. [K, N, N]
        reads: logits are wanted at the last ``reads`` nodes of each row.
        rows, columns, tokens: row, place within the wanted logits, and id of each expected token. [T]
        counts: how many expected tokens each row has.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    reads: int
    rows: torch.Tensor
    columns: torch.Tensor
    tokens: torch.Tensor
    counts: list[int]

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The arguments of the model: ids, positions, additive mask [K, 1, N, N]."""
        mask = torch.zeros(self.sees.shape, dtype=dtype).masked_fill_(~self.sees, torch.finfo(dtype).min)
        return {
            "input_ids": self.ids.to(device),
            "position_ids": self.positions.to(device),
            "attention_mask": mask[:, None].to(device),
        }


def lay_out(rows: Sequence[tuple[Forest, Reads]]) -> Batch:
    """Put forests side by side, one a row, padded to the longest."""
    n, wanted = max(len(forest.ids) for forest, _ in rows), max(len(reads.nodes) for _, reads in rows)
    ids, positions = np.zeros((2, len(rows), n), dtype=np.int64)
    sees = np.zeros((len(rows), n, n), dtype=bool)
    sees[:, np.arange(n), np.arange(n)] = True
    columns: list[int] = []
    for k, (forest, reads) in enumerate(rows):
        is_read = set(reads.nodes)
        order = [node for node in range(len(forest.ids)) if node not in is_read] + reads.nodes
        slot = np.empty(len(order), dtype=np.int64)
        slot[order] = np.arange(n - len(order), n)
        ids[k, slot], positions[k, slot] = forest.ids, forest.depths
        for node, parent in enumerate(forest.parents):
            if parent != ROOT:
                sees[k, slot[node]] |= sees[k, slot[parent]]
        columns += [wanted - len(reads.nodes) + row for row in reads.rows]
    counts = [len(reads.tokens) for _, reads in rows]
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        sees=torch.from_numpy(sees),
        reads=wanted,
        rows=torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
        columns=torch.tensor(columns),
        tokens=torch.tensor([token for _, reads in rows for token in reads.tokens]),
        counts=counts,
    )
