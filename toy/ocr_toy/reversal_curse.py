"""The reversal curse without shared answers (Zhu et al. 2024, arXiv 2405.04669): factorizing does not lift it.

Bilinear model: l(y | x) = x^T Theta y over 2 m entities with fixed embeddings, and Theta = 0 at the start. All (x_i,
y_i) and the (y_i, x_i) with i >= 2 are taught; (y_1, x_1) is asked. Their Theorem 1 bounds the asked loss from below by
a power of the taught one, L_rev(t) / L_rev(0) >= (L(t) / L(0))^eps, where eps -> 0 as the dimension grows. With
orthonormal embeddings, row y_1 of Theta gets no gradient, and the asked loss is log(2 m) at every step.

One layer: sequences (entity, arrow), attention uniform over both, next entity asked. Theorem 3 (reversal): from a zero
start the probability of what is taught goes to 1, that of an untaught reverse never exceeds 1 / |V|. Theorem 4 (chain):
with x -> y and y -> z taught for all triples and x ~> z for some, neither does x ~> z of the others. In terms of the
lemma, an asked pair has m_train = 0: nothing shares its answer, so there is no block to complete, and both norms leave
it at or below 0.

Tiny transformer: one layer with positions, residuals and an MLP, on data of the paper's shape (their figures 1 and 4):
200 pairs, 140 taught both ways, 60 in one random direction; 200 triples, x ~> z taught for 140. Published: the taught
loss falls to 0, the asked loss stays no better than chance.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ocr_toy import convex
from ocr_toy.convex import Problem
from ocr_toy.descent import DescentSpec, descend_on
from ocr_toy.model import BOTH
from ocr_toy.report import Check, Report, Say, listed, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import Ints, Matrix, stream
from ocr_toy.train import one_thread

check = partial(Check, "reversal")
PAIRS, DIMENSIONS, TARGET, MOST_STEPS = 10, (200, 800), 1e-3, 20_000
EPSILON = {200: 0.08, 800: 0.03}
"""Largest exponent allowed at each dimension: the curse is stricter in higher dimensions."""
SOLVED, STEPPED, STEPS = (3, 2), (10, 5), 4000
"""Taught and asked pairs of the convex problems, and of the trajectory; its steps."""
ENTITIES, TAUGHT, WORDS, WIDTH, EPOCHS = 200, 140, 802, 64, 60
"""The transformer's pairs or triples, how many are taught completely; its vocabulary, width and epochs."""
CAUSAL = torch.triu(torch.full((2, 2), -torch.inf), diagonal=1)


def bilinear(gram: Matrix, pairs: int) -> tuple[Matrix, Matrix]:
    """Taught and asked losses at every step of gradient descent, until the taught loss is below TARGET.

    gram [2 m, 2 m]: inner products of the embeddings, x first. Theta = sum_ij c_ij v_i v_j^T stays in their span, so
    only c is needed: the logits are G c G, and c moves by the error. The rate is 1 per example.
    """
    x, y = np.arange(pairs), np.arange(pairs, 2 * pairs)
    given, answer = np.concatenate([x, y[1:]]), np.concatenate([y, x[1:]])
    row, c = np.arange(len(given)), np.zeros_like(gram)
    taught, asked = [], []
    for _ in range(MOST_STEPS):
        f = gram @ c @ gram
        log_p = f - f.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        taught.append(float(-log_p[given, answer].mean()))
        asked.append(float(-log_p[pairs, 0]))
        if taught[-1] < TARGET:
            break
        error = np.exp(log_p[given])
        error[row, answer] -= 1
        step = np.zeros_like(c)
        step[given] = error
        c -= step
    return np.array(taught), np.array(asked)


def exponent(taught: Matrix, asked: Matrix) -> float:
    """The smallest eps with which the whole trajectory satisfies Theorem 1."""
    later = slice(1, None)
    return float((np.log(asked[later] / asked[0]) / np.log(taught[later] / taught[0])).max())


