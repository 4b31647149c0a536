"""Two processes on a CPU train a run together as one would alone."""

import json
import os
import subprocess
import sys

import pytest

#: The command line, in a process whose memory may hold passes of so many nodes at most.
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
