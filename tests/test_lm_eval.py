"""Scoring and export against lm-evaluation-harness: the same requests, its own code."""

import shutil

import pytest
from conftest import ARCHITECTURES, bare, load, tiny_run
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from test_facts import staff, write_csv
from test_own_facts import associate

from ocr_eval.data.export import export_task
from ocr_eval.data.pairs import quantities
from ocr_eval.data.task import build_task, task_of
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.scoring.candidates import score_candidates
from ocr_eval.scoring.quantities import held_out
from ocr_eval.scoring.ranks import rank_probes, summarize
from ocr_eval.specs.run import DataSpec


def harness(base):
    """The harness's own wrapper around a loaded base; BOS is left to the tokenizer, as in data/tokenize.py."""
    return HFLM(pretrained=base.network, tokenizer=base.tokenizer, batch_size=16, device="cpu")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sequence_scores_are_the_loglikelihoods_of_the_harness(architecture, model_files):
    base = load(model_files[architecture])
    probes = probe_tokens(base.tokenizer, build_task(tiny_run(model_files[architecture], "country-code")))
    ours = score_candidates(bare(base), probes).logprobs["sequence"]
    requests = [
        Instance("loglikelihood", {}, (each.probe.prompt, f" {answer}"), 0)
        for each in probes
        for answer in each.probe.candidates
    ]
    theirs = [logprob for logprob, _ in harness(base).loglikelihood(requests, disable_tqdm=True)]
    assert any(len(ids) > 1 for probe in probes for ids in probe.candidates), "no multi-token candidate is tried"
    assert ours.std() > 0.1
    assert ours.ravel().tolist() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_harness_cuts_and_begins_sentences_as_we_do(architecture, model_files):
    base = load(model_files[architecture])
    lm = harness(base)
    for tokens in probe_tokens(base.tokenizer, build_task(tiny_run(model_files[architecture]))):
        for answer, ids in zip(tokens.probe.candidates, tokens.candidates, strict=True):
            cut = lm._encode_pair(tokens.probe.prompt, f" {answer}")
            assert tuple(map(tuple, cut)) == (tokens.prompt, ids)


@pytest.fixture
def exported(tiny, tmp_path, monkeypatch):
    """What is asked, the folder of its task, moved after it was written, and the harness's tasks therein."""
    ours = build_task(tiny_run(tiny, "country-code"))
    export_task(ours, "country-code", "lm-eval", tmp_path / "written")
    shutil.move(tmp_path / "written", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return ours, TaskManager(include_path=str(tmp_path / "moved"), include_defaults=False)


def test_the_harness_loads_the_exported_tasks(exported):
    ours, manager = exported
    assert manager.all_groups == ["ocr_eval_country-code"]
    tasks = manager.load("ocr_eval_country-code")["tasks"]
    assert len(tasks) == 4
    for quantity in quantities(DataSpec()):
        task = tasks[f"ocr_eval_country-code_{quantity.name}"]
        probes = ours.probes_of(quantity.name)
        docs = list(task.test_docs())
        assert len(docs) == len(probes)
        for doc, probe in zip(docs, probes, strict=True):
            choices = task.doc_to_choice(doc)
            assert task.doc_to_text(doc) == probe.prompt
            assert tuple(choices) == probe.candidates
            assert choices[task.doc_to_target(doc)] == probe.answer
            requests = task.construct_requests(doc, task.doc_to_text(doc))
            assert [request.args for request in requests] == [(probe.prompt, f" {choice}") for choice in choices]


def test_the_harness_reports_our_figures(exported, tiny):
    ours, manager = exported
    base = load(tiny)
    report = simple_evaluate(
        harness(base), tasks=["ocr_eval_country-code"], task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    assert report is not None
    probes = probe_tokens(base.tokenizer, ours)
    logprobs = score_candidates(bare(base), probes).logprobs["sequence"]
    for quantity in quantities(DataSpec()):
        rows = [i for i, probe in enumerate(ours.probes) if probe.quantity == quantity.name]
        summary = summarize(rank_probes(logprobs[rows], [ours.probes[i].target for i in rows], ours.probes[0].in_use))
        theirs = report["results"][f"ocr_eval_country-code_{quantity.name}"]
        assert theirs["mean_rank,none"] == pytest.approx(summary.mean_rank)
        assert theirs["null_rank,none"] == pytest.approx(summary.null_rank)
        assert theirs["ocr_score,none"] == pytest.approx(summary.ocr_score)
        assert theirs["acc,none"] == pytest.approx(summary.top1)


def test_the_harness_scores_uneven_groups_of_a_table_as_we_do(tiny, tmp_path):
    """Two of five teams share a badge, and one team asks about more people."""
    rows = [[name, team, badge.replace("rust", "mint"), shoe] for name, team, badge, shoe in staff(40, 15)]
    ours = task_of(associate(write_csv(tmp_path / "t.csv", rows[:33])), DataSpec(), "0/data")
    export_task(ours, "staff", "lm-eval", tmp_path)
    manager, base = TaskManager(include_path=str(tmp_path), include_defaults=False), load(tiny)
    name = f"ocr_eval_staff_{ours.finding.name}"
    report = simple_evaluate(harness(base), tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=False)
    assert report is not None
    held = held_out(ours, score_candidates(bare(base), probe_tokens(base.tokenizer, ours)))["sequence"]
    assert held.in_use_null != pytest.approx((held.ranks.shape[1] - 1) / 2)
    assert report["results"][name]["ocr_score,none"] == pytest.approx(held.ocr_score)
