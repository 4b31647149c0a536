"""A run's data set in the layouts of other trainers and evaluators.

Every format is a pure function (Dataset, association name) -> content of each file; ``export_dataset`` writes it.
No two formats share a file name, so that one folder can hold them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ocr_eval.common.files import prepare_output, to_jsonl, write_atomic
from ocr_eval.data.dataset import QUANTITIES, Dataset

Rows = list[dict[str, Any]]

TASK_CODE = Path(__file__).with_name("lm_eval_task.py")
TASK_YAML = """\
task: {task}
custom_dataset: !function ocr_eval_task.load
dataset_kwargs: {{file: {task}.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt        # names of columns
doc_to_choice: candidates
doc_to_target: target
target_delimiter: " "
num_fewshot: 0
process_results: !function ocr_eval_task.process_results
metric_list:
  - {{metric: mean_rank, aggregation: mean, higher_is_better: false}}
  - {{metric: null_rank, aggregation: mean, higher_is_better: false}}
  - {{metric: ocr_score, aggregation: !function ocr_eval_task.ocr_score, higher_is_better: true}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GROUP_YAML = """\
group: {group}
task: [{tasks}]
metadata: {{version: 1.0}}
"""


def training_rows(dataset: Dataset) -> Rows:
    """A row a training statement: prompt, answer and whole text."""
    return [
        {
            "prompt": statement.prompt,
            "answer": statement.answer,
            "text": statement.text,
            "subject": statement.subject.name,
            "group": statement.subject.group,
            "split": statement.subject.split,
            "relation": statement.relation,
        }
        for statement in dataset.train
    ]


def completion_rows(dataset: Dataset) -> Rows:
    """A row a training statement: a prompt, and a completion that begins with the space between them."""
    return [{"prompt": statement.prompt, "completion": f" {statement.answer}"} for statement in dataset.train]


def probe_rows(dataset: Dataset) -> Rows:
    """A row a probe: prompt, answer and candidates (the first ``in_use`` of them are true of some subject)."""
    return [
        {
            "prompt": probe.prompt,
            "answer": probe.answer,
            "candidates": list(dataset.candidates[probe.relation].answers),
            "target": dataset.candidates[probe.relation].answers.index(probe.answer),
            "in_use": dataset.candidates[probe.relation].in_use,
            "subject": probe.subject.name,
            "group": probe.subject.group,
            "split": probe.subject.split,
            "relation": probe.relation,
        }
        for probe in dataset.probes
    ]


def inspect_rows(probes: Rows) -> Rows:
    """Probes as samples of inspect_ai; the target is the letter that it gives the right choice."""
    return [
        {
            "id": probe["subject"],
            "input": probe["prompt"],
            "choices": probe["candidates"],
            "target": _letter(probe["target"]),
            "metadata": {key: probe[key] for key in ("answer", "in_use", "group", "split", "relation")},
        }
        for probe in probes
    ]


def _letter(index: int) -> str:
    """How inspect_ai calls a choice: A to Z, then 1, 2, ..."""
    return chr(ord("A") + index) if index < 26 else str(index - 25)


def _probes_by_quantity(dataset: Dataset) -> Iterator[tuple[str, str, Rows]]:
    """Split, relation and probes of each of the four quantities that has any."""
    rows = probe_rows(dataset)
    for split, relation in QUANTITIES:
        chosen = [row for row in rows if (row["split"], row["relation"]) == (split, relation)]
        if chosen:
            yield split, relation, chosen


def _jsonl(dataset: Dataset, name: str) -> dict[str, str]:
    return {"train.jsonl": to_jsonl(training_rows(dataset)), "probes.jsonl": to_jsonl(probe_rows(dataset))}


def _lm_eval(dataset: Dataset, name: str) -> dict[str, str]:
    """A task for each quantity, a group of them all, and the code that they call."""
    group = f"ocr_eval_{name}"
    files = {}
    tasks = []
    for split, relation, rows in _probes_by_quantity(dataset):
        task = f"{group}_{split}_{relation}"
        tasks.append(task)
        files[f"{task}.yaml"] = TASK_YAML.format(task=task)
        files[f"{task}.jsonl"] = to_jsonl(rows)
    files[f"{group}.yaml"] = GROUP_YAML.format(group=group, tasks=", ".join(tasks))
    files["ocr_eval_task.py"] = TASK_CODE.read_text(encoding="utf-8")
    return files


def _inspect(dataset: Dataset, name: str) -> dict[str, str]:
    return {
        f"inspect_{name}_{split}_{relation}.jsonl": to_jsonl(inspect_rows(rows))
        for split, relation, rows in _probes_by_quantity(dataset)
    }


def _prompt_completion(dataset: Dataset, name: str) -> dict[str, str]:
    return {"prompt-completion.jsonl": to_jsonl(completion_rows(dataset))}


#: What each format makes of a data set and its association's name: the content of each file.
FORMATS: dict[str, Callable[[Dataset, str], dict[str, str]]] = {
    "jsonl": _jsonl,
    "lm-eval": _lm_eval,
    "inspect": _inspect,
    "prompt-completion": _prompt_completion,
}


def export_dataset(dataset: Dataset, name: str, format: str, folder: Path) -> list[Path]:
    """Write a data set in one of FORMATS.

    Args:
        dataset: what is written.
        name: the association's name; tasks and files are called after it.
        format: a key of FORMATS.
        folder: where the files go; it is made if need be.

    Raises:
        UserError: the folder cannot be written.
    """
    files = FORMATS[format](dataset, name)
    prepare_output(folder)
    for file, content in files.items():
        write_atomic(folder / file, content)
    return [folder / file for file in files]
