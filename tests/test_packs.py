"""Packed training against its definition: the same run alone, and a plain loop over stock PEFT."""

import math
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, content, load, packed, tiny_run
from peft import PeftModel
from safetensors.torch import load_file

from ocr_eval.data.task import build_task
from ocr_eval.data.tokenize import probe_tokens, training_tokens
from ocr_eval.execution import run_pack
from ocr_eval.execution.live_run import LiveRun, common_epoch, prepare
from ocr_eval.execution.run_pack import inject
from ocr_eval.methods.pack import GradientPack, attach
from ocr_eval.methods.train import train_epoch
from ocr_eval.records.folder import RunFolder
from ocr_eval.scoring.candidates import score_candidates, score_lanes

MIXES = {
    "seeds": [{"seed": 0}, {"seed": 1}, {"seed": 2}],
    "associations": [{"assoc": "city-language"}, {"assoc": "country-code"}, {"assoc": "sport-music", "seed": 3}],
    "rates, ranks and alphas": [{"lr": 1e-2}, {"lr": 3e-3, "rank": 2, "alpha": 16.0}, {"lr": 2e-2, "rank": 7}],
    "lengths and batches": [{"epochs": 1}, {"epochs": 3, "batch_size": 5}, {"epochs": 2, "m_train": 0}],
}


def trained(base, specs):
    """Losses and final tensors of each run of a pack, every one trained for its own number of epochs."""
    pack = packed(base, *specs)
    losses = [[] for _ in specs]
    for epoch in range(max(spec.train.epochs for spec in specs)):
        lanes = [lane for lane, spec in enumerate(specs) if epoch < spec.train.epochs]
        for lane, loss in train_epoch(pack, lanes).items():
            losses[lane].append(loss)
    pack.detach()
    tensors = [
        {name: tensor.clone() for name, tensor in pack.adapters.matrices(lane).items()} for lane in range(len(specs))
    ]
    return losses, tensors


@pytest.mark.parametrize("mix", MIXES)
def test_a_packed_run_is_the_run_alone(tiny, mix):
    base = load(tiny)
    specs = [tiny_run(tiny, **changes) for changes in MIXES[mix]]
    losses, tensors = trained(base, specs)
    for lane, spec in enumerate(specs):
        (alone_losses,), (alone,) = trained(base, [spec])
        assert losses[lane] == pytest.approx(alone_losses, abs=1e-5)
        for name, tensor in alone.items():
            assert (tensors[lane][name] - tensor).norm() <= 2e-5 * tensor.norm(), name
            # Adam makes a step of any gradient, also of one that is rounding alone: 1 % of a step of 1e-2
            assert torch.allclose(tensors[lane][name], tensor, atol=1e-4), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_packed_run_is_a_plain_loop_over_stock_peft(architecture, model_files, tmp_path):
    path = model_files[architecture]
    base = load(path)
    specs = [tiny_run(path, seed=0), tiny_run(path, seed=1, rank=2)]
    pack = packed(base, *specs)
    for lane in range(len(specs)):
        (tmp_path / f"start-{lane}").mkdir()
        pack.save(lane, tmp_path / f"start-{lane}")
    batches = [injection.batches() for injection in pack.learners]
    losses = train_epoch(pack, [0, 1])
    for lane in range(len(specs)):
        (tmp_path / f"end-{lane}").mkdir()
        pack.save(lane, tmp_path / f"end-{lane}")
    for lane, spec in enumerate(specs):
        stock = PeftModel.from_pretrained(load(path).network, tmp_path / f"start-{lane}" / "adapter", is_trainable=True)
        trainable = [p for p in stock.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=spec.train.lr, weight_decay=0.0)
        nats, tokens = 0.0, 0
        for batch in batches[lane]:
            values = []
            for example in batch:
                ids = torch.tensor([[*example.prompt, *example.answer]])
                logprobs = torch.log_softmax(stock(input_ids=ids).logits[0].float(), -1)
                start = len(example.prompt) - 1
                values += [logprobs[start + i, token] for i, token in enumerate(example.answer)]
            loss = -torch.stack(values).mean()
            nats, tokens = nats + loss.item() * len(values), tokens + len(values)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, spec.train.max_grad_norm)
            optimizer.step()
        assert losses[lane] == pytest.approx(nats / tokens, abs=1e-5)
        stock.save_pretrained(tmp_path / f"stock-{lane}/adapter")
        start, ours, theirs = (
            load_file(tmp_path / f"{name}-{lane}/adapter/adapter_model.safetensors")
            for name in ("start", "end", "stock")
        )
        assert ours.keys() == theirs.keys()
        for name in theirs:  # of single elements whose gradient is nearly zero, Adam's first steps know only the sign
            assert (ours[name] - theirs[name]).norm() < 2e-3 * (theirs[name] - start[name]).norm(), name


