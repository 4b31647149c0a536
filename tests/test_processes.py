"""Two processes on a CPU train a run together as one would alone."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from ocr_eval.records.folder import RunFolder

#: The command line, in a process whose memory may hold passes of a limited number of nodes.
PROGRAM = """
import os, sys
import torch
from ocr_eval.methods import view
from ocr_eval.cli.app import run

whole, room = view.lay_out, int(os.environ["ROOM_OF_RANK_" + os.environ["RANK"]])

def lay_out(rows, by_clump):
    batch = whole(rows, by_clump)
    if torch.is_grad_enabled() and batch.ids.numel() > room:
        open(sys.argv[-1] + "-was-full", "w").close()
        raise torch.OutOfMemoryError("CUDA out of memory")
    return batch

view.lay_out = lay_out
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(("method", "rooms"), [("lora", (1000, 20)), ("full", (20, 1000))])
def test_two_processes_learn_what_one_does_also_if_one_has_less_memory(ocr_eval, tiny, tmp_path, method, rooms):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = ["finetune", "--model", str(tiny), "--assoc", "city-language", "--method", method, "--lr", "1e-3"]
    run += ["--epochs", "2", "--n", "3", "--m-test", "3", "--batch-size", "7", "--device", "cpu", "--json"]
    alone = json.loads(ocr_eval(*run, "-o", tmp_path / "alone").out)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    launch += ["--nproc-per-node", "2", "--", str(program)]
    together = subprocess.run(
        [*launch, *run, "-o", str(tmp_path / "together")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **{f"ROOM_OF_RANK_{rank}": str(room) for rank, room in enumerate(rooms)},
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
    )
    assert together.returncode == 0, together.stderr
    record = json.loads(together.stdout)  # one process alone prints
    assert together.stderr.count("epoch 2/2") == 1
    assert (tmp_path / "together-was-full").exists()

    def losses(folder):
        (metrics,) = (tmp_path / folder).glob("runs/*/*/*/*/metrics.jsonl")
        return [json.loads(line)["train_loss"] for line in metrics.read_text().splitlines()]

    assert losses("together")[1:] == pytest.approx(losses("alone")[1:], rel=1e-5)
    assert record["final"]["sequence"]["test_fact"]["mean_rank"] == alone["final"]["sequence"]["test_fact"]["mean_rank"]


def two_processes(*command: object) -> list[subprocess.Popen[str]]:
    """Two processes that train together under a launcher that leaves one alone when the other ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "ocr_eval", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and stderr."""
    try:
        return [(process.returncode, err) for process in processes for _, err in [process.communicate(timeout=120)]]
    finally:
        for process in processes:
            process.kill()


def test_a_busy_run_is_refused_by_all_processes_and_a_sweep_waits_for_it_in_all(ocr_eval, tiny, tmp_path):
    small = ["--n", 3, "--m-test", 3, "--batch-size", 64, "--epochs", 1, "--device", "cpu"]
    one = ["finetune", "--model", tiny, "--assoc", "city-language", *small, "-o", tmp_path]
    assert ocr_eval(*one).code == 0
    (record,) = tmp_path.glob("runs/*/*/*/*/result.json")
    folder = RunFolder(record.parent)
    with folder.lock():
        for name in ("status.json", "result.json"):
            (folder.path / name).unlink()
        for code, err in ends(two_processes(*one)):
            assert code == 2
            assert "Another process is working on" in err
        many = ["sweep", "--models", tiny, "--assocs", "city-language", "--methods", "lora,full", *small]
        sweep = two_processes(*many, "-o", tmp_path)
        try:
            deadline = time.monotonic() + 90
            while not any(tmp_path.glob("runs/*/*/full/*/status.json")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        except AssertionError:
            ends(sweep)
            raise
    for code, err in ends(sweep):
        assert code == 0, err
    assert folder.is_done()
