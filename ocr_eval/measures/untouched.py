"""What an untouched model already has of the facts to be taught: links that are wired in, facts that it knows.

**W-rank** (after Peng et al., arXiv 2502.04520). For 360 fictitious names X, let z_S(X) and z_T(X) be the
log-probabilities of the source's and the target's answers. On 240 of the names, fit by least squares

    z_T(X) ~ W z_S(X) + b

The W-rank of a link is the midrank of the paired answer among the target's answers, in the row of W of the source's
answer, averaged over pairs. Near 0 the link is wired in, and the model generalizes without an example; near the null,
(C - 1) / 2, it can only be learned.

**Known facts** (SliCK, Gekhman et al., arXiv 2405.05904, without sampling). Each fact is asked after 10 different
prompts of 4 other facts. With p_i the probability that a sample after prompt i (temperature 0.5, top 40) is the answer,
terminator included, a fact is highly known if greedy decoding always gives it, maybe known if it sometimes does, weakly
known if 16 samples after each prompt contain it at least once with a probability of at least a half,
1 - prod (1 - p_i)^16 >= 1/2, and unknown otherwise.

Dimension letters:  X names,  R answers of the source,  C of the target.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ocr_eval.common import streams
from ocr_eval.data.facts import FactsAssociation, Taught
from ocr_eval.data.links import Link
from ocr_eval.data.pairs import RELATIONS, PairAssociation, RelationName
from ocr_eval.data.task import Probe
from ocr_eval.data.tokenize import ProbeTokens, continuations, same_first_token, tokens_of
from ocr_eval.methods.view import View
from ocr_eval.packing.logprobs import read_sampled
from ocr_eval.scoring.candidates import Floats, first_tokens, read_probes, score_lanes
from ocr_eval.scoring.ranks import midranks
from ocr_eval.specs.names import people

#: How many names W is fitted to, and tested on.
_FITTED, _TESTED = 240, 120
#: Most facts asked per column, prompts per fact, and example facts per prompt.
_ASKED, _PROMPTS, _SHOTS = 60, 10, 4
#: Samples per prompt.
_SAMPLES = 16

Category = Literal["highly", "maybe", "weakly", "unknown"]
#: How well a fact is known: the first category that applies.
CATEGORIES: tuple[Category, ...] = get_args(Category)

#: Subjects and what is true of them.
Facts = Sequence[tuple[str, str]]
#: Prompt and answer of a statement about a subject.
Statement = Callable[[str, str], tuple[str, str]]
#: The answers of a column, and how to state one.
Side = tuple[Sequence[str], Statement]


def sides_of(association: PairAssociation, template: int = 0) -> dict[str, Side]:
    """The fact and the entailment of an association of pairs."""

    def side(relation: RelationName) -> Side:
        wording = association.fact if relation == "fact" else association.entailment
        return association.answers(relation), lambda who, answer: (wording.prompt(template, who), answer)

    return {relation: side(relation) for relation in RELATIONS}


@dataclass(frozen=True)
class Wired:
    """How far the untouched model links the answers of two columns.

    Attributes:
        w_rank: mean rank of the paired answer; 0 if the link is wired in.
        null: (C - 1) / 2.
        hits: share of pairs whose answer ranks first.
        correlation: of predicted and true log-probabilities on held-out names, averaged over answers.
    """

    source: str
    target: str
    w_rank: float
    null: float
    hits: float
    correlation: float


@dataclass(frozen=True)
class Known:
    """How many facts of a column the untouched model knows, by category, and their share with 95 % bounds (Wilson)."""

    column: str
    asked: int
    highly: int
    maybe: int
    weakly: int
    share: float
    low: float
    high: float


def fit(z_XR: Floats, z_XC: Floats, ridge: float = 0.0) -> tuple[Floats, float]:
    """W, which maps the source's log-probabilities to the target's [R, C], and the correlation of its predictions on
    held-out names. ``ridge`` is the weight of |W|^2 relative to the squared error; b is not penalized.
    """
    with_one = np.column_stack([z_XR, np.ones(len(z_XR))])
    penalty = np.sqrt(ridge) * np.eye(*with_one.shape[1:] * 2)[:-1]
    left = np.concatenate([with_one[:_FITTED], penalty])
    right = np.concatenate([z_XC[:_FITTED], np.zeros((len(penalty), z_XC.shape[1]))])
    weights = np.linalg.lstsq(left, right, rcond=None)[0]
    predicted, true = with_one[_FITTED:] @ weights, z_XC[_FITTED:]
    by_answer = [np.corrcoef(predicted[:, c], true[:, c])[0, 1] for c in range(true.shape[1])]
    return weights[:-1].astype(np.float64), float(np.mean(by_answer))


def wiring(z_XR: Floats, z_XC: Floats, pairs: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """W-rank, share of pairs that rank first, and correlation on held-out names."""
    weights_RC, correlation = fit(z_XR, z_XC)
    ranks_RC = midranks(weights_RC)
    ranks = np.array([ranks_RC[pair] for pair in pairs])
    return float(ranks.mean()), float((ranks == 0).mean()), correlation


def first_logprobs(
    view: View, answers: Sequence[str], statement: Statement, lane: int = 0, taught: Container[str] = ()
) -> Floats:
    """Log-probability (nats) of each answer's first token in a statement about each fictitious name. [X, answers]

    Names in ``taught`` are skipped, because the model was taught them.
    """
    count = _FITTED + _TESTED
    drawn = people("audit/wired", 4 * count if taught else count)
    names = [name for name in drawn if name not in taught][:count]
    everyone, probes = tuple(range(len(answers))), []
    for name in names:
        (prompt, *_), words = zip(*(statement(name, answer) for answer in answers), strict=True)
        probes.append(Probe(prompt, words, 0, everyone, "wired", "", ""))
    asked = list(map(first_tokens, tokens_of(view.base.tokenizer, probes)))
    return score_lanes(view, {lane: asked})[lane].logprobs["sequence"]


def wired(view: View, sides: Mapping[str, Side], pairs: Mapping[tuple[str, str], Mapping[str, str]]) -> list[Wired]:
    """How far an untouched model already links columns.

    ``pairs`` gives, for each source and target, the target's answer paired with each of the source's.
    """
    names = dict.fromkeys(name for link in pairs for name in link)
    z = {name: first_logprobs(view, *sides[name]) for name in names}
    found = []
    for (source, target), paired in pairs.items():
        rows, columns = sides[source][0], sides[target][0]
        at = [(rows.index(a), columns.index(b)) for a, b in paired.items() if a in rows and b in columns]
        w_rank, hits, correlation = wiring(z[source], z[target], at)
        found.append(Wired(source, target, w_rank, (len(columns) - 1) / 2, hits, correlation))
    return found


def slick(view: View, column: str, asked: Facts, others: Facts, statement: Statement) -> list[Category]:
    """The category of each fact in ``asked``, with ``others`` of the same column as examples in the prompt."""
    questions = []
    for number in range(_PROMPTS):
        shots = streams.shuffled(f"audit/shots/{column}/{number}", others)[:_SHOTS]
        before = "".join(" ".join(statement(*shot)) + "\n" for shot in shots)
        questions += [(before + prompt, answer + "\n") for prompt, answer in (statement(*fact) for fact in asked)]
    probe = Probe("", ("", "\n"), 0, (0, 1), "known", "", "")  # a placeholder: the tokens hold the question
    cut = continuations(view.base.tokenizer, questions)
    read = read_probes(view, 0, [ProbeTokens(probe, each.prompt, (each.answer,)) for each in cut], read_sampled)
    tokens = [of[0] for of in read]
    greedy_PF = np.array([of[:, 0].all() for of in tokens]).reshape(_PROMPTS, len(asked))
    sampled_PF = np.exp([of[:, 1].sum() for of in tokens]).reshape(_PROMPTS, len(asked))
    hit_F = 1 - ((1 - sampled_PF.clip(max=1)) ** _SAMPLES).prod(axis=0)
    tests_FC = np.stack([greedy_PF.all(axis=0), greedy_PF.any(axis=0), hit_F >= 0.5, hit_F >= 0], axis=1)
    return [CATEGORIES[first] for first in tests_FC.argmax(axis=1)]


def known(view: View, column: str, facts: Facts, statement: Statement) -> Known | None:
    """How many of a column's facts a model knows; None if they are too few to leave examples for the prompts."""
    drawn = streams.shuffled(f"audit/known/{column}", facts)
    count = min(_ASKED, len(drawn) // 2)
    if len(drawn) - count < _SHOTS:
        return None
    of = slick(view, column, drawn[:count], drawn[count:], statement)
    highly, maybe, weakly = (of.count(each) for each in CATEGORIES[:3])
    share = (highly + maybe + weakly) / count
    return Known(column, count, highly, maybe, weakly, share, *_wilson(share, count))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    z2 = 1.959964**2 / count
    middle, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


@dataclass(frozen=True)
class Untouched:
    """What a model knows of a table before it is taught.

    Attributes:
        wired: how far each link is wired in.
        known: how many facts of each column are known, for columns with enough facts.
        alike: by column, answers that share a first token; they are scored by all their tokens.
    """

    wired: tuple[Wired, ...]
    known: tuple[Known, ...]
    alike: Mapping[str, Sequence[tuple[str, ...]]]


def examine(view: View, association: FactsAssociation, links: Sequence[Link]) -> Untouched:
    """What an untouched model knows of a table's facts and links."""
    taught = Taught(association.facts, {}, {})

    def stating(column: str) -> Statement:
        return lambda who, value: association.statement(column, who, value)

    table, alike, found = association.facts, {}, []
    sides = {column: (taught.choices(column), stating(column)) for column in table.columns}
    for column, cells in table.columns.items():
        stated = [association.statement(column, table.subjects[0], value) for value in sides[column][0]]
        cut = continuations(view.base.tokenizer, stated) if stated else []
        if same := same_first_token([answer for _, answer in stated], [each.answer for each in cut]):
            alike[column] = same
        facts = [(who, value) for who, value in zip(table.subjects, cells, strict=True) if value is not None]
        found += [each] if (each := known(view, column, facts, stating(column))) else []
    pairs = {(link.source, link.target): link.answers for link in links}
    return Untouched(tuple(wired(view, sides, pairs)), tuple(found), alike)
