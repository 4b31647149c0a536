"""``known``: what a run did to facts that the model already knew.

The shipped association ``known`` holds common-knowledge facts. A fact counts as known if the first token of its
answer is the most probable token in the whole vocabulary after its prompt.

    facts         how many were asked, namely those that the run itself did not teach
    base_known    how many the untouched base knows
    kept          share of those that the trained model still knows: retention
    known         how many the trained model knows
    probability   mean probability of the right answers, over what the base knows; base_probability for the base
    taught        how many taught statements the premises ask for
    fitted_known, fitted_unknown   how many of those the trained model gets right, by whether the base did

After full fine-tuning there is no base, so only ``facts`` and ``known`` are available.

``known-categories``: the same by how well the base knows a fact (SliCK, measures/untouched.py). Each half of a relation
is asked after examples from the other half.

    highly, maybe, weakly, unknown   how many of the facts are in each category
    <category>_base                  how many of those the base knows in the above sense
    <category>_kept                  how many of those the trained model still knows
    by_prompt                        the category of each prompt
"""

from typing import Any, cast

import numpy as np

from ocr_eval.common import streams
from ocr_eval.data.known import KnownAssociation, KnownRelation
from ocr_eval.data.task import Probe
from ocr_eval.data.tokenize import ProbeTokens, tokens_of
from ocr_eval.measures.measure import Measure, Trained
from ocr_eval.measures.untouched import CATEGORIES, Category, slick
from ocr_eval.measures.vocabulary import in_vocabulary
from ocr_eval.methods.method import Needs
from ocr_eval.methods.prevention import task_of_run
from ocr_eval.methods.view import View
from ocr_eval.specs.association import load_association


def known_probes(trained: Trained) -> list[ProbeTokens]:
    """A probe per shipped fact whose prompt is not taught; the other candidate is the next answer of its relation."""
    taught, probes = {example.prompt for example in task_of_run(trained.spec).train}, []
    for name, relation in _relations().items():
        answers = list(dict.fromkeys(relation.facts.values()))
        for subject, answer in relation.facts.items():
            other = answers[(answers.index(answer) + 1) % len(answers)]
            if relation.prompt(subject) not in taught:
                probes.append(Probe(relation.prompt(subject), (answer, other), 0, (0, 1), name, subject, subject))
    return tokens_of(trained.pack.base.tokenizer, probes)


def _relations() -> dict[str, KnownRelation]:
    return cast(KnownAssociation, load_association("known")).relations


class KnownFacts(Measure):
    """Reads the next token after each prompt, for the trained model and its base."""

    about = "Facts that the base already knew, such as capitals, and how many of them are kept (retention)"

    def by_default(self, needs: Needs) -> bool:
        """About 250 short prompts, as cheap as a scoring."""
        return True

    def take(self, trained: Trained) -> dict[str, Any]:
        probes = known_probes(trained)
        rank, logprob, _ = in_vocabulary(trained.view(), trained.lane, probes).T
        found = {"facts": len(probes), "known": int((rank == 0).sum())}
        if not trained.has_base:
            return found
        base_rank, base_logprob, _ = in_vocabulary(trained.view(False), trained.lane, probes).T
        is_known = base_rank == 0
        found["base_known"] = int(is_known.sum())
        if learned := trained.asked("premise"):
            had, has = (in_vocabulary(trained.view(which), trained.lane, learned)[:, 0] == 0 for which in (False, True))
            found |= {"taught": len(learned), "fitted_known": int((had & has).sum())}
            found["fitted_unknown"] = int((~had & has).sum())
        if not is_known.any():
            return found  # nothing to keep
        numbers = {
            "kept": (rank[is_known] == 0).mean(),
            "probability": np.exp(logprob[is_known]).mean(),
            "base_probability": np.exp(base_logprob[is_known]).mean(),
        }
        return found | {key: float(f"{value:.6g}") for key, value in numbers.items()}


def categories(base: View) -> dict[str, Category]:
    """How well a base knows each shipped fact, by prompt."""
    found: dict[str, Category] = {}
    for name, relation in _relations().items():
        facts = [(relation.prompt(who), what) for who, what in relation.facts.items()]
        drawn = streams.shuffled(f"known/{name}", facts)
        for asked, others in ((drawn[::2], drawn[1::2]), (drawn[1::2], drawn[::2])):
            of = slick(base, name, asked, others, lambda prompt, answer: (prompt, answer))
            found |= zip((prompt for prompt, _ in asked), of, strict=True)
    return found


class KnownCategories(Measure):
    """Asks the base for each fact after ten prompts of four other facts."""

    about = "How well the base knew each of these facts (Gekhman et al., arXiv 2405.05904), and which are kept"

    def take(self, trained: Trained) -> dict[str, Any]:
        if not trained.has_base:
            raise ValueError("it needs the base, which full fine-tuning overwrites")
        probes = known_probes(trained)
        had, has = (in_vocabulary(trained.view(which), trained.lane, probes)[:, 0] == 0 for which in (False, True))
        of_base = categories(trained.view(False))
        of_fact = {each.probe.prompt: of_base[each.probe.prompt] for each in probes}
        found: dict[str, Any] = {}
        for name in CATEGORIES:
            own = np.array([category == name for category in of_fact.values()])
            counts = {name: own, f"{name}_base": own & had, f"{name}_kept": own & had & has}
            found |= {key: int(those.sum()) for key, those in counts.items()}
        return found | {"by_prompt": of_fact}
