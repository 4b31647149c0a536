"""If memory runs out, a batch continues in parts with the same result; what cannot continue says why."""

import json
import platform
import re

import psutil
import pytest
import torch
from conftest import as_a_pack, load, packed, tiny_run

from ocr_eval.common.errors import RunFailed, TooLarge
from ocr_eval.common.out_of_memory import free_cache, peak_bytes
from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens
from ocr_eval.execution.run_pack import Execution
from ocr_eval.methods import view
from ocr_eval.methods.adapters import Stacks
from ocr_eval.methods.pack import GradientPack
from ocr_eval.methods.train import train_epoch
from ocr_eval.models.base import load_base
from ocr_eval.models.weights import locate
from ocr_eval.scoring.candidates import score_candidates


@pytest.fixture
def room(monkeypatch):
    """Passes of more than so many nodes fail as an allocator does."""
    limit = {"nodes": 10**9, "tries": 0}
    whole = view.lay_out

    def lay_out(rows, by_clump):
        batch = whole(rows, by_clump)
        if batch.ids.numel() > limit["nodes"]:
            limit["tries"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return batch

    monkeypatch.setattr(view, "lay_out", lay_out)
    return limit


def trained(path, method):
    """Losses and matrices after two epochs."""
    spec = tiny_run(path, method=method, lr=1e-3, batch_size=16)
    base = load(path) if method == "lora" else load_base(spec.model, locate(spec.model), "cpu", whole=True)
    pack = packed(base, spec)
    losses = [train_epoch(pack, [0])[0] for _ in range(2)]
    return losses, {name: tensor.clone() for name, tensor in pack.adapters.matrices(0).items()}, pack.cut.parts


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_batch_in_parts_learns_the_same_to_rounding(tiny, room, method):
    losses, matrices, parts = trained(tiny, method)
    assert parts == 1
    room["nodes"] = 40
    again, in_parts, parts = trained(tiny, method)
    assert parts > 1
    assert room["tries"] == parts.bit_length() - 1  # found once, and kept
    assert again == pytest.approx(losses, rel=1e-5)
    for name, tensor in matrices.items():
        assert torch.allclose(tensor, in_parts[name], atol=5e-5), name


def test_one_example_that_is_too_large_is_a_clear_error(ocr_eval, tiny, room, tmp_path, monkeypatch):
    room["nodes"] = 2
    with pytest.raises(TooLarge):
        trained(tiny, "lora")
    room["nodes"] = 10**6
    monkeypatch.setattr(GradientPack, "step", lambda pack, lanes: room.update(nodes=2) or train_epoch(pack, lanes))
    answer = ocr_eval("finetune", "city-language", "--model", tiny, "--n", 3, "--m-test", 2, "-o", tmp_path)
    assert answer.code == 1
    last = answer.err.splitlines()[-1]
    assert re.search(
        r"one example per step is too large .* it needs [0-9.]+ GB in all, and .* Use --method qlora", last
    )


def test_parts_are_said_and_recorded(ocr_eval, tiny, tmp_path, room):
    run = ["finetune", "--model", tiny, "--assoc", "city-language", "--epochs", 1, "-o", tmp_path]
    run += ["--batch-size", 64]
    whole = json.loads(ocr_eval(*run, "--json").out)
    room["nodes"] = 100
    answer = ocr_eval(*run, "--json", "--force")
    assert "batches are now split into 2 parts" in answer.err
    assert "Out of memory: scoring continues in passes" in answer.err
    in_parts = json.loads(answer.out)
    assert in_parts["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    (metrics,) = tmp_path.glob("runs/*/*/*/*/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["micro_batches"] >= 2


def test_scoring_in_smaller_passes_gives_the_same(tiny, room):
    base, spec = load(tiny), tiny_run(tiny)
    probes = probe_tokens(base.tokenizer, build_task(spec))
    whole = score_candidates(view.View(base, base.network), probes).logprobs["sequence"]
    room["nodes"] = 100
    assert score_candidates(view.View(base, base.network), probes).logprobs["sequence"] == pytest.approx(
        whole, abs=1e-4
    )
    room["nodes"] = 3
    with pytest.raises(RunFailed, match="too little memory to score"):
        score_candidates(view.View(base, base.network), probes)


def test_a_pack_remembers_how_much_it_can_score_at_once(tiny, room):
    base, spec = load(tiny), tiny_run(tiny)
    pack = packed(base, spec)
    probes = probe_tokens(base.tokenizer, build_task(spec))
    room["nodes"] = 100
    score_candidates(pack.view(), probes)
    tries = room["tries"]
    assert tries > 0
    score_candidates(pack.view(), probes)
    assert room["tries"] == tries


def test_another_error_is_not_taken_for_want_of_memory(tiny, monkeypatch):
    def broken(rows, by_clump):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(view, "lay_out", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tiny, "lora")


@pytest.mark.parametrize(
    "reason", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory"]
)
@pytest.mark.parametrize("where", [(Stacks, "zeros"), (torch.optim.AdamW, "step")])
def test_memory_that_is_out_beside_a_pass_is_one_line(ocr_eval, tiny, tmp_path, monkeypatch, where, reason):
    working = getattr(*where)

    def full(*arguments, **keywords):
        if torch.device("meta") in arguments:  # only counts parameters
            return working(*arguments, **keywords)
        raise RuntimeError(f"{reason} and so on")

    monkeypatch.setattr(*where, full)
    answer = ocr_eval("finetune", "--model", tiny, "--assoc", "city-language", "--epochs", 1, "-o", tmp_path)
    assert answer.code == 1
    line = answer.err.strip().splitlines()[-1]
    assert f"The memory of cpu is too small for 1 run of tiny-llama at once ({reason} and so on)" in line
    assert "--method qlora, a smaller --rank or --batch-size; --dry-run shows what fits" in line


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory between living pieces back")
def test_freed_memory_goes_back_to_the_system():
    held = [torch.zeros(15_000) for _ in range(5000)]
    before = psutil.Process().memory_info().rss
    held = held[::50]
    free_cache(torch.device("cpu"))
    assert psutil.Process().memory_info().rss < before - 200_000_000
    assert len(held) == 100


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere the peak of a process cannot be forgotten")
def test_a_record_has_the_peak_of_its_own_pack_and_not_of_what_was_before(tiny, tmp_path):
    torch.ones(150_000_000)  # 0.6 GB, which are free again
    before = peak_bytes(torch.device("cpu"))
    specs = [tiny_run(tiny, seed=seed, epochs=1) for seed in range(2)]
    for folder in as_a_pack(specs, tmp_path, Execution("cpu")):
        memory = folder.record().memory
        assert memory["runs"] == 2
        assert 50_000_000 < memory["peak"] < before - 300_000_000
