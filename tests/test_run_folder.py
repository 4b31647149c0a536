"""A run's folder: what an interruption leaves never counts as more than it is."""

import errno
import json
import os
import socket
import time
from pathlib import Path

import pytest
from conftest import tiny_run
from made_records import record

from ocr_eval.common.errors import UserError
from ocr_eval.common.files import read_jsonl, replacing, replacing_folder, to_jsonl, write_atomic
from ocr_eval.execution.status import run_state
from ocr_eval.records import hold
from ocr_eval.records.config import config_yaml
from ocr_eval.records.folder import RunFolder
from ocr_eval.records.metrics import MetricsLine


@pytest.fixture
def done(tmp_path):
    """A folder that looks like a finished run's."""
    for name in ("status.json", "result.json", "metrics.jsonl", "probes.jsonl", "adapter/adapter_model.safetensors"):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record().to_json() if name == "result.json" else "{}")
    return RunFolder(tmp_path / "run")


def test_a_folder_that_was_cleared_in_part_does_not_count(done, monkeypatch):
    assert done.is_done()

    def interrupted(path, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ocr_eval.common.files.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        done.clear()
    assert (done.path / "adapter").is_dir()
    assert not done.is_done()
    assert not done.is_prepared()


def test_lines_hold_any_text(tmp_path):
    lines = [{"answer": "a\u2028b\u0085c\nd\re"}, {"answer": "f"}]  # PyYAML keeps a pasted U+2028
    write_atomic(tmp_path / "lines.jsonl", to_jsonl(lines))
    assert read_jsonl(tmp_path / "lines.jsonl") == lines


@pytest.mark.parametrize(("damaged", "number"), [(b'{}\n{"a', 2), (b"{}\n{}\n\xff", 3)])
def test_a_damaged_line_is_said(tmp_path, damaged, number):
    (tmp_path / "lines.jsonl").write_bytes(damaged)
    with pytest.raises(UserError, match=f"line {number}: is not a JSON"):
        read_jsonl(tmp_path / "lines.jsonl")


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_no_part(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(content):
        with replacing(path) as file:
            file.write(content)
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write(b"half of ")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_folder_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    synced, place = [], tmp_path / "adapter"
    sync = os.fsync

    def noting(handle):
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), place.exists()))
        sync(handle)

    monkeypatch.setattr("ocr_eval.common.files.os.fsync", noting)
    with replacing_folder(place) as beside:
        (beside / "weights").write_text("1")
        (beside / "weights").chmod(0o600)
    beside = next(name for name, _ in synced if name.endswith(".partial"))
    assert Path(beside).parent == tmp_path
    assert {(beside, False), (f"{beside}/weights", False)} <= set(synced)
    assert synced[-1] == (str(tmp_path), True)
    assert (place / "weights").read_text() == "1"
    assert (place / "weights").stat().st_mode & 0o777 == place.stat().st_mode & 0o666


def test_a_folder_that_cannot_be_finished_leaves_the_old_one_and_no_part(tmp_path):
    place = tmp_path / "adapter"

    def write(content, error=None):
        with replacing_folder(place) as beside:
            (beside / "weights").write_text(content)
            if error is not None:
                raise error

    write("old")
    with pytest.raises(OSError, match="full"):
        write("half of ", OSError(errno.ENOSPC, "full"))
    assert (place / "weights").read_text() == "old"
    write("new")
    assert (place / "weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_parts_of_training_states_go_with_the_states(done):
    (done.path / ".0123456789abcdef.partial").write_text("half")
    done.drop_checkpoints()
    assert not list(done.path.glob("*.partial"))


def test_a_run_that_goes_on_elsewhere_keeps_word_of_where_it_was(tiny, tmp_path):
    folder, spec = RunFolder(tmp_path), tiny_run(tiny)

    def begun(torch):
        folder.begin(config_yaml(spec), {"torch": torch}, {})
        return json.loads((tmp_path / "env.json").read_text())

    assert "earlier" not in begun("2.0")
    folder.write_checkpoint(1, lambda file: None)
    assert begun("2.0")["earlier"] == []
    assert begun("2.1")["earlier"] == [{"torch": "2.0"}]
    again = begun("2.1")
    assert (again["torch"], again["earlier"]) == ("2.1", [{"torch": "2.0"}])


def test_a_process_number_that_is_used_again_is_no_holder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "m/a/lora/seed0-01234567")
    with folder.lock():
        assert run_state(tmp_path, folder.identity).state == "running"
        long_ago = time.time() - 10_000_000
        os.utime(folder.path / ".holder", (long_ago, long_ago))
        assert run_state(tmp_path, folder.identity).state == "waiting"


def test_a_run_on_another_host_is_running_while_its_process_lives(tmp_path, monkeypatch):
    folder, hosts = RunFolder(tmp_path / "runs" / "m/a/lora/seed0-01234567"), iter(["elsewhere"])
    here = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: next(hosts, here))
    monkeypatch.setattr(hold, "HEARTBEAT", 0.05)
    with folder.lock():
        folder.add_metrics(MetricsLine(epoch=0))
        long_ago = time.time() - 10_000  # an epoch may take hours
        for name in (".holder", "metrics.jsonl"):
            os.utime(folder.path / name, (long_ago, long_ago))
        deadline = time.monotonic() + 20
        while run_state(tmp_path, folder.identity).state != "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    (folder.path / ".holder").write_text("elsewhere 1")
    os.utime(folder.path / ".holder", (time.time() - 400, time.time() - 400))
    folder.add_metrics(MetricsLine(epoch=0))
    assert run_state(tmp_path, folder.identity).state == "interrupted"


def test_metrics_grow_and_a_line_that_is_written_in_part_is_not_there_yet(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "m/a/lora/seed0-01234567")
    folder.path.mkdir(parents=True)
    (folder.path / "metrics.jsonl").write_text('{"epoch": 7}\n')  # of an attempt that kept no state
    lines = [MetricsLine(epoch=epoch, train_loss=1.0, notes={"parts": epoch}) for epoch in range(3)]
    for line in lines:
        folder.add_metrics(line)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tra')
    assert folder.metrics() == lines
    assert run_state(tmp_path, folder.identity).epoch == 2
