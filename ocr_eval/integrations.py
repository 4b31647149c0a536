"""For your own training: a callback for transformers' ``Trainer`` and its subclasses, such as TRL's ``SFTTrainer``.

    callback = OCRCallback("facts.csv", every=50)
    trainer = SFTTrainer(model, train_dataset=Dataset.from_list(callback.rows()), callbacks=[callback])
    trainer.train()
    callback.history[-1]["ocr/ocr_score"]

Scores go to the trainer's own log history; with ``callback.log = trainer.log`` they go to its trackers, too. Answers
and subjects are not logged.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.data.fact_table import read_facts
from ocr_eval.data.facts import association_of
from ocr_eval.data.task import task_of
from ocr_eval.data.tokenize import ProbeTokens, probe_tokens
from ocr_eval.methods.view import View
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.scoring.quantities import held_out, summarize_quantities
from ocr_eval.scoring.ranks import premises, premises_hold
from ocr_eval.specs.association import TABLE_ENDINGS, Association, load_association
from ocr_eval.specs.run import DataSpec

#: Attention implementations that accept a separate mask for each sequence.
_ATTENTION = ("sdpa", "eager")


class OCRCallback(TrainerCallback):
    """Scores what a model infers during training: before the first step, every ``every`` steps, and at the end.

    It logs ``ocr/ocr_score``, ``ocr/mean_rank`` and ``ocr/null_rank`` of the finding, ``ocr/<premise>`` (top-1) of each
    premise, and ``ocr/premises_hold`` (0 or 1): until they hold, the score means nothing.

    Args:
        facts: a table of facts, the name or file of an association, or a loaded association.
        every: steps between scorings.
        seed: determines what is hidden of a table, or the people and pairs of an association.
        table: how to read a table and ask about it: ``subject``, ``columns``, ``templates``, ``hold_out``, ``ask``.
        data: fields of the data protocol of an association, such as ``n=5``.

    Attributes:
        task: what ``rows`` teaches, and what is asked.
        history: results, one dict per scoring with its ``step``.
        log: a function that receives each result, such as ``trainer.log``; None: only the log history gets it.

    Raises:
        UserError: the table or association cannot be used.
    """

    def __init__(
        self,
        facts: str | Path | Association,
        every: int = 50,
        seed: int = 0,
        table: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        if every < 1:
            raise UserError(f"OCRCallback: every = {every} is not valid; give 1 or more steps.")
        association = _association(facts, dict(table or {}))
        protocol = yaml_files.parse(DataSpec, data or {}, "OCRCallback: data")
        try:
            association.check(protocol)
        except ValueError as error:
            raise UserError(f"OCRCallback: {error}.") from error
        self.every, self.task = every, task_of(association, protocol, f"{seed}/data")
        self.history: list[dict[str, float]] = []
        self.log: Callable[[dict[str, float]], Any] | None = None
        self._probes: Sequence[ProbeTokens] = ()

    def rows(self) -> list[dict[str, str]]:
        """Training data as prompts and completions; a completion begins with a space."""
        return [{"prompt": each.prompt, "completion": f" {each.answer}"} for each in self.task.train]

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Score the untrained model."""
        self._score(state, of)

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Score every ``every`` steps."""
        if state.global_step % self.every == 0:
            self._score(state, of)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Score at the end, unless the last step was just scored."""
        if self.history[-1]["step"] != state.global_step:
            self._score(state, of)

    def _score(self, state: Any, of: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        model, tokenizer = of["model"], of["processing_class"]
        if tokenizer is None:
            raise UserError("OCRCallback: give the trainer its tokenizer (processing_class=tokenizer).")
        attention, first = str(model.config._attn_implementation), next(model.parameters())
        if attention not in _ATTENTION:
            raise UserError(
                f"OCRCallback: attention '{attention}' does not accept masks. Load the model with "
                "attn_implementation='sdpa'."
            )
        live: Any = SimpleNamespace(
            tokenizer=tokenizer, device=first.device, dtype=first.dtype, attention=attention, autocast=nullcontext
        )
        self._probes = self._probes or probe_tokens(tokenizer, self.task)
        was_training = model.training
        model.eval()
        try:
            scores = score_candidates(View(live, model), self._probes)
        finally:
            model.train(was_training)
        summary = summarize_quantities(self.task.quantities, self.task.probes, scores)
        finding = summary["first-token"][self.task.finding.name]
        found = {
            "ocr/ocr_score": held_out(self.task, scores)["first-token"].ocr_score,
            "ocr/mean_rank": finding.mean_rank,
            "ocr/null_rank": finding.null_rank,
            **{f"ocr/{name}": top1 for name, top1 in premises(self.task.quantities, summary).items()},
            "ocr/premises_hold": float(premises_hold(self.task.quantities, summary)),
        }
        self.history.append({"step": state.global_step, **found})
        if self.log is not None:
            self.log(found)
        else:
            state.log_history.append({**found, "epoch": state.epoch, "step": state.global_step})


def _association(facts: str | Path | Association, table: dict[str, Any]) -> Association:
    if isinstance(facts, Association):
        return facts
    path = Path(facts)
    is_table = path.suffix.lower() in TABLE_ENDINGS or path.is_dir()
    if not is_table:
        if table:
            raise UserError(f"OCRCallback: 'table' says how to read a table, but '{facts}' is an association.")
        by_name = yaml_files.looks_like_path(str(facts)) or not path.exists()
        return load_association(str(facts) if by_name else f"./{facts}")
    found = read_facts(path, table.pop("subject", None), table.pop("columns", None))
    return association_of(found, table.pop("templates", {}), str(path), name="facts", **table)
