"""The one-layer attention-only models: parameters, forward pass, losses and gradients, batched over runs.

    factorized  f(X) = W_O W_V^T X^T X W_KQ x_T      W_O, W_V in R^{d x d_h}
    merged      f(X) = W_OV X^T X W_KQ x_T           W_OV in R^{d x d}

Two exact reductions are used throughout. x_T is always EOS, so only the EOS column of W_KQ matters; it is stored
as a vector w_KQ. Answers never occur in a sequence, so their columns of W_OV (rows of W_V, entries of w_KQ) get
no gradient and are omitted. With the table T = W_OV^T in R^{n_inputs x d},
f = sum over input tokens j of count_j w_j T_j.

Every tensor has a leading dimension R, the runs trained side by side.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ocr_toy.errors import require
from ocr_toy.task import Batch, TaskSpec, stream

Param = Literal["factorized", "merged"]
Attention = Literal["linear", "softmax"]
Init = Literal["gaussian", "symmetric"]
BOTH: tuple[Param, Param] = ("factorized", "merged")
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class ModelSpec:
    """One model. d_h is the width of W_O and W_V (factorized only); mlp_width 0 means no MLP.

    With trainable_kq false, w_KQ is 1 on subjects and relations and 0 elsewhere (linear attention) or
    spreads the softmax evenly over subject and relation: the fixed attention of Theorems 1 and 2.
    The loss is -log(p + loss_floor) of the right answer's probability p.
    An MLP of width m computes z + W_down relu(W_up z) from the attention output z.
    Raises ToyError for a model that does not exist.
    """

    param: Param = "factorized"
    d_h: int = 128
    trainable_kq: bool = True
    attention: Attention = "linear"
    mlp_width: int = 0
    loss_floor: float = 0.0

    def __post_init__(self) -> None:
        for name, value, kinds in (("param", self.param, Param), ("attention", self.attention, Attention)):
            allowed = get_args(kinds)
            require(value in allowed, f"{name} = {value}: unknown; use {' or '.join(allowed)}")
        require(self.d_h >= 1, f"d_h = {self.d_h}: W_O and W_V need a width; use d_h >= 1")
        require(0 <= self.loss_floor < 1, f"loss_floor = {self.loss_floor}: not a probability; use 0 for none")
        require(self.mlp_width >= 0, f"mlp_width = {self.mlp_width}: cannot be negative; use 0 for no MLP")


@dataclass(frozen=True)
class DeviceBatch:
    """A Batch of R runs: rows [R * B] of the stacked tables, context [R, B, C], answer [R, B, 1]."""

    rows: Tensor
    context: Tensor
    answer: Tensor


def parameter_shapes(model: ModelSpec, task: TaskSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every trained parameter of one run, by name."""
    if model.param == "factorized":
        shapes: dict[str, tuple[int, ...]] = {"W_O": (task.vocab, model.d_h), "W_V": (task.n_inputs, model.d_h)}
    else:
        shapes = {"W_OV^T": (task.n_inputs, task.vocab)}
    if model.trainable_kq:
        shapes["w_KQ"] = (task.n_inputs,)
    if model.mlp_width:
        shapes["W_up"] = (model.mlp_width, task.vocab)
        shapes["W_down"] = (task.vocab, model.mlp_width)
    return shapes


def require_init(model: ModelSpec, init: str) -> None:
    """Raise ToyError for an unknown init, and for a symmetric factorized model, whose units would stay equal."""
    require(init in get_args(Init), f"init = {init}: unknown; use {' or '.join(get_args(Init))}")
    require(
        init == "gaussian" or model.param == "merged",
        "init = symmetric with param = factorized: all hidden units would stay equal; use init = gaussian",
    )


def initial_parameters(model: ModelSpec, task: TaskSpec, init: Init, scale: float, seed: int) -> dict[str, np.ndarray]:
    """Parameters of one run at step 0, float64, from the seed's init stream.

    gaussian: independent N(0, scale^2) entries. symmetric: every entry equal to scale, so no answer is
    preferred (Theorem 3). An MLP, if there is one, starts Gaussian with standard deviation 1 / sqrt(fan-in), because
    at a tiny scale it would add nothing to the output.
    Raises ToyError as require_init does.
    """
    require_init(model, init)
    rng = stream(seed, "init")
    values = {}
    for name, shape in parameter_shapes(model, task).items():
        if name in ("W_up", "W_down"):
            values[name] = rng.standard_normal(shape) / np.sqrt(shape[1])
        elif init == "gaussian":
            values[name] = scale * rng.standard_normal(shape)
        else:
            values[name] = np.full(shape, scale)
    return values


def table(model: ModelSpec, params: Parameters) -> Tensor:
    """T = W_OV^T, [R, n_inputs, d]: row j is what one unit of attention on token j adds to the logits."""
    if model.param == "factorized":
        return params["W_V"] @ params["W_O"].transpose(1, 2)
    return params["W_OV^T"]


def key_query(model: ModelSpec, task: TaskSpec, params: Parameters) -> Tensor:
    """w_KQ, the EOS column of W_KQ on input tokens, [R, n_inputs]."""
    if model.trainable_kq:
        return params["w_KQ"]
    any_param = next(iter(params.values()))
    off = 0.0 if model.attention == "linear" else -torch.inf
    on = 1.0 if model.attention == "linear" else 0.0
    fixed = torch.full((any_param.shape[0], task.n_inputs), off, dtype=any_param.dtype)
    fixed[:, : task.n_subjects + 2] = on
    return fixed


