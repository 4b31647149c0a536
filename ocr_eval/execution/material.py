"""A run's data in the form that its pack uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ocr_eval.data.audit import Audit, audit_task, refuse_known_words
from ocr_eval.data.task import Task
from ocr_eval.data.tokenize import Continuation, ProbeTokens, probe_tokens, training_tokens
from ocr_eval.methods.method import method_of
from ocr_eval.methods.prevention import task_of_run
from ocr_eval.scoring.candidates import for_first_token
from ocr_eval.specs.run import RunSpec


@dataclass(frozen=True)
class Material:
    """What a run is taught and asked, also as tokens, and the audit of its candidates.

    Attributes:
        premises: the probes of the premises, with only what first-token scoring reads of their candidates.
    """

    task: Task
    examples: Sequence[Continuation]
    probes: Sequence[ProbeTokens]
    premises: Sequence[ProbeTokens]
    audit: Audit


def check(spec: RunSpec, tokenizer: Any | None) -> None:
    """Refuse what a run would refuse of its data; ``tokenizer`` is None where it is not on this disk.

    Raises:
        UserError: as of ``prepare``, or the method cannot teach this.
    """
    if tokenizer is not None:
        prepare(tokenizer, spec)
    method_of(spec.train).check(spec, tokenizer)


def prepare(tokenizer: Any, spec: RunSpec) -> Material:
    """Build a run's data.

    Raises:
        UserError: the tokenizer cannot handle the data, or has an invented word as a token.
    """
    refuse_known_words(tokenizer, spec.association)
    task = task_of_run(spec)
    probes, premises = probe_tokens(tokenizer, task), [q.name for q in task.quantities if q.role == "premise"]
    return Material(
        task=task,
        examples=training_tokens(tokenizer, task),
        probes=probes,
        premises=[for_first_token(each) for each in probes if each.probe.quantity in premises],
        audit=audit_task(tokenizer, task),
    )
