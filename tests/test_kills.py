"""``kill -9`` at several moments of every command that writes; the same command then ends as if undisturbed.

``finetune``, ``sweep`` and packs are killed at many more moments in test_interruptions, test_sweep_faults and
test_packs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import WRITING, World, make_world

KILLS = 4

#: Has everything imported and forks the calls that are to be killed: starting one afresh takes seconds.
KILLER = """
import os, random, signal, sys, time
import matplotlib.figure
import ocr_eval.api, ocr_eval.execution.run_pack, ocr_eval.execution.sweep, ocr_eval.report.page, ocr_toy.train
from ocr_eval.cli.app import run
ocr_eval.execution.run_pack.CHECKPOINT_EVERY = 0.0
whole, killed, kills = sys.argv[1].split("\\t"), sys.argv[2].split("\\t"), int(sys.argv[3])

def started(line):
    child = os.fork()
    if not child:
        os._exit(run(line))
    return child

began = time.monotonic()
assert os.waitpid(started(whole), 0)[1] == 0
took, ends = time.monotonic() - began, []
for kill in range(kills):
    child = started(killed)
    time.sleep(took * (kill + 0.7) / kills)
    os.kill(child, signal.SIGKILL)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ends.append(os.waitstatus_to_exitcode(os.waitpid(started(killed), 0)[1]))
print(*ends)
"""


@pytest.fixture(scope="module")
def made(model_files, tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("kills") / "world", model_files["llama"])


def left_in(out: Path) -> dict[str, bytes]:
    """All files without times, by their place; what is timed or says where it is differs between any two runs."""
    found = {}
    for path in out.rglob("*"):
        # A part of a file that was never put in its place has a name of its own, and stays.
        part = path.suffix == ".partial" or re.match(r"\.[0-9a-f]{16}-", path.name)
        if not path.is_file() or path.name in (".lock", ".sweep.lock", "env.json") or part:
            continue
        content = path.read_bytes()
        if path.name in ("result.json", "metrics.jsonl"):
            lines = [json.loads(line) for line in ([content] if path.suffix == ".json" else content.splitlines())]
            content = repr(
                [{k: v for k, v in line.items() if "seconds" not in k and k != "memory"} for line in lines]
            ).encode()
        elif path.suffix in (".html", ".json"):
            content = re.sub(rb"/(whole|killed)\b", b"", content)
            if (out / "runs").is_dir():  # a page of runs just made, which holds their seconds
                content = re.sub(rb'class="data">[^<]+', b"", content)
        found[str(path.relative_to(out))] = content
    return found


@pytest.mark.parametrize("command", WRITING, ids=lambda command: command.words)
def test_killed_at_any_moment_it_ends_as_if_undisturbed(command, made, tmp_path):
    world = made.copy(tmp_path / "world")
    out = world.root / "out"
    lines = ["\t".join(command.line(world)).replace(str(out), str(tmp_path / name)) for name in ("whole", "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *lines, str(KILLS)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    *ends, last = map(int, done.stdout.splitlines()[-1].split())
    assert last == 0, done.stderr
    assert -9 in ends
    assert set(ends) <= {-9, 0}
    assert left_in(tmp_path / "killed") == left_in(tmp_path / "whole")
