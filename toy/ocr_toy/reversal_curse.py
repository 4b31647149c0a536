"""The reversal curse without shared answers (Zhu et al. 2024, arXiv 2405.04669): factorizing does not lift it.

Bilinear model: l(y | x) = x^T Theta y over 2 m entities with fixed embeddings, Theta = 0 at the start. Taught are all
(x_i, y_i) and the (y_i, x_i) with i >= 2; asked is (y_1, x_1). Their Theorem 1 bounds the asked loss from below by a
power of the taught, L_rev(t) / L_rev(0) >= (L(t) / L(0))^eps, where eps -> 0 as the dimension grows. With orthonormal
embeddings row y_1 of Theta gets no gradient and the asked loss is log(2 m) at every step.

One layer: sequences (entity, arrow), attention uniform over both, next entity asked. In the lemma's words an asked pair
has m_train = 0: nothing shares its answer, so there is no block to complete, and both norms leave it at or below 0.

Tiny transformer: one layer with positions, residuals and an MLP, on data of the paper's shape (their figure 1): 200
pairs, 140 taught both ways, 60 in one random direction. Published: the taught loss falls to 0, the asked loss stays no
better than chance.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ocr_toy import theory
from ocr_toy.descent import DescentSpec, descend_on
from ocr_toy.model import BOTH
from ocr_toy.report import Check, Report, Say, listed, table
from ocr_toy.statistics import require_seeds
from ocr_toy.task import stream
from ocr_toy.theory import Matrix, Problem
from ocr_toy.train import one_thread

PAIRS, DIMENSIONS, TARGET, MOST_STEPS = 10, (200, 800), 1e-3, 20_000
EPSILON = {200: 0.08, 800: 0.03}
"""Largest exponent allowed at each dimension: the curse holds the more strictly the larger."""
BOTH_WAYS, ONE_WAY = 3, 2
ENTITIES, TAUGHT_BOTH, WORDS, WIDTH, EPOCHS = 200, 140, 802, 64, 200
"""The transformer's pairs and those taught both ways; its vocabulary, width and training."""
CAUSAL = torch.triu(torch.full((2, 2), -torch.inf), diagonal=1)


def bilinear(gram: Matrix, pairs: int) -> tuple[Matrix, Matrix]:
    """Taught and asked losses of every step of gradient descent on the mean loss, until the taught is below TARGET.

    gram [2 m, 2 m]: products of the embeddings, x first. Theta = sum_ij c_ij v_i v_j^T stays in their span, so c is all
    there is: the logits are G c G and c moves by the error alone. Rate 1 per example.
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
    """The least eps of Theorem 1 that the whole trajectory allows."""
    later = slice(1, None)
    return float((np.log(asked[later] / asked[0]) / np.log(taught[later] / taught[0])).max())


def one_layer(both_ways: int = BOTH_WAYS, one_way: int = ONE_WAY) -> tuple[Problem, Matrix, NDArray[np.int64]]:
    """Entities x_1.., y_1.. and two arrows; the last `one_way` pairs are taught in one direction.

    Returns the problem, the asked inputs [one_way, columns] and their right rows.
    """
    pairs = both_ways + one_way
    one = np.eye(2 * pairs + 2)
    forward, backward = one[2 * pairs], one[2 * pairs + 1]
    taught = [(one[i] + forward, pairs + i) for i in range(pairs)]
    taught += [(one[pairs + i] + backward, i) for i in range(both_ways)]
    asked = np.array([one[pairs + i] + backward for i in range(both_ways, pairs)])
    phi, right = np.array([phi for phi, _ in taught]), np.array([row for _, row in taught])
    return (
        Problem(phi, np.equal.outer(right, np.arange(2 * pairs)), np.ones(len(phi))),
        asked,
        np.arange(both_ways, pairs),
    )


class TinyGPT(torch.nn.Module):
    """One pre-norm layer of width 64 with 4 heads and an MLP; reads (entity, arrow), predicts the next entity."""

    def __init__(self) -> None:
        """Default initialization of torch."""
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(WORDS, WIDTH), torch.nn.Embedding(2, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, WORDS] at the last of the two tokens [B, 2]."""
        hidden = self.layer(self.embed(tokens) + self.place.weight, src_mask=CAUSAL)
        logits: torch.Tensor = self.head(self.norm(hidden[:, -1]))
        return logits