def questions(chain: bool, whole: int, part: int, rng: np.random.Generator | None = None) -> tuple[Ints, Ints]:
    """What is taught and what is asked: rows (entity, arrow 0 or 1, answer).

    Entities are all x, then all y, then, for a chain, all z. Reversal: the first `whole` pairs are taught both ways,
    the others one way, drawn by `rng`; without it, x -> y. Chain: x ~> z is asked for the last `part` triples.
    """
    x, y, z = (np.arange(whole + part) + i * (whole + part) for i in range(3))

    def rows(given: Ints, arrow: int, answer: Ints) -> Ints:
        return np.stack([given, np.full_like(given, arrow), answer], axis=1)

    if chain:
        known, other = np.concatenate([rows(x, 0, y), rows(y, 0, z)]), rows(x, 1, z)
    else:
        known, other = rows(x, 0, y), rows(y, 1, x)
        if rng is not None:
            turned = rng.random((whole + part, 1)) < 0.5
            known, other = np.where(turned, other, known), np.where(turned, known, other)
    return np.concatenate([known, other[:whole]]), other[whole:]


def one_layer(chain: bool, whole: int, part: int) -> tuple[Problem, Matrix, Ints]:
    """One-hot entities and two arrows: the problem, the asked inputs [part, columns] and the rows of their answers."""
    taught, asked = questions(chain, whole, part)
    entities = (3 if chain else 2) * (whole + part)
    one = np.eye(entities + 2)
    phi, inputs = (one[rows[:, 0]] + one[entities + rows[:, 1]] for rows in (taught, asked))
    return Problem(phi, np.equal.outer(taught[:, 2], np.arange(entities)), np.ones(len(phi))), inputs, asked[:, 2]


def likeliest(of: Problem, asked: Matrix, right: Ints, words: int, steps: int = STEPS) -> tuple[float, float]:
    """Gradient descent on one matrix from zero, rate 1 per example, softmax over `words` tokens.

    Returns the largest probability of an asked answer at any step after the first, and the smallest of a taught one at
    the end.
    """
    w, row, asked_row, largest = np.zeros((words, of.phi.shape[1])), np.arange(len(of.phi)), np.arange(len(asked)), 0.0
    for step in range(steps + 1):
        p, q = (np.exp(f - f.max(axis=1, keepdims=True)) for f in (of.phi @ w.T, asked @ w.T))
        p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
        taught = float(p[row, of.right].min())
        if step:
            largest = max(largest, float(q[asked_row, right].max()))
        p[row, of.right] -= 1
        w -= p.T @ of.phi
    return largest, taught


class TinyGPT(torch.nn.Module):
    """One pre-norm layer of width 64 with 4 heads and an MLP; reads (entity, arrow), predicts the next entity."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Embedding(2, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, WORDS] at the last of the two tokens [B, 2]."""
        hidden = self.layer(self.embed(tokens) + self.place.weight, src_mask=CAUSAL)
        return self.head(self.norm(hidden[:, -1]))


