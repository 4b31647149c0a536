"""``ov-change``: how much the value-output map of each attention head changed, and in how many directions.

A head h that reads the values of group g writes W_O,h W_V,g x for the positions it attends to. With the gains of the
norm before the values, and of the norm after attention if there is one (Gemma), folded in as diagonals,

    dW_OV = diag(g_out) (W_O' dW_V + dW_O W_V) diag(g_in)           W_O' after training, W_V before

is the product of [W_O', dW_O]_h, D x 2K, and [dW_V; W_V]_g, 2K x D. Its singular values are those of the product of
the triangular factors of their QR decompositions; no D x D matrix is formed. A dW_OV that was trained as one matrix is
diag(g_out) dW_h diag(g_in), and the two factors are D x D. For each head: the norms and ranks of
``weight-change``, and

    ratio     |dW|_* / (sqrt(R) |dW|_F), R = min(2 rank, 2 K): 1 / sqrt(R) for one direction, 1 for R equal ones
    bias      |dW_O b_V| if values have a bias (Qwen2), which the head adds whatever it reads

Layers and heads count from 0. At the top and by layer: means of ratio and ranks over heads, and the root of the sum of
squares of ``frobenius``. Gains are those of the trained model. The nuclear norm is what the symbolic study minimizes
(``ocr-eval toy``). Compare a run with its ``shuffled`` variant at equal loss, because memorizing also raises the rank.

Dimension letters:  D width of the residual stream,  H query heads,  V key-value heads,  K width of a head.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocr_eval.common.errors import UserError
from ocr_eval.measures.inside import decoder_of, rounded
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.measures.weight_change import norms
from ocr_eval.methods.changes import LowRank, WeightChange
from ocr_eval.methods.ov_matrices import MODULE


@dataclass(frozen=True)
class HeadChanges:
    """The changes of the heads of one layer, as products of two factors in fp64.

    Attributes:
        left: [H, D, 2K].
        right: [H, 2K, D].
        bias: norm of what each head adds because values have a bias; None if they have none. [H]
        rank: an upper bound on their rank.
    """

    left: Tensor
    right: Tensor
    bias: Tensor | None
    rank: int

    def singular_values(self) -> Tensor:
        """Singular values of each head, in descending order. [H, 2K]"""
        core_left, core_right = (
            torch.linalg.qr(factor, mode="r").R for factor in (self.left, self.right.transpose(1, 2))
        )
        return torch.linalg.svdvals(core_left @ core_right.transpose(1, 2))


def gain(norm: Any, width: int, like: Tensor) -> Tensor:
    """The gain of a norm, however it is stored (Gemma: 1 + g; LayerNorm: with a bias); ones for None. [D]"""
    if norm is None:
        return torch.ones(width, dtype=torch.float64)
    with torch.no_grad():  # alternating signs have mean 0 and mean square 1
        signs_D = 1.0 - 2.0 * (torch.arange(width, device=like.device) % 2).to(like.dtype)
        odd_D: Tensor = (norm(signs_D[None])[0] - norm(-signs_D[None])[0]) / 2
    return (odd_D * signs_D).cpu().double()


def ov_changes(network: torch.nn.Module, changes: Iterable[WeightChange]) -> Iterator[HeadChanges]:
    """The changes of all heads, layer by layer.

    Raises:
        UserError: quantized weights, an architecture without v_proj and o_proj, or unchanged attention.
    """
    read = (".v_proj", ".o_proj", f".{MODULE}")
    changed = {change.module: change for change in changes if change.module.endswith(read)}
    if not changed:
        raise UserError("This run changed neither values nor outputs of attention (v_proj, o_proj).")
    names = {module: name for name, module in network.named_modules()}
    layers: Any = decoder_of(network).layers
    for layer in layers:
        attention: Any = getattr(layer, "self_attn", None)
        if not (hasattr(attention, "v_proj") and hasattr(attention, "o_proj")):
            raise UserError(f"{type(layer).__name__} has no self_attn.v_proj and o_proj, which this measure reads.")
        modules = [attention.v_proj, attention.o_proj]
        bare = [getattr(module, "base", module) for module in modules]
        if any(type(module) is not torch.nn.Linear for module in bare):
            raise UserError("The base is quantized, and this measure needs full precision. Rerun with --method lora.")
        known = [changed.get(names[module]) for module in modules]
        v, o = (module.weight.detach().cpu().double() for module in bare)
        dv, do = (
            torch.zeros_like(weight) if change is None else change.dense().cpu().double()
            for weight, change in zip((v, o), known, strict=True)
        )
        v_before = v if bare[0] is not modules[0] else v - dv  # adapters leave the weight as it was before training
        o_after = o + do if bare[1] is not modules[1] else o
        width, inner, size = len(o), o.shape[1], attention.head_dim
        heads, groups = inner // size, len(v) // size
        before = getattr(layer, "input_layernorm", None)
        behind = getattr(layer, "post_self_attn_layernorm", None)  # of GLM-4
        if before is None or hasattr(layer, "pre_feedforward_layernorm"):  # else that norm precedes the MLP
            behind = layer.post_attention_layernorm
        g_in, g_out = (gain(norm, width, bare[0].weight) for norm in (before, behind))

        direct = changed.get(f"{names[attention]}.{MODULE}")
        if direct is not None:
            left = direct.dense().cpu().double().view(width, heads, width).transpose(0, 1) * g_out[:, None]
            bias = None if bare[0].bias is None else torch.zeros(heads, dtype=left.dtype)  # it is added as before
            yield HeadChanges(left, g_in.diag().expand(heads, width, width), bias, width)
            continue

        def of_heads(values: Tensor, heads: int = heads, groups: int = groups, size: int = size) -> Tensor:
            return values.view(groups, size, -1).repeat_interleave(heads // groups, dim=0)  # [H, K, ...]

        o_HDK, do_HDK = (w.view(width, heads, size).transpose(0, 1) * g_out[:, None] for w in (o_after, do))
        right = torch.cat([of_heads(dv), of_heads(v_before)], dim=1) * g_in
        bias = None
        if bare[0].bias is not None:
            bias = (do_HDK @ of_heads(bare[0].bias.detach().cpu().double())).flatten(1).norm(dim=1)
        ranks = [len(change.a) if isinstance(change, LowRank) else size for change in known if change is not None]
        yield HeadChanges(torch.cat([o_HDK, do_HDK], dim=2), right, bias, min(sum(ranks), 2 * size, width))


class OVChange(Measure):
    """Two QR decompositions and a small SVD per head."""

    about = "Norms and ranks of the change of each head's value-output map"

    def meaning(self, found: Mapping[str, Any]) -> str:
        return (
            f"The changes of the heads' value-output maps have a mean effective rank of {found['effective_rank']:.1f} "
            f"out of {found['rank_bound']}. Where the model infers, the nuclear-norm solution predicts fewer "
            "directions than in the shuffled variant at equal loss."
        )

    def take(self, trained: Trained) -> dict[str, Any]:
        heads: dict[str, list[float]] = {}
        per_layer: list[int] = []
        rank = 0
        for number, of_layer in enumerate(ov_changes(trained.pack.base.network, trained.changes())):
            rank = max(rank, of_layer.rank)
            values_HK = of_layer.singular_values()
            per_layer.append(len(values_HK))
            for head, values in enumerate(values_HK):
                row = {"layer": number, "head": head, **norms(values)}
                length = math.sqrt(of_layer.rank) * row["frobenius"]
                row["ratio"] = row["nuclear"] / length if length else 0.0
                row |= {} if of_layer.bias is None else {"bias": float(of_layer.bias[head])}
                for key, value in row.items():
                    heads.setdefault(key, []).append(value)
        parts = [slice(sum(per_layer[:i]), sum(per_layer[: i + 1])) for i in range(len(per_layer))]
        means = ("ratio", "effective_rank", "stable_rank")
        changed = [i for i, norm in enumerate(heads["frobenius"]) if norm > 0]
        layers = {
            "layer": list(range(len(parts))),
            "frobenius": rounded([math.hypot(*heads["frobenius"][p]) for p in parts]),
        }
        layers |= {key: rounded([math.fsum(heads[key][p]) / len(heads[key][p]) for p in parts]) for key in means}
        return {
            "frobenius": math.hypot(*heads["frobenius"]),
            **{key: math.fsum(heads[key][i] for i in changed) / max(1, len(changed)) for key in means},
            "rank_bound": rank,
            "layers": layers,
            "heads": {key: column if key in ("layer", "head") else rounded(column) for key, column in heads.items()},
        }