@one_thread()
def tiny_gpt(seed: int, epochs: int = EPOCHS) -> tuple[float, float, float]:
    """Taught loss, asked loss and asked accuracy after AdamW at rate 1e-3, batches of 64, loss on the answer."""
    rng = stream(seed, "data")
    y = rng.permutation(ENTITIES)
    forward = np.stack([np.arange(ENTITIES), np.full(ENTITIES, WORDS - 2), ENTITIES + y], axis=1)
    backward = np.stack([ENTITIES + y, np.full(ENTITIES, WORDS - 1), np.arange(ENTITIES)], axis=1)
    flipped = rng.random((ENTITIES - TAUGHT_BOTH, 1)) < 0.5
    one_way, asked = (
        np.where(flipped == flip, backward[TAUGHT_BOTH:], forward[TAUGHT_BOTH:]) for flip in (True, False)
    )
    taught = np.concatenate([forward[:TAUGHT_BOTH], backward[:TAUGHT_BOTH], one_way])
    torch.manual_seed(seed)
    model = TinyGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
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


def _margin(w: Matrix, asked: Matrix, right: NDArray[np.int64]) -> float:
    f, row = asked @ w.T, np.arange(len(asked))
    own = f[row, right]
    f[row, right] = -np.inf
    return float((own - f.max(axis=1)).max())


def report(seeds: Sequence[int], say: Say) -> Report:
    """Both models; the asked loss, the exponent, and the largest margin of an asked pair."""
    require_seeds(seeds, least=1)
    say("reversal curse, bilinear model")
    checks: list[Check] = []
    rows: list[list[str]] = []
    data: dict[str, dict[str, Any]] = {"exponents": {}, "margins": {}}
    taught, asked = bilinear(np.eye(2 * PAIRS), PAIRS)
    guess = math.log(2 * PAIRS)
    worst = float(asked[np.abs(asked - guess).argmax()])
    checks.append(
        Check("reversal", "bilinear, orthonormal: asked loss, furthest of all steps from log 2 m", guess, worst, 1e-9)
    )
    rows.append(["bilinear, orthonormal", f"asked loss {worst:.6f}, log 2 m = {guess:.6f}, taught {taught[-1]:.1e}"])
    for d in DIMENSIONS:
        found = []
        for seed in seeds:
            v = stream(seed, "init").standard_normal((2 * PAIRS, d)) / math.sqrt(d)
            found.append(exponent(*bilinear(v @ v.T, PAIRS)))
        data["exponents"][str(d)] = found
        rows.append([f"bilinear, d = {d}", f"exponent {listed(found)}"])
        checks.append(Check("reversal", f"bilinear, d = {d}: largest exponent", EPSILON[d], max(found), 0.0, "<="))
    say("reversal curse, one layer")
    of, inputs, right = one_layer()
    for param in BOTH:
        optimum = _margin(theory.least_norm(of, theory.NORM_OF[param]), inputs, right)
        spec = DescentSpec(param=param, d_h=24, hold_margin=20, hold_steps=2000, final_steps=1, armijo=0.5)
        runs = [_margin(descend_on(of, replace(spec, seed=s), "reversal").w_ov, inputs, right) for s in seeds]
        data["margins"][param] = {"optimum": optimum, "descent": runs}
        rows.append([f"one layer, {param}", f"largest asked margin: optimum {optimum:.3f}, descent {listed(runs, 3)}"])
        checks.append(
            Check(
                "reversal", f"one layer, {param}: largest margin of an asked pair", 0.0, max(optimum, *runs), 0.0, "<="
            )
        )
    say("reversal curse, tiny transformer")
    taught_loss, asked_loss, accuracy = tiny_gpt(seeds[0])
    data["transformer"] = {"taught": taught_loss, "asked": asked_loss, "accuracy": accuracy}
    rows.append(["transformer", f"taught {taught_loss:.4f}, asked {asked_loss:.2f} nats, accuracy {accuracy:.3f}"])
    checks += [
        Check("reversal", "transformer: taught loss, published as 0", 0.0, taught_loss, 0.05),
        Check("reversal", "transformer: asked loss, chance is log 200", math.log(ENTITIES), asked_loss, 0.0, ">="),
        Check("reversal", "transformer: asked accuracy, published as chance", 0.0, accuracy, 0.02),
    ]
    return Report(
        name="reversal",
        source="Zhu et al. 2024 (arXiv 2405.04669)",
        checks=checks,
        lines=table(("model", "measured"), rows),
        data=data,
    )
