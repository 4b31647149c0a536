"""Edits of a layer's down projection: the output that a subject's key should give (z), and the updates that achieve it.

Each subject has one z for all its statements: its keys at the last token coincide, so two edits of one subject would
conflict (MEMIT-Merge, arXiv 2502.07322). Keys are means over all places of the subject (r-ROME, arXiv 2403.07175).

Dimension letters:  S subjects,  I inputs of the down projection,  O its outputs,  P places of subjects in a pass,
R rows of logits,  V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocr_eval.common.errors import RunFailed, UserError
from ocr_eval.common.messages import progress_bar
from ocr_eval.data.task import Task
from ocr_eval.data.tokenize import Continuation, Ids, continuations, encode
from ocr_eval.methods.rome import Search
from ocr_eval.models.base import Base
from ocr_eval.packing.batch import lay_out, part, pieces_of
from ocr_eval.packing.forest import Forest, read_answers
from ocr_eval.packing.logprobs import block_rows, read_logprobs

#: Approximate nodes per pass: wider ones have more scores to mask.
_PASS_NODES = 320
#: Mean NLL, in nats per answer token, below which a subject's z is good enough.
_ENOUGH = 0.05


def rank_one_updates(keys_SI: Tensor, deltas_SO: Tensor, covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    """ROME, one subject after another: the factors A [S, I] and B [S, O] of dW = sum_s b_s a_s^T.

        a_s = C^-1 k_s / (k_s^T C^-1 k_s)        b_s = v*_s - W_{s-1} k_s = delta_s - sum_{j<s} b_j (a_j . k_s)

    After its own update W_s k_s is exactly v*_s = W_0 k_s + delta_s; later updates disturb it.
    """
    whitened_SI = torch.linalg.solve(covariance_II, keys_SI.T).T
    a_SI = whitened_SI / (whitened_SI * keys_SI).sum(1, keepdim=True)
    overlap_SS = torch.tril(keys_SI @ a_SI.T, diagonal=-1)
    identity = torch.eye(len(keys_SI), dtype=keys_SI.dtype)
    return a_SI, torch.linalg.solve_triangular(identity + overlap_SS, deltas_SO, upper=False)


def least_squares_update(keys_SI: Tensor, covariance_II: Tensor, lam: float) -> Tensor:
    """MEMIT: A [S, I] of dW = R^T A, where A = K (lambda C + K^T K)^-1 with a key in each row of K."""
    return torch.linalg.solve(lam * covariance_II + keys_SI.T @ keys_SI, keys_SI.T).T


@dataclass(frozen=True)
class Subject:
    """Somebody about whom statements are taught.

    Attributes:
        statements: their prompts name the subject.
        ends: for each statement, the number of tokens in its prompt up to the end of the subject's name.
        essence: the prompt "<name> is a", whose continuation should not change.
        essence_end: the same number for ``essence``.
    """

    statements: list[Continuation]
    ends: list[int]
    essence: Ids
    essence_end: int


def check_named(task: Task) -> None:
    """Raises UserError where a statement does not name its subject before its answer."""
    for example in task.train:
        if not example.subject or example.subject not in example.prompt:
            raise UserError(
                f"'{example.text}' does not name its subject before the answer (it is called '{example.subject}'), "
                "so there is no key to edit. Use a method that trains, such as lora."
            )


def subjects_of(tokenizer: Any, task: Task) -> list[Subject]:
    """The subjects of a task's statements; raises UserError as ``check_named`` does."""
    check_named(task)
    by_name = defaultdict(list)
    for example in task.train:
        by_name[example.subject].append((example.prompt, example.answer))

    def end(prompt: str, name: str) -> int:
        until, whole = encode(tokenizer, [prompt[: prompt.index(name) + len(name)], prompt])
        if whole[: len(until)] != until:
            raise UserError(f"No token ends with '{name}' in '{prompt}' for this tokenizer. Reword the template.")
        return len(until)

    found = []
    for name, pairs in by_name.items():
        essence = f"{name} is a"
        ends = [end(prompt, name) for prompt, _ in pairs]
        (ids,) = encode(tokenizer, [essence])
        found.append(Subject(continuations(tokenizer, pairs), ends, ids, end(essence, name)))
    return found


@dataclass(frozen=True)
class Pass:
    """The statements of some subjects as one forward pass. Subjects are numbered among all.

    Attributes:
        subjects: which subjects they are.
        places: where in the row a subject's last token is. [P]
        owners: the subject at each of these places. [P]
        rows, tokens: the row of logits and the id of each answer token.
        share: each answer token's subject, and its weight in the mean over that subject's statements.
        essences: the row of logits after each subject's essence. [subjects here]
    """

    inputs: dict[str, Any]
    subjects: Tensor
    places: Tensor
    owners: Tensor
    rows: Tensor
    tokens: Tensor
    share: tuple[Tensor, Tensor]
    essences: Tensor


def passes_of(base: Base, subjects: Sequence[Subject]) -> list[Pass]:
    """Lay out all subjects in passes of about ``_PASS_NODES`` at most."""
    parts: list[list[int]] = [[]]
    nodes = 0
    for i, subject in enumerate(subjects):
        own = sum(len(each.prompt) + len(each.answer) for each in subject.statements)
        if parts[-1] and nodes + own > _PASS_NODES:
            parts.append([])
            nodes = 0
        parts[-1].append(i)
        nodes += own
    return [_lay_out(base, subjects, of) for of in parts]