@one_thread()
def tiny_gpt(chain: bool, seed: int) -> tuple[float, float, float]:
    """Taught loss, asked loss and asked accuracy after AdamW at rate 3e-3, batches of 64, loss on the answer."""
    rng = stream(seed, "data")
    taught, asked = questions(chain, TAUGHT, ENTITIES - TAUGHT, rng)
    arrows = np.array([0, WORDS - 2, 0])
    taught, asked = taught + arrows, asked + arrows
    torch.manual_seed(seed)
    model = TinyGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in np.array_split(rng.permutation(taught), math.ceil(len(taught) / 64)):
            rows = torch.from_numpy(batch)
            loss = torch.nn.functional.cross_entropy(model(rows[:, :2]), rows[:, 2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = []
        for rows in (torch.from_numpy(taught), torch.from_numpy(asked)):
            logits = model(rows[:, :2])
            found.append(float(torch.nn.functional.cross_entropy(logits, rows[:, 2])))
        accuracy = float((logits.argmax(dim=1) == rows[:, 2]).float().mean())
    return found[0], found[1], accuracy


def largest_margin(w: Matrix, asked: Matrix, right: Ints) -> float:
    """The largest margin of an asked question over all other answers."""
    f, row = asked @ w.T, np.arange(len(asked))
    own = f[row, right]
    f[row, right] = -np.inf
    return float((own - f.max(axis=1)).max())


def _bilinear(seeds: Sequence[int], data: dict[str, Any]) -> Iterator[tuple[list[str], list[Check]]]:
    taught, asked = bilinear(np.eye(2 * PAIRS), PAIRS)
    guess = math.log(2 * PAIRS)
    worst = float(asked[np.abs(asked - guess).argmax()])
    checks = [check("bilinear, orthonormal: asked loss, furthest of all steps from log 2 m", guess, worst, 1e-9)]
    line = f"asked loss {worst:.6f} at every step, taught {taught[-1]:.1e}"
    yield ["bilinear, orthonormal", f"stays at its start, log 2 m = {guess:.6f}", line], checks
    for d in DIMENSIONS:
        found = []
        for seed in seeds:
            v = stream(seed, "init").standard_normal((2 * PAIRS, d)) / math.sqrt(d)
            found.append(exponent(*bilinear(v @ v.T, PAIRS)))
        data["exponents"][str(d)] = found
        checks = [check(f"bilinear, d = {d}: largest exponent", EPSILON[d], max(found), 0, "<=")]
        yield [f"bilinear, d = {d}", "exponent to 0 (Theorem 1)", f"exponent {listed(found)}"], checks


def _one_layer(name: str, seeds: Sequence[int], data: dict[str, Any]) -> Iterator[tuple[list[str], list[Check]]]:
    words = (3 if name == "chain" else 2) * sum(STEPPED) + 2
    largest, taught = likeliest(*one_layer(name == "chain", *STEPPED), words)
    data["probabilities"][name] = {"asked": largest, "taught": taught, "bound": 1 / words}
    checks = [
        check(f"{name}, one layer: largest probability of an asked answer, 1 / |V|", 1 / words, largest, 0, "<="),
        check(f"{name}, one layer: least probability of a taught answer at the end", 1.0, taught, 1e-3),
    ]
    line = f"largest probability of an asked answer {largest:.4f}; taught {taught:.4f}"
    yield [f"{name}, one layer", f"asked at most 1 / |V| = {1 / words:.4f}, taught 1", line], checks
    of, inputs, right = one_layer(name == "chain", *SOLVED)
    for param in BOTH:
        optimum = largest_margin(convex.least_norm(of, convex.NORM_OF[param]), inputs, right)
        spec = DescentSpec(param=param, d_h=24, hold_margin=20, hold_steps=2000, final_steps=1, armijo=0.5)
        runs = [largest_margin(descend_on(of, replace(spec, seed=s), name).w_ov, inputs, right) for s in seeds]
        data["margins"][f"{name}, {param}"] = {"optimum": optimum, "descent": runs}
        worst = max(optimum, *runs)
        checks = [check(f"{name}, one layer, {param}: largest margin of an asked answer", 0.0, worst, 0, "<=")]
        line = f"largest asked margin: optimum {optimum:.3f}, descent {listed(runs, 3)}"
        yield [f"{name}, one layer, {param}", "asked not learned", line], checks


def _transformer(name: str, seed: int, data: dict[str, Any]) -> tuple[list[str], list[Check]]:
    taught, asked, accuracy = tiny_gpt(name == "chain", seed)
    data["transformer"][name] = {"taught": taught, "asked": asked, "accuracy": accuracy}
    checks = [
        check(f"{name}, transformer: taught loss, published as 0", 0.0, taught, 0.05),
        check(f"{name}, transformer: asked loss, at least log 200, chance", math.log(ENTITIES), asked, 0, ">="),
        check(f"{name}, transformer: asked accuracy, published as chance", 0.0, accuracy, 0.02),
    ]
    line = f"taught {taught:.4f}, asked {asked:.2f} nats, accuracy {accuracy:.3f}"
    return [f"{name}, transformer", "taught loss 0, asked no better than chance", line], checks


def report(seeds: Sequence[int], say: Say) -> Report:
    """Reversal and chain in three models: the asked loss, probability and margin against published results."""
    require_seeds(seeds, least=1)
    data: dict[str, dict[str, Any]] = {"exponents": {}, "probabilities": {}, "margins": {}, "transformer": {}}
    say("reversal curse, bilinear model")
    found = list(_bilinear(seeds, data))
    for name in ("reversal", "chain"):
        say(f"{name}, one layer and tiny transformer")
        found += [*_one_layer(name, seeds, data), _transformer(name, seeds[0], data)]
    return Report(
        name="reversal",
        source="Zhu et al. 2024 (arXiv 2405.04669)",
        checks=[check for _, checks in found for check in checks],
        lines=table(("model", "published", "measured"), [row for row, _ in found]),
        data=data,
    )
