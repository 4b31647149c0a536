"""TensorBoard for real; trackio and Weights & Biases by stand-ins that record their calls."""

import importlib.machinery
import sys
import types

import pytest
from conftest import as_a_pack, tiny_run

from ocr_eval.common.errors import UserError
from ocr_eval.execution.progress import Step
from ocr_eval.execution.run_pack import Execution
from ocr_eval.execution.tracking import Tracker, following, how_to_view, require_tracker
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine

CONFIG = {"seed": 1, "train": {"lr": 2e-3, "method": "lora"}}
NAME = "tiny/city-language/lora/seed1-abc"


def line(epoch):
    """As in metrics.jsonl."""
    return {
        "epoch": epoch,
        "train_loss": None if epoch == 0 else 1 / epoch,
        "scores": {"first-token": {"test_entailment": {"mean_rank": 0.5 * epoch, "n": 3}}},
        "held_out": {"first-token": {"ranks": [0.0, 1.5]}},
        "broken": float("nan"),
    }


def in_tensorboard(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def test_tensorboard_holds_the_runs_of_a_pack_side_by_side(tmp_path):
    trackers = [Tracker("tensorboard", "sweep", f"tiny/seed{seed}", CONFIG, tmp_path) for seed in (0, 1)]
    for epoch in range(3):
        for tracker in trackers:
            tracker.log(epoch, line(epoch))
    for tracker in trackers:
        tracker.close()
    for seed in (0, 1):
        folder = tmp_path / f"tensorboard/sweep/tiny/seed{seed}"
        assert in_tensorboard(folder, "train_loss") == [(1, 1.0), (2, 0.5)]
        assert in_tensorboard(folder, "scores/first-token/test_entailment/mean_rank") == [(0, 0.0), (1, 0.5), (2, 1.0)]
        with pytest.raises(KeyError):
            in_tensorboard(folder, "broken")


def test_a_run_that_goes_on_replaces_what_it_repeats(tmp_path):
    for first, last in ((0, 3), (2, 4)):  # killed after epoch 3, gone on from its checkpoint after epoch 1
        tracker = Tracker("tensorboard", "sweep", NAME, CONFIG, tmp_path, first_epoch=first)
        for epoch in range(first, last + 1):
            tracker.log(epoch, line(epoch))
        tracker.close()
    steps = [step for step, _ in in_tensorboard(tmp_path / f"tensorboard/sweep/{NAME}", "epoch")]
    assert steps == [0, 1, 2, 3, 4]


class StandIn(types.ModuleType):
    """A module with ``init`` as trackio and wandb have it."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.told = []

    def init(self, **settings):
        print("Welcome!")
        self.told.append(settings)
        return self

    def log(self, values, step):
        if "breaks" in values:
            raise ConnectionError("no route to host")
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def install(name):
        module = StandIn(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_is_told_to_the_tracker_under_its_group(name, stand_in, tmp_path, capfd):
    module = stand_in(name)
    tracker = Tracker(name, "my-sweep", NAME, CONFIG, tmp_path)
    tracker.log(2, line(2))
    tracker.close()
    settings, logged, end = module.told
    assert (settings["project"], settings["group"], settings["name"]) == ("ocr-eval", "my-sweep", NAME)
    assert settings["config"] == CONFIG
    assert settings["resume"] == "allow"
    numbers = {"epoch": 2, "train_loss": 0.5, "scores/first-token/test_entailment/mean_rank": 1.0}
    assert logged == (2, {**numbers, "scores/first-token/test_entailment/n": 3})
    assert end == "finished"
    assert capfd.readouterr().out == "", "stdout is for data"


def test_weights_and_biases_stays_offline_unless_the_user_is_logged_in(stand_in, tmp_path, monkeypatch):
    module = stand_in("wandb")

    def mode():
        Tracker("wandb", "sweep", NAME, CONFIG, tmp_path)
        return module.told[-1]["mode"]

    assert mode() == "offline"
    assert "wandb sync" in how_to_view("wandb", tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert mode() == "online"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as --offline sets it
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"
    first, *others = [settings["id"] for settings in module.told]
    assert {first} == set(others), "the same run is continued"


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(stand_in, tmp_path, capfd):
    module = stand_in("trackio")
    tracker = Tracker("trackio", "sweep", NAME, CONFIG, tmp_path)
    tracker.log(1, {"breaks": 1})
    tracker.log(2, {"fine": 1})
    tracker.close()
    assert len(module.told) == 1
    assert capfd.readouterr().err.count("trackio failed and is disabled") == 1


def test_no_tracker_does_nothing(tmp_path):
    told = []
    with following(told.append, "none", "sweep", tmp_path) as watch:
        watch([])
    assert told == [[]]
    assert not list(tmp_path.iterdir())
    assert how_to_view("none", tmp_path) == ""


def test_a_tracker_that_is_not_there_is_one_clear_line(monkeypatch, stand_in, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"--report-to trackio needs trackio: pip install 'ocr-eval\[trackio\]'"):
        require_tracker("trackio")
    broken = stand_in("wandb")
    monkeypatch.setattr(broken, "init", lambda **_: 1 / 0)
    with pytest.raises(UserError, match="--report-to wandb: cannot start"):
        Tracker("wandb", "sweep", NAME, CONFIG, tmp_path)


def test_the_runs_of_a_pack_are_followed_and_closed(stand_in, tiny, tmp_path):
    told = stand_in("trackio").told
    specs = [tiny_run(tiny, seed=seed, epochs=2 + seed) for seed in (0, 1)]
    seen = []
    with following(seen.append, "trackio", "my-sweep", tmp_path) as watch:
        folders = as_a_pack(specs, tmp_path, Execution(watch=watch))
    opened = [entry["name"] for entry in told if isinstance(entry, dict)]
    assert opened == [folder.record().run for folder in folders]
    assert sorted(entry[0] for entry in told if isinstance(entry, tuple)) == [0, 0, 1, 1, 2, 2, 3]
    assert told.count("finished") == 2
    assert len(seen) == 4
    assert "held_out" not in str(told)


def test_a_tracker_that_fails_to_start_for_a_later_run_stops_nothing(stand_in, tiny, tmp_path, capfd):
    module, told = stand_in("trackio"), []
    steps = [
        Step(
            tiny_run(tiny, seed=seed),
            RunFolder.of(tmp_path, tiny_run(tiny, seed=seed), "01234567"),
            MetricsLine(epoch=0),
        )
        for seed in (0, 1)
    ]
    with following(told.append, "trackio", "sweep", tmp_path) as watch:
        watch(steps[:1])
        module.init = lambda **settings: 1 / 0
        watch(steps[1:])
        watch(steps[1:])
    assert len(told) == 3
    assert capfd.readouterr().err.count("cannot start (division by zero)") == 1


def test_a_tracker_that_does_not_start_at_all_is_an_error(stand_in, tiny, tmp_path):
    module, spec = stand_in("trackio"), tiny_run(tiny)
    module.init = lambda **settings: 1 / 0
    step = Step(spec, RunFolder.of(tmp_path, spec, "01234567"), MetricsLine(epoch=0))
    with (
        pytest.raises(UserError, match="cannot start"),
        following(lambda steps: None, "trackio", "s", tmp_path) as watch,
    ):
        watch([step])
