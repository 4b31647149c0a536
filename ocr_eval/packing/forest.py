"""Token forests: sequences packed into one row in which every distinct prefix is computed once.

Statements are short (about six tokens) and share beginnings: a subject's fact and entailment share the
name, a prompt's candidates share the prompt. Laid out as a forest, each node is one (prefix, token); a node
attends to its ancestors and itself, and its position is its depth. The network then sees exactly what it
would see for each sequence alone, without padding and without computing a shared prefix twice. Training and
scoring both use this layout.

Several forests side by side make a batch (packing/batch.py).

Dimension letters:  R nodes of a forest whose logits are read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ocr_eval.data.tokenize import Ids

ROOT = -1


@dataclass(frozen=True)
class Forest:
    """Packed sequences, added one by one.

    Attributes:
        ids: token of each node, parents before children.
        parents: index of each node's parent, ``ROOT`` for a first token.
        depths: position of each node in its sequence, from 0.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, sequence: Iterable[int], after: int = ROOT) -> list[int]:
        """Add a sequence below a node, reusing existing prefixes; returns the node of each of its tokens."""
        path, parent = [], after
        for token in sequence:
            node = self._children.get((parent, token))
            if node is None:
                node = self._children[parent, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(parent)
                self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            path.append(node)
            parent = node
        return path


@dataclass(frozen=True)
class Reads:
    """Where a forest's logits are read and which token is expected there.

    Attributes:
        nodes: the distinct nodes whose logits are read, in the order of the rows of ``logits``. [R]
        rows: for each expected token, the row of its logits.
        tokens: the expected tokens.
    """

    nodes: list[int]
    rows: list[int]
    tokens: list[int]


def read_answers(forest: Forest, questions: Sequence[tuple[Ids, Sequence[Ids]]]) -> tuple[Reads, list[list[int]]]:
    """Pack prompts with the answers after them, and record where each answer token is predicted.

    The last token of an answer is never fed: nothing is predicted from it.

    Returns:
        The reads, and for each (question, answer) in order, the indices into ``reads.tokens`` of its tokens.
    """
    rows_of_node: dict[int, int] = {}
    nodes: list[int] = []
    rows: list[int] = []
    tokens: list[int] = []
    spans: list[list[int]] = []
    for prompt, answers in questions:
        end = forest.add(prompt)[-1]
        for answer in answers:
            span = []
            for node, token in zip([end, *forest.add(answer[:-1], after=end)], answer, strict=True):
                if node not in rows_of_node:
                    rows_of_node[node] = len(nodes)
                    nodes.append(node)
                span.append(len(tokens))
                rows.append(rows_of_node[node])
                tokens.append(token)
            spans.append(span)
    return Reads(nodes, rows, tokens), spans
