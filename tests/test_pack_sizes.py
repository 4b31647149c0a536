"""How runs are cut into packs: by batch, memory, base and GPU."""

import pytest
from conftest import load, tiny_run
from hypothesis import given
from hypothesis import strategies as st

from ocr_eval.cli.execution_flags import Means
from ocr_eval.cli.sweep_work import packs_at_once
from ocr_eval.methods import view
from ocr_eval.methods.view import View
from ocr_eval.planning import packs, workload
from ocr_eval.planning.packs import cut
from ocr_eval.scoring.candidates import score_lanes


@given(st.integers(1, 60), st.integers(1, 70))
def test_packs_keep_every_run_once_and_in_order_and_are_of_nearly_equal_size(tiny_spec, count, batch_size):
    specs = [tiny_spec(batch_size, seed) for seed in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "lanes_that_fit", lambda specs, wanted, device: wanted)
        found = cut(specs, "cpu")
    assert [spec for pack in found for spec in pack] == specs
    sizes = {len(pack) for pack in found}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or max(sizes) * batch_size * 5 <= 640


@pytest.fixture(scope="module")
def tiny_spec(tiny):
    spec = tiny_run(tiny)

    def make(batch_size, seed):
        return spec.model_copy(update={"seed": seed, "train": spec.train.model_copy(update={"batch_size": batch_size})})

    return make


def test_a_pack_holds_no_more_runs_than_fit_into_memory(tiny, monkeypatch):
    # adapters so large that the peak is in training
    specs = [tiny_run(tiny, seed=seed, batch_size=16, rank=128) for seed in range(8)]
    assert [len(pack) for pack in cut(specs, "cpu")] == [8]
    work = workload.measure(specs[0])
    three = packs.pack_memory(specs[0], work, 3, "cpu").total
    monkeypatch.setattr(packs, "room", lambda device: int(three / packs.memory.USABLE) + 1)
    sizes = [len(pack) for pack in cut(specs, "cpu")]
    assert sum(sizes) == 8
    assert max(sizes) in (2, 3)
    monkeypatch.setattr(packs, "room", lambda device: 1)
    assert [len(pack) for pack in cut(specs, "cpu")] == [1] * 8


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_planned_scoring_of_a_pack_is_the_largest_that_is_made(tiny, monkeypatch, lanes):
    base, spec = load(tiny), tiny_run(tiny, "country-code", m_test=20)
    work = workload.measure(spec)
    made, whole = [], view.lay_out

    def lay_out(rows, by_clump):
        batch = whole(rows, by_clump)
        made.append((batch.ids.shape, len(batch.kept)))
        return batch

    monkeypatch.setattr(view, "lay_out", lay_out)
    score_lanes(View(base, base.network), dict.fromkeys(range(lanes), work.probes))
    planned = work.passes("cpu", lanes)[1]
    assert len(made) > 1
    assert ((planned.lanes, planned.nodes), planned.reads) == max(made, key=lambda made: made[1])


def test_a_pack_on_a_gpu_holds_no_more_runs_than_can_be_scored_at_once(tiny, monkeypatch):
    specs = [tiny_run(tiny, seed=seed, rank=1) for seed in range(24)]
    work = workload.measure(specs[0])
    plans = [packs.pack_memory(specs[0], work, lanes, "cuda") for lanes in (12, 24)]
    assert not plans[1].while_training
    monkeypatch.setattr(packs, "room", lambda device: int(plans[0].total / packs.memory.USABLE) + 1)
    assert [len(pack) for pack in cut(specs, "cuda")] == [12, 12]


@pytest.mark.parametrize(("runs", "sizes"), [(12, [3, 3, 3, 3]), (3, [1, 1, 1])])
def test_no_gpu_is_left_without_a_pack(tiny, monkeypatch, runs, sizes):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    specs = [tiny_run(tiny, seed=seed) for seed in range(runs)]
    gpus = packs_at_once(Means(device="cuda", executor="local"))
    assert [len(pack) for pack in cut(specs, "cuda", gpus)] == sizes
    assert [len(pack) for pack in cut(specs, "cuda")] == [runs]


def test_runs_that_share_no_base_share_no_pack(tiny, model_files):
    specs = [tiny_run(tiny), tiny_run(tiny, method="qlora"), tiny_run(model_files["qwen2"]), tiny_run(tiny)]
    assert [len(pack) for pack in cut(specs, "cpu")] == [2, 1, 1]
