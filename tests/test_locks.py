"""File systems without locks."""

import errno
import fcntl
import os

import pytest
from filelock import Timeout

from ocr_eval.common.locks import hold


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def without_locks(request, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("command", [["finetune", "--assoc"], ["sweep", "--workers", 1, "--assocs"]])
def test_an_output_folder_without_locks_is_one_clear_line(ocr_eval, tiny, tmp_path, command):
    model = "--models" if command[0] == "sweep" else "--model"
    answer = ocr_eval(*command, "city-language", model, tiny, "--quiet", "-o", tmp_path / "out")
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert line.startswith(f"ocr-eval: The file system of {tmp_path / 'out'}")
    assert "has no file locks" in line
    assert "--output-dir" in line


def test_a_lock_is_held_until_it_is_released_and_its_file_stays(tmp_path):
    held = hold(tmp_path / "lock")
    with pytest.raises(Timeout):
        hold(tmp_path / "lock", timeout=0)
    held.lock.release()
    with hold(tmp_path / "lock", timeout=0):
        pass
    assert (tmp_path / "lock").is_file()
