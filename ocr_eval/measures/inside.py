"""Shared by the measures of a network's inside: its layers, the residual stream (by plain hooks), a test over layers.

Dimension letters:  L layers,  P prompts,  D width of the residual stream,  n in-use answers,  C comparisons, such as
layers,  F assignments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocr_eval.common import streams
from ocr_eval.common.errors import UserError
from ocr_eval.data.tokenize import Ids, ProbeTokens, Tokenizer, encode
from ocr_eval.measures.measure import Trained
from ocr_eval.methods.view import View
from ocr_eval.packing.batch import Batch, lay_out
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.scoring.candidates import Floats, cut_probes, with_room

#: Up to _MOST_EXACT assignments are enumerated; beyond that, _DRAWS are sampled.
_MOST_EXACT, _DRAWS = 5040, 2000
#: A layer counts if its p-value is at most this.
SIGNIFICANT = 0.05


def decoder_of(network: torch.nn.Module) -> torch.nn.Module:
    """The part of a causal model that holds ``layers`` and the final ``norm``; raises UserError if there is none."""
    decoder = getattr(network, "model", None)
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
        raise UserError(f"{type(network).__name__} has no model.layers and model.norm, which this measure reads.")
    assert isinstance(decoder, torch.nn.Module)
    return decoder


@contextmanager
def hooked(network: torch.nn.Module, see: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``see`` with each layer's number and output [1, nodes, D]; a tensor that it returns replaces the output."""

    def hook(layer: int, module: torch.nn.Module, args: Any, output: Any) -> Any:
        changed = see(layer, output if isinstance(output, Tensor) else output[0])
        return changed if changed is None or isinstance(output, Tensor) else (changed, *output[1:])

    layers: Any = decoder_of(network).layers
    with ExitStack() as hooks:
        for i, module in enumerate(layers):
            hooks.enter_context(module.register_forward_hook(partial(hook, i)))
        yield


def packed(view: View, lane: int, questions: Sequence[tuple[Ids, Sequence[Ids]]]) -> tuple[Batch, Tensor]:
    """Prompts with answers as a one-row batch, and the node at which each answer's first token is read."""
    forest = Forest()
    reads, _ = read_answers(forest, questions)
    batch = lay_out([view.place(lane, forest, reads)], by_clump=False)
    return batch, torch.tensor(batch.kept)[batch.columns]


def residuals(view: View, lane: int, probes: Sequence[ProbeTokens]) -> Tensor:
    """The residual stream after each layer at the last token of each prompt, fp32, on the CPU. [L, P, D]"""

    def read(size: int) -> Tensor:
        order, parts = [], []
        for chunk in cut_probes(probes, size):
            batch, nodes = packed(view, lane, [(probes[i].prompt, [(0,)]) for i in chunk])
            seen: list[Tensor] = []

            def see(layer: int, hidden: Tensor, nodes: Tensor = nodes, seen: list[Tensor] = seen) -> None:
                seen.append(hidden[0, nodes].float().cpu())

            with torch.no_grad(), hooked(view.network, see):
                view.logits(batch, [lane])
            order += chunk
            parts.append(torch.stack(seen))
        return torch.cat(parts, dim=1)[:, np.argsort(order)]

    return with_room(view, 1, read)


def lens(network: Any, residual_PD: Tensor, tokens: NDArray[np.int64]) -> Floats:
    """Logits of each prompt's ``tokens`` [P, C], from the residual stream through the final norm and head. [P, C]"""
    norm, head = decoder_of(network).norm, network.get_output_embeddings()
    assert isinstance(norm, torch.nn.Module)
    with torch.no_grad():
        normed_PD = norm(residual_PD.to(head.weight.device, head.weight.dtype)).float()
        logits: Tensor = torch.einsum("pd,pcd->pc", normed_PD, head.weight[torch.from_numpy(tokens)].float())
    return logits.cpu().double().numpy()


def up_to_subject(tokenizer: Tokenizer, probes: Sequence[ProbeTokens]) -> list[ProbeTokens]:
    """Each prompt cut after the token in which its subject's name ends; raises UserError if it does not name it."""
    texts = []
    for each in probes:
        before, name, _ = each.probe.prompt.partition(each.probe.subject)
        if not name:
            raise UserError(
                f"where the name ends in '{each.probe.prompt}' is not known (its subject is called "
                f"'{each.probe.subject}')."
            )
        texts.append(before + name)
    cut = []
    for each, ids in zip(probes, encode(tokenizer, texts), strict=True):
        alike = next((i for i, pair in enumerate(zip(ids, each.prompt, strict=False)) if pair[0] != pair[1]), len(ids))
        end = len(ids) if alike == len(ids) else alike + 1  # the end of a name may share a token with what follows
        cut.append(replace(each, prompt=each.prompt[:end]))
    return cut