def test_scores_of_a_pack_are_those_of_each_run_alone(tiny):
    base = load(tiny)
    specs = [tiny_run(tiny, "country-code"), tiny_run(tiny, "sport-music", seed=1, m_test=4)]
    pack = packed(base, *specs)
    train_epoch(pack, [0, 1])
    probes = {lane: probe_tokens(base.tokenizer, build_task(spec)) for lane, spec in enumerate(specs)}
    together = score_lanes(pack.view(), probes)
    pack.detach()
    for lane, spec in enumerate(specs):
        alone = packed(base, spec)
        train_epoch(alone, [0])
        expected = score_candidates(alone.view(), probes[lane])
        alone.detach()
        for scoring, values in expected.logprobs.items():
            assert together[lane].logprobs[scoring] == pytest.approx(values, abs=1e-4)


def test_a_lane_that_diverges_stops_and_leaves_the_others_alone(tiny):
    base = load(tiny)
    specs = [tiny_run(tiny, seed=seed) for seed in (0, 1, 2)]
    pack = packed(base, *specs)
    with torch.no_grad():
        next(iter(pack.learners[1].parameters.values())).fill_(math.nan)
    pack.adapters.refresh()
    losses = train_epoch(pack, [0, 1, 2])
    pack.detach()
    assert not math.isfinite(losses[1])
    for lane in (0, 2):
        (alone,), _ = trained(base, [specs[lane].model_copy(update={"train": specs[lane].train})])
        assert losses[lane] == pytest.approx(alone[0], abs=1e-5)


def tasks_in(folder: Path, base, specs) -> list[LiveRun]:
    tasks = []
    for spec in specs:
        place = RunFolder.of(folder, spec, f"{spec.association.name}-{spec.train.epochs}")
        place.path.mkdir(parents=True, exist_ok=True)
        tasks.append(LiveRun(spec, place, prepare(base.tokenizer, spec)))
    return tasks


def test_a_pack_with_a_diverging_run_finishes_the_others_and_says_why(tiny, tmp_path, monkeypatch):

    base = load(tiny)
    tasks = tasks_in(tmp_path, base, [tiny_run(tiny, seed=0), tiny_run(tiny, seed=1)])
    honest = GradientPack.step

    def diverging(pack, lanes):
        losses = honest(pack, lanes)
        return {lane: math.nan if lane == 1 and pack.learners[1].epochs_done == 2 else losses[lane] for lane in losses}

    monkeypatch.setattr(GradientPack, "step", diverging)
    inject(base, tasks)
    assert tasks[0].folder.is_done()
    assert not tasks[1].folder.is_done()
    assert tasks[1].folder.failure() == "The loss became nan in epoch 2. Lower --lr (now 0.01)."
    assert not tasks[0].folder.checkpoints()
    assert not tasks[1].folder.checkpoints()


class Killed(BaseException):
    """Stands for kill -9: nothing catches it and nothing runs after it."""


def test_killed_at_any_write_a_pack_goes_on_to_the_same_records(tiny, tmp_path, monkeypatch):
    """Runs of unequal length in one pack, killed before each and every file that they write."""
    from ocr_eval.execution import run_pack as module
    from ocr_eval.records import folder

    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 0.0)
    base = load(tiny)
    specs = [
        tiny_run(tiny, epochs=2),
        tiny_run(tiny, "country-code", epochs=4),
        tiny_run(tiny, "sport-music", epochs=3),
    ]
    inject(base, tasks_in(tmp_path / "whole", base, specs))
    whole = [content(task.folder) for task in tasks_in(tmp_path / "whole", base, specs)]
    write, add = folder.write_atomic, RunFolder.add_metrics
    countdown = 0

    def dies():
        nonlocal countdown
        countdown -= 1
        return countdown == 0

    def dying(path, data):
        if dies():
            raise Killed
        write(path, data)

    def tearing(self, line):
        if dies():
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"epoch": ')
            raise Killed
        add(self, line)

    monkeypatch.setattr(folder, "write_atomic", dying)
    monkeypatch.setattr(RunFolder, "add_metrics", tearing)
    kills = 0
    for step in range(4, 34, 3):
        countdown = step
        for _ in range(40):
            todo = [task for task in tasks_in(tmp_path / str(step), base, specs) if not task.folder.is_done()]
            if not todo:
                break
            try:
                inject(base, todo)
            except Killed:
                kills += 1
                countdown = step + 9 * kills
        assert [content(task.folder) for task in tasks_in(tmp_path / str(step), base, specs)] == whole
    assert kills >= 10


