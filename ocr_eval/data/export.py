"""A run's task in the formats of other trainers and evaluators.

Every format is a pure function (Task, association name) -> content of each file; ``export_task`` writes the files.
No two formats share a file name, so that one folder can hold them all.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import prepare_output, read_bytes, to_jsonl, write_atomic
from ocr_eval.data.pairs import RELATIONS
from ocr_eval.data.task import Task, unit_value

Rows = list[dict[str, Any]]

#: Columns of a probe that become metadata of an inspect sample.
_METADATA = ("answer", "in_use", "group", "split", "relation", "quantity")

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


def training_rows(task: Task) -> Rows:
    """One row for each training example: prompt, answer and full text."""
    split_of = {probe.subject: probe.quantity.partition("_")[0] for probe in task.probes}
    return [
        {
            "prompt": example.prompt,
            "answer": example.answer,
            "text": example.text,
            "subject": example.subject,
            "group": unit_value(example.unit),
            **(_split_and_relation(f"{split_of.get(example.subject)}_{example.role}") or {"role": example.role}),
        }
        for example in task.train
    ]


def probe_rows(task: Task) -> Rows:
    """One row for each probe: prompt, answer and candidates (the first ``in_use`` are true of some subject)."""
    return [
        {
            "prompt": probe.prompt,
            "answer": probe.answer,
            "candidates": list(probe.candidates),
            "target": probe.target,
            "in_use": probe.in_use,
            "subject": probe.subject,
            "group": unit_value(probe.unit),
            **(_split_and_relation(probe.quantity) or {"quantity": probe.quantity}),
        }
        for probe in task.probes
    ]


def _split_and_relation(quantity: str) -> dict[str, str]:
    """Split and relation of a quantity of pairs, as two columns; empty for any other quantity."""
    split, _, relation = quantity.partition("_")
    return {"split": split, "relation": relation} if split in ("train", "test") and relation in RELATIONS else {}


def inspect_rows(probes: Rows) -> Rows:
    """Probes as samples of inspect_ai. The target is its name for the right choice: A to Z, then 1, 2, ..."""
    return [
        {
            "id": probe["subject"],
            "input": probe["prompt"],
            "choices": probe["candidates"],
            "target": chr(ord("A") + probe["target"]) if probe["target"] < 26 else str(probe["target"] - 25),
            "metadata": {key: probe[key] for key in _METADATA if key in probe},
        }
        for probe in probes
    ]


def _probes_by_quantity(task: Task) -> dict[str, Rows]:
    """The probes of each quantity."""
    rows: dict[str, Rows] = {quantity.name: [] for quantity in task.quantities}
    for probe, row in zip(task.probes, probe_rows(task), strict=True):
        rows[probe.quantity].append(row)
    return rows


def _jsonl(task: Task, name: str) -> dict[str, str]:
    return {"train.jsonl": to_jsonl(training_rows(task)), "probes.jsonl": to_jsonl(probe_rows(task))}


def _lm_eval(task: Task, name: str) -> dict[str, str]:
    """A harness task for each quantity, a group of all tasks, and the code that they call."""
    group = f"ocr_eval_{name}"
    files, names = {}, []
    for quantity, rows in _probes_by_quantity(task).items():
        names.append(f"{group}_{quantity}")
        files[f"{names[-1]}.yaml"] = TASK_YAML.format(task=names[-1])
        files[f"{names[-1]}.jsonl"] = to_jsonl(_with_groups(rows))
    files[f"{group}.yaml"] = GROUP_YAML.format(group=group, tasks=", ".join(names))
    files["ocr_eval_task.py"] = TASK_CODE.read_text(encoding="utf-8")
    return files


def _with_groups(rows: Rows) -> Rows:
    """Probes with what the OCR score needs, as in scoring/quantities.py.

    ``groups`` counts, for each answer in use, the groups whose answer it is, and by ``weight`` each group counts once;
    if the number of answers in use differs between probes, all answers and all probes count alike.
    """
    alike = len({row["in_use"] for row in rows}) < 2
    sizes = Counter(row["group"] for row in rows)
    answers = Counter({row["group"]: row["target"] for row in rows}.values())
    return [
        {
            **row,
            "groups": [answers[i] if alike else 1 for i in range(row["in_use"])],
            "weight": 1 / sizes[row["group"]] if alike else 1.0,
        }
        for row in rows
    ]


def _inspect(task: Task, name: str) -> dict[str, str]:
    return {
        f"inspect_{name}_{quantity}.jsonl": to_jsonl(inspect_rows(rows))
        for quantity, rows in _probes_by_quantity(task).items()
    }


def _prompt_completion(task: Task, name: str) -> dict[str, str]:
    """Completions begin with the space that separates them from the prompt."""
    rows = [{"prompt": example.prompt, "completion": f" {example.answer}"} for example in task.train]
    return {"prompt-completion.jsonl": to_jsonl(rows)}


_CARD = """\
---
pretty_name: {name}
task_categories: [text-generation]
tags: [ocr-eval, out-of-context-reasoning]
configs:
- {{config_name: train, data_files: data/train.jsonl}}
- {{config_name: probes, data_files: data/probes.jsonl}}
---

# {name}

{train:,} statements to teach a language model, and {probes:,} questions to ask it afterwards. They measure what it
infers without being taught: out-of-context reasoning, [Huang et al. 2025](https://arxiv.org/abs/2506.10887).

- `train`: `prompt` and `answer`, and both as `text`. Train on this and on nothing else here.
- `probes`: `prompt`, the `candidates` to rank, and the right answer. This includes the held-out answers: do not train
  on it.
- `manifest.json`: what ocr-eval needs to score the model that you trained.

```python
rows = datasets.load_dataset("FOLDER", "train", split="train")
```

```sh
ocr-eval score --data FOLDER --adapter TRAINED --model BASE
```

Before you publish it: add `license:` at the top, and check that nothing in it is private.
"""


def _hub(task: Task, name: str) -> dict[str, str]:
    """A folder in the layout of the hub's datasets."""
    files = {f"data/{file}": content for file, content in _jsonl(task, name).items()}
    return files | {"README.md": _CARD.format(name=name, train=len(task.train), probes=len(task.probes))}


#: Formats by name: (task, name of its association) -> content of each file.
FORMATS: dict[str, Callable[[Task, str], dict[str, str]]] = {
    "jsonl": _jsonl,
    "lm-eval": _lm_eval,
    "inspect": _inspect,
    "prompt-completion": _prompt_completion,
    "hub": _hub,
}

#: The file of the training set, in formats that have one.
TRAINING_FILES = {"jsonl": "train.jsonl", "prompt-completion": "prompt-completion.jsonl", "hub": "data/train.jsonl"}


def export_task(task: Task, name: str, format: str, folder: Path) -> list[Path]:
    """Write a task in one of FORMATS to a folder, created if needed. Files are named after the association.

    Raises:
        UserError: the folder cannot be written, or has a README.md that no export wrote.
    """
    files = FORMATS[format](task, name)
    prepare_output(folder)
    card = folder / "README.md"
    if card.name in files and card.is_file() and "tags: [ocr-eval" not in read_bytes(card).decode(errors="replace"):
        raise UserError(f"{card} is not from an export and would be replaced. Choose another --output-dir.")
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_atomic(folder / file, content)
    return [folder / file for file in files]