def first_ids(probes: Sequence[ProbeTokens]) -> NDArray[np.int64]:
    """First token of each candidate [P, C]; UserError unless probes share candidates with distinct first tokens."""
    if len({each.probe.candidates for each in probes}) != 1 or any(each.begin_alike for each in probes):
        raise UserError("It needs probes of one quantity that share candidates with distinct first tokens.")
    return np.array([[ids[0] for ids in each.candidates] for each in probes])


def linked(trained: Trained) -> tuple[list[ProbeTokens], list[ProbeTokens], list[int]]:
    """Fact probe and finding probe of each test subject, and the entailment answer that goes with each fact answer.

    Raises:
        UserError: a subject of the finding is not asked for its fact, or facts and entailments are not one to one.
    """
    finding = {each.probe.subject: each for each in trained.asked("finding")}
    premises = [each for each in trained.asked("premise") if each.probe.subject in finding]
    pairs = [(each, finding[each.probe.subject]) for each in premises]
    answer_of = {fact.probe.target: found.probe.target for fact, found in pairs}
    one_to_one = all(answer_of[fact.probe.target] == found.probe.target for fact, found in pairs)
    if len(pairs) != len(finding) or not one_to_one or sorted(answer_of) != sorted(answer_of.values()):
        raise UserError("It needs an association that asks each subject for a fact and for its entailment.")
    return [fact for fact, _ in pairs], [found for _, found in pairs], [answer_of[i] for i in sorted(answer_of)]


def by_answer(values_CPn: Floats, targets: Sequence[int]) -> Floats:
    """Mean over the probes that share a right answer. [C, P, n] -> [C, n, n]"""
    target_P = np.asarray(targets)
    return np.stack([values_CPn[:, target_P == answer].mean(axis=1) for answer in range(values_CPn.shape[2])], axis=1)


def assignments(n: int, stream: str, fixed: bool = True) -> tuple[NDArray[np.int64], bool]:
    """Assignments of n answers to n groups, or 2000 random ones if there are too many; and whether they are all. [F, n]

    ``fixed``: whether a group may keep its own answer.
    """
    exact = math.factorial(n) <= _MOST_EXACT
    rows = list(permutations(range(n))) if exact else [streams.permutation(f"{stream}/{i}", n) for i in range(_DRAWS)]
    found: NDArray[np.int64] = np.array(rows)
    return (found if fixed else found[(found != np.arange(n)).all(axis=1)]), exact


def corrected_ps(values_Cnn: Floats, stream: str, observed: Sequence[int] | None = None) -> Floats:
    """p of each comparison under "groups do not tell answers apart", corrected for taking the best of them. [C]

    With T_c(f) the mean of values[c, g, f(g)] over the groups g, less its mean over assignments, p_c is the share of
    assignments f with max_c' T_c'(f) >= T_c(observed).

    Args:
        values_Cnn: for each comparison and group, a value per answer, larger if it looks more like the group's.
        stream: random stream for sampling assignments if there are too many.
        observed: the answer of each group, never its own, which no assignment then uses; None: each group has its own.
    """
    n = values_Cnn.shape[1]
    own = observed is None
    true_n = np.arange(n) if observed is None else np.asarray(observed)
    found_Fn, exact = assignments(n, stream, own)
    allowed = np.ones((n, n), dtype=bool) if own else ~np.eye(n, dtype=bool)
    centred_Cnn = values_Cnn - values_Cnn[:, allowed].mean(axis=1)[:, None, None]
    most_F = centred_Cnn[:, np.arange(n), found_Fn].mean(axis=2).max(axis=0)
    true_C = centred_Cnn[:, np.arange(n), true_n].mean(axis=1)
    as_large_C = (most_F >= true_C[:, None] - 1e-12).sum(axis=1)
    return as_large_C / len(found_Fn) if exact else (1 + as_large_C) / (1 + len(found_Fn))


def first_layer(ps: Floats) -> int | None:
    """The first layer with a significant p; None if there is none."""
    return next((layer for layer, p in enumerate(ps.tolist()) if p <= SIGNIFICANT), None)


def rounded(values: Sequence[float] | Floats | Tensor) -> list[float]:
    """Four significant digits, as in records."""
    return [float(f"{float(value):.4g}") for value in values]