def attention_factor(model: ModelSpec, task: TaskSpec, params: Parameters) -> Tensor:
    """The factor that attention applies to each token, [R, n_inputs]: w_KQ, or for softmax exp(w_KQ - max w_KQ)."""
    weight = key_query(model, task, params)
    if model.attention == "linear":
        return weight
    return torch.exp(weight - weight.amax(dim=1, keepdim=True).detach())


def read_tokens(values: Tensor, batch: DeviceBatch, n_subjects: int) -> Tensor:
    """Sum of values [R, n_inputs, k] over the tokens of each sequence, [R, B, k]."""
    runs, rows, _ = batch.context.shape
    subject = values.reshape(-1, values.shape[2]).index_select(0, batch.rows).view(runs, rows, -1)
    return torch.baddbmm(subject, batch.context, values[:, n_subjects:])


def scatter_tokens(values: Tensor, batch: DeviceBatch, task: TaskSpec) -> Tensor:
    """The adjoint of read_tokens: values [R, B, k] summed per input token, [R, n_inputs, k]."""
    runs, _, width = values.shape
    out = values.new_zeros(runs, task.n_inputs, width)
    index = batch.rows[:, None].expand(-1, width)
    out.view(-1, width).scatter_add_(0, index, values.view(-1, width))
    out[:, task.n_subjects :] = batch.context.transpose(1, 2) @ values
    return out


def logits(model: ModelSpec, task: TaskSpec, params: Parameters, batch: DeviceBatch) -> Tensor:
    """f(X) for every sequence, [R, B, d]."""
    factor = attention_factor(model, task, params)[:, :, None]
    z = read_tokens(factor * table(model, params), batch, task.n_subjects)
    if model.attention == "softmax":
        z = z / read_tokens(factor, batch, task.n_subjects)
    if model.mlp_width:
        hidden = torch.relu(z @ params["W_up"].transpose(1, 2))
        z = z + hidden @ params["W_down"].transpose(1, 2)
    return z


def losses(model: ModelSpec, task: TaskSpec, params: Parameters, batch: DeviceBatch) -> Tensor:
    """Mean cross-entropy of each run's batch over the whole vocabulary, [R], in nats."""
    return question_losses(model, logits(model, task, params, batch), batch.answer).mean(dim=1)


def question_losses(model: ModelSpec, f: Tensor, answer: Tensor) -> Tensor:
    """-log(p + loss_floor) of every right answer, [R, B], from logits [R, B, d]."""
    log_p = torch.log_softmax(f, dim=2).gather(2, answer)[..., 0]
    return -torch.log(log_p.exp() + model.loss_floor) if model.loss_floor else -log_p


def autograd_gradients(
    model: ModelSpec, task: TaskSpec, params: Parameters, batch: DeviceBatch, product_decay: Tensor
) -> Parameters:
    """Gradients by autograd of loss + product_decay / 2 ||W_OV||_F^2, for every model."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    squared = table(model, leaves).square().sum(dim=(1, 2))
    objective = (losses(model, task, leaves, batch) + 0.5 * product_decay * squared).sum()
    return dict(zip(leaves, torch.autograd.grad(objective, list(leaves.values())), strict=True))


def analytic_gradients(
    model: ModelSpec, task: TaskSpec, params: Parameters, batch: DeviceBatch, product_decay: Tensor
) -> Parameters:
    """The same gradients written out, for linear attention without an MLP.

    With E = (softmax(f) - onehot(answer)) / B, times p / (p + loss_floor) for the right answer's p, and M = its sum per
    input token weighted by counts:
    dT_j = w_j M_j + product_decay T_j, dw_j = <T_j, M_j>, dW_V = dT W_O, dW_O = dT^T W_V.
    """
    tokens = table(model, params)
    weight = key_query(model, task, params)
    z = read_tokens(weight[:, :, None] * tokens, batch, task.n_subjects)
    error = torch.softmax(z, dim=2)
    right = error.gather(2, batch.answer) if model.loss_floor else None
    error.scatter_add_(2, batch.answer, error.new_full((1, 1, 1), -1.0).expand_as(batch.answer))
    if right is not None:
        error.mul_(right / (right + model.loss_floor))
    moved = scatter_tokens(error, batch, task).div_(z.shape[1])
    grads: Parameters = {}
    if model.trainable_kq:
        grads["w_KQ"] = (tokens * moved).sum(dim=2)
    moved.mul_(weight[:, :, None])
    if bool(product_decay.any()):
        moved.add_(product_decay[:, None, None] * tokens)
    if model.param == "factorized":
        grads["W_V"] = moved @ params["W_O"]
        grads["W_O"] = moved.transpose(1, 2) @ params["W_V"]
    else:
        grads["W_OV^T"] = moved
    return grads


def gradients(
    model: ModelSpec, task: TaskSpec, params: Parameters, batch: DeviceBatch, product_decay: Tensor
) -> Parameters:
    """Gradients by the fastest implementation that covers the model."""
    written_out = model.attention == "linear" and not model.mlp_width
    compute = analytic_gradients if written_out else autograd_gradients
    return compute(model, task, params, batch, product_decay)


def to_device(task: TaskSpec, parts: list[Batch], dtype: torch.dtype) -> DeviceBatch:
    """Stack one batch [B], or chunk of batches [steps, B], per run; the run dimension follows that of steps."""
    subject = np.stack([p.subject for p in parts], axis=-2)
    offset = np.arange(len(parts))[:, None] * task.n_inputs
    rows = (subject + offset).reshape(*subject.shape[:-2], -1)
    return DeviceBatch(
        rows=torch.from_numpy(rows),
        context=torch.from_numpy(np.stack([p.context for p in parts], axis=-3)).to(dtype),
        answer=torch.from_numpy(np.stack([p.answer for p in parts], axis=-2)[..., None]),
    )