def _lay_out(base: Base, subjects: Sequence[Subject], of: Sequence[int]) -> Pass:
    forest, questions = Forest(), list[tuple[Ids, Sequence[Ids]]]()
    places: dict[int, int] = {}
    owner_of_token, weights = [], []
    for i in of:
        subject = subjects[i]
        for statement, end in zip(subject.statements, subject.ends, strict=True):
            places[forest.add(statement.prompt)[end - 1]] = i
            questions.append((statement.prompt, [statement.answer]))
            owner_of_token += [i] * len(statement.answer)
            weights += [1 / (len(statement.answer) * len(subject.statements))] * len(statement.answer)
        places[forest.add(subject.essence)[subject.essence_end - 1]] = i
    count = len(owner_of_token)
    questions += [(subjects[i].essence, [(0,)]) for i in of]
    reads, _ = read_answers(forest, questions)
    batch = lay_out([(forest, reads)], by_clump=False)
    (clump,) = part(pieces_of(forest), reads, 1)
    slot = {node: place for place, node in enumerate(clump.nodes)}
    device = base.device
    return Pass(
        inputs=batch.inputs(device, base.dtype),
        subjects=torch.tensor(of),
        places=torch.tensor([slot[node] for node in places], device=device),
        owners=torch.tensor(list(places.values()), device=device),
        rows=batch.columns[:count].to(device),
        tokens=batch.tokens[:count].to(device),
        share=(torch.tensor(owner_of_token, device=device), torch.tensor(weights, device=device)),
        essences=batch.columns[count:].to(device),
    )


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def means_at_subjects(base: Base, passes: Sequence[Pass], module: str, of_input: bool) -> Tensor:
    """Mean of a module's input, or output, over each subject's places, in fp64 on the CPU. [S, ...]"""
    taken: list[Tensor] = []

    def take(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        taken.append((inputs[0] if of_input else _first(output))[0])

    subjects = sum(len(each.subjects) for each in passes)
    total, count = torch.zeros(0), torch.zeros(subjects, 1, dtype=torch.float64)
    with base.network.get_submodule(module).register_forward_hook(take):
        for each in passes:
            base.network(**each.inputs, use_cache=False)
            values, owners = taken.pop()[each.places].cpu().double(), each.owners.cpu()
            total = total if len(total) else torch.zeros(subjects, values.shape[1], dtype=torch.float64)
            total.index_add_(0, owners, values)
            count.index_add_(0, owners, torch.ones(len(owners), 1, dtype=torch.float64))
    return total / count


@contextmanager
def added(base: Base, module: str, deltas_SO: Tensor) -> Iterator[Callable[[Pass], Tensor]]:
    """Yields a forward pass that adds each subject's delta to a module's output at its places: logits. [R, V]"""
    now: list[Pass] = []

    def add(layer: torch.nn.Module, inputs: Any, output: Any) -> Any:
        y = _first(output).clone()
        y[0, now[0].places] += deltas_SO[now[0].owners].to(y.dtype)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    def read(of: Pass) -> Tensor:
        now[:] = [of]
        return base.network(**of.inputs, use_cache=False).logits[0]

    with base.network.get_submodule(module).register_forward_hook(add):
        yield read


def seek(base: Base, passes: Sequence[Pass], module: str, aim: Search) -> tuple[Tensor, Tensor]:
    """Optimize each subject's delta to the output of a module, all at once.

    The loss of a subject is mean NLL + kl * KL(edited || base) after its essence + decay * |delta| / |v0|^2. A subject
    whose mean NLL is below 0.05 takes no more steps.

    Returns:
        Deltas in fp64 on the CPU [S, O], and the mean NLL of each subject's answers (nats per token) [S].

    Raises:
        RunFailed: a loss is no longer finite.
    """
    before_SO = means_at_subjects(base, passes, module, of_input=False)
    size_S1 = before_SO.norm(dim=1, keepdim=True).float().to(base.device)
    deltas_SO = torch.zeros(before_SO.shape, device=base.device, requires_grad=True)
    optimizer = torch.optim.Adam([deltas_SO], lr=aim.rate)
    before: dict[int, Tensor] = {}
    nll_S = torch.full((len(before_SO),), torch.inf, device=base.device)
    with added(base, module, deltas_SO) as read, progress_bar(aim.steps, "z") as bar:
        for step in range(aim.steps + 1):
            optimizer.zero_grad()
            last_S = nll_S
            nll_S = torch.zeros_like(nll_S)
            for i, each in enumerate(passes):
                if step and bool((last_S[each.subjects.to(base.device)] < _ENOUGH).all()):
                    nll_S[each.subjects] = last_S[each.subjects]
                    continue
                with torch.set_grad_enabled(step < aim.steps):
                    logits_RV = read(each)
                    rows = block_rows(logits_RV.shape[-1], base.device.type)
                    logprobs = read_logprobs(logits_RV, each.rows, each.tokens, rows)
                    owner, weight = each.share
                    own_S = torch.zeros_like(nll_S).index_add(0, owner, -weight * logprobs)
                    after = logits_RV[each.essences].float().log_softmax(-1)
                    held = before.setdefault(i, after.detach())
                    size = size_S1[each.subjects]
                    spread = (deltas_SO[each.subjects].norm(dim=1, keepdim=True) / size**2).sum()
                    loss = own_S.sum() + aim.kl * (after.exp() * (after - held)).sum() + aim.decay * spread
                if not bool(loss.isfinite()):
                    raise RunFailed(f"The edit diverged in step {step + 1} of its search. Lower its rate or clamp.")
                if step < aim.steps:
                    loss.backward()
                nll_S = nll_S + own_S.detach()
            if step == aim.steps or bool((nll_S < _ENOUGH).all()):
                break
            kept = deltas_SO.detach().clone()
            optimizer.step()
            with torch.no_grad():
                done = nll_S < _ENOUGH
                deltas_SO[done] = kept[done]
                deltas_SO *= (aim.clamp * size_S1 / deltas_SO.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
            bar.update()
    return deltas_SO.detach().cpu().double(), nll_S.cpu()
