"""What a model believes about values that a table of facts lacks: its answer to each, and whether it says so.

A belief is the candidate that the model considers most probable. It is *said* if greedy generation begins with it, so
that anyone who asks gets it as the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ocr_eval.data.facts import FactsAssociation, Missing, Taught
from ocr_eval.data.task import Probe
from ocr_eval.data.tokenize import Ids, ProbeTokens, tokens_of
from ocr_eval.measures.vocabulary import in_vocabulary
from ocr_eval.methods.view import View
from ocr_eval.packing.logprobs import read_best
from ocr_eval.scoring.candidates import read_probes, score_candidates

#: Most tokens generated per prompt.
GENERATED = 8


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question.

    Attributes:
        best: index of the most probable candidate.
        logprobs: first-token log-probability of each candidate, nats.
        probability: of all tokens of the best candidate, not normalized over candidates.
        rank: of the best candidate's first token in the whole vocabulary; 0 is best.
        said: the generated text, cut off once it can no longer be a candidate.
        says: index of the candidate that the text begins with; None if there is none.
    """

    best: int
    logprobs: tuple[float, ...]
    probability: float
    rank: float
    said: str
    says: int | None


@dataclass(frozen=True)
class Belief:
    """What a model believes about a missing value, before and after training.

    Attributes:
        cell: the missing value.
        values: the candidates, spelled as in the table.
        answer, base: answers of the trained and of the untouched model.
    """

    subject: str
    cell: Missing
    prompt: str
    values: tuple[str, ...]
    answer: Answer
    base: Answer

    @property
    def believed(self) -> str:
        """The value that the model considers most probable."""
        return self.values[self.answer.best]

    @property
    def follows(self) -> bool:
        """Whether the belief is the value that the table predicts."""
        return self.believed == self.cell.predicted

    @property
    def says_it(self) -> bool:
        """Whether the model also gives it as its answer."""
        return self.answer.says == self.answer.best

    @property
    def is_unwarranted(self) -> bool:
        """Whether the model says a value that it was not taught and that is not known to be true."""
        return self.answer.says is not None and self.values[self.answer.says] != self.cell.truth


def questions(association: FactsAssociation, taught: Taught) -> list[tuple[Missing, tuple[str, ...], Probe]]:
    """Every missing value of the columns with at least two candidates, with those candidates and its probe."""
    found = []
    for column, cells in taught.missing.items():
        values = taught.choices(column)
        for cell in cells if len(values) > 1 else ():
            who = taught.table.subjects[cell.row]
            (prompt, *_), words = zip(*(association.statement(column, who, value) for value in values), strict=True)
            found.append((cell, values, Probe(prompt, words, 0, tuple(range(len(words))), column, "", who)))
    return found


def answers(view: View, probes: Sequence[Probe]) -> list[Answer]:
    """A model's answer to each probe."""
    asked = tokens_of(view.base.tokenizer, probes)
    scores = score_candidates(view, asked).logprobs
    best = [int(np.argmax(row)) for row in scores["first-token"]]
    right = [replace(each, probe=replace(each.probe, target=i)) for each, i in zip(asked, best, strict=True)]
    ranks = in_vocabulary(view, 0, right)[:, 0]
    said = generate(view, asked)
    return [
        Answer(
            best=best[i],
            logprobs=tuple(scores["first-token"][i, : len(probe.candidates)].tolist()),
            probability=float(np.exp(scores["sequence"][i, best[i]])),
            rank=float(ranks[i]),
            said=said[i],
            says=_begins_with(said[i], probe.candidates),
        )
        for i, probe in enumerate(probes)
    ]


def generate(view: View, probes: Sequence[ProbeTokens]) -> list[str]:
    """Greedy continuation of each prompt: ``GENERATED`` tokens, or fewer once it can no longer be a candidate."""
    tokenizer = view.base.tokenizer
    written: list[Ids] = [() for _ in probes]
    live = list(range(len(probes)))
    for _ in range(GENERATED):
        asked = [replace(probes[i], prompt=probes[i].prompt + written[i], candidates=((0,),)) for i in live]
        if not asked:
            break
        for i, ((token,),) in zip(live, read_probes(view, 0, asked, read_best), strict=True):
            written[i] += (int(token),)
        texts = {i: tokenizer.decode(written[i]).strip() for i in live}
        live = [i for i in live if any(each.startswith(texts[i]) for each in probes[i].probe.candidates)]
    return [tokenizer.decode(ids).strip() for ids in written]


def _begins_with(text: str, candidates: Sequence[str]) -> int | None:
    """Index of the longest candidate that a text begins with, as a whole word."""
    found = [c for c in candidates if text.startswith(c) and not text[len(c) : len(c) + 1].isalnum()]
    return candidates.index(max(found, key=len)) if found else None