def test_a_pack_goes_on_from_the_last_epoch_that_all_can(tmp_path, monkeypatch):
    def folder(name, checkpoints, prepared=False):
        place = RunFolder(tmp_path / name)
        place.path.mkdir()
        for epoch in checkpoints:
            place.write_checkpoint(epoch, lambda file: None)
        if prepared:
            monkeypatch.setattr(RunFolder, "is_prepared", lambda own: own.path.name in "ce")
        return place

    a, b, c = folder("a", [2, 4]), folder("b", [2]), folder("c", [2, 4], prepared=True)
    nothing, ended = folder("d", []), folder("e", [], prepared=True)
    assert common_epoch([a, b], [9, 9]) == 2
    assert common_epoch([a, c], [9, 4]) == 4
    assert common_epoch([a, ended], [9, 4]) == 4
    assert common_epoch([a, ended], [9, 6]) == 0
    assert common_epoch([a, nothing], [9, 9]) == 0
    assert common_epoch([c, ended], [6, 6]) == 6


def test_a_run_whose_scores_are_no_numbers_leaves_its_pack(tiny, tmp_path, monkeypatch):

    base = load(tiny)
    tasks = tasks_in(tmp_path, base, [tiny_run(tiny, seed=0), tiny_run(tiny, seed=1)])
    honest = GradientPack.step

    def spoiling(pack, lanes):
        """The last step of an epoch leaves weights that no loss has seen."""
        losses = honest(pack, lanes)
        if pack.learners[1].epochs_done == 2:
            with torch.no_grad():
                next(iter(pack.learners[1].parameters.values())).fill_(math.nan)
            pack.adapters.refresh()
        return losses

    monkeypatch.setattr(GradientPack, "step", spoiling)
    inject(base, tasks)
    assert tasks[0].folder.is_done()
    assert tasks[1].folder.failure() == "The log-probabilities became NaN in epoch 2. Lower --lr (now 0.01)."
    assert not tasks[1].folder.is_done()


def test_a_pack_that_starts_over_forgets_how_far_its_runs_came_in_another(tiny, tmp_path, monkeypatch):
    base, specs = load(tiny), [tiny_run(tiny, seed=0, epochs=4), tiny_run(tiny, "country-code", epochs=4)]
    honest = GradientPack.step
    monkeypatch.setattr(run_pack, "CHECKPOINT_EVERY", 0.0)

    def killed_after(epochs, *some):
        def step(pack, lanes):
            if pack.learners[0].epochs_done == epochs:
                raise Killed
            return honest(pack, lanes)

        monkeypatch.setattr(GradientPack, "step", step)
        with pytest.raises(Killed):
            inject(base, tasks_in(tmp_path, base, some))

    killed_after(3, specs[0])
    killed_after(1, *specs)
    monkeypatch.setattr(GradientPack, "step", honest)
    alone = tasks_in(tmp_path, base, specs[:1])
    assert list(alone[0].folder.checkpoints()) == [1]
    inject(base, alone)
    assert [line.epoch for line in alone[0].folder.metrics()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["lora", "dpo", "steering", "merged-ov:layers=0-1"])
def test_a_state_that_is_taken_up_continues_to_the_same_bits(tiny, tmp_path, method):
    spec, base = tiny_run(tiny, method=method, epochs=2), load(tiny)
    examples = [training_tokens(base.tokenizer, build_task(spec))]
    pack = attach(base, [spec], examples)
    pack.step([0])
    with (tmp_path / "state.pt").open("wb") as file:
        pack.write_state(0, file)
    undisturbed = pack.step([0])
    pack.detach()
    again = attach(base, [spec], examples)
    again.read_state(0, tmp_path / "state.pt")
    assert again.step([0]) == undisturbed
    again.detach()
