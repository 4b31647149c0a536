"""Two processes on a CPU train a run together as one would alone."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_learn_what_one_does(ocr_eval, tiny, tmp_path, method):
    run = ["finetune", "--model", str(tiny), "--assoc", "city-language", "--method", method, "--lr", "1e-3"]
    run += ["--epochs", "2", "--n", "3", "--m-test", "3", "--batch-size", "7", "--device", "cpu", "--json"]
    alone = json.loads(ocr_eval(*run, "-o", tmp_path / "alone").out)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "ocr_eval"]
    together = subprocess.run(
        [*launch, *run, "-o", str(tmp_path / "together")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"},
    )
    assert together.returncode == 0, together.stderr
    record = json.loads(together.stdout)  # one process alone prints
    assert together.stderr.count("epoch 2/2") == 1

    def losses(folder):
        (metrics,) = (tmp_path / folder).glob("runs/*/*/*/*/metrics.jsonl")
        return [json.loads(line)["train_loss"] for line in metrics.read_text().splitlines()]

    assert losses("together")[1:] == pytest.approx(losses("alone")[1:], rel=1e-5)
    assert record["final"]["sequence"]["test_fact"]["mean_rank"] == alone["final"]["sequence"]["test_fact"]["mean_rank"]
