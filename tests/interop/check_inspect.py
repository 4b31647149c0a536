"""inspect_ai loads and runs an exported data set; 'make test-interop' runs this in an environment of its own.

inspect_ai cannot share the development environment: it wants an older fsspec, and its storage libraries an older
python-dateutil. So the export is made by the ``ocr-eval`` on the PATH, and nothing of ocr-eval is imported here.
"""

import subprocess

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import json_dataset
from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    command = ["ocr-eval", "data", "export", "--assoc", "country-code", "--format", "inspect", "--m-test", "3"]
    subprocess.run([*command, "--output-dir", folder], check=True)
    return folder


@pytest.mark.parametrize(
    ("quantity", "samples"), [("train_fact", 20), ("train_entailment", 20), ("test_fact", 15), ("test_entailment", 15)]
)
def test_inspect_reads_every_sample(folder, quantity, samples):
    dataset = json_dataset(str(folder / f"inspect_country-code_{quantity}.jsonl"))
    assert len(dataset) == samples
    for sample in dataset:
        assert len(sample.choices) == 10
        assert sample.choices["ABCDEFGHIJ".index(sample.target)] == sample.metadata["answer"]
        assert sample.input not in ("", sample.metadata["answer"])
        assert f"{sample.metadata['split']}_{sample.metadata['relation']}" == quantity


def test_shuffled_choices_keep_the_right_one(folder):
    dataset = json_dataset(str(folder / "inspect_country-code_test_entailment.jsonl"), shuffle_choices=1)
    assert len({sample.target for sample in dataset} - set("ABCDE")) > 0
    for sample in dataset:
        assert sample.choices["ABCDEFGHIJ".index(sample.target)] == sample.metadata["answer"]


@modelapi(name="first")
class AlwaysTheFirst(ModelAPI):
    """A model without weights or network that answers with the first choice."""

    async def generate(self, *_, **__):
        return ModelOutput.from_content(self.model_name, "ANSWER: A")


def test_inspect_scores_answers_by_their_letter(folder, tmp_path):
    dataset = json_dataset(str(folder / "inspect_country-code_test_entailment.jsonl"))
    task = Task(dataset=dataset, solver=multiple_choice(), scorer=choice())
    (log,) = eval(task, model=get_model("first/choice"), log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(3 / 15)
