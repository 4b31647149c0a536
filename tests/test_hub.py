"""Fetching from the hub, against a stand-in of its HTTP interface on loopback."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from hub_stand_in import COMMIT, REPO, Repository, serve
from huggingface_hub import constants

from ocr_eval.models import weights
from ocr_eval.models.hub import TOKENIZER_FILES
from ocr_eval.specs.model import load_model_spec

PINNED = f"{REPO}@{COMMIT}"


@pytest.fixture
def hub(tmp_path, monkeypatch, model_files):
    """The repository of a tiny model beside files that must not be fetched, served, with an empty cache."""
    folder = model_files["llama"].with_suffix("")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"evil()", "consolidated.safetensors": b"again"}
    files |= {"original/params.json": b"{}", "onnx/model.safetensors": b"again", "README.md": b"# Tiny"}
    repository = Repository(files)
    server = serve(repository)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    repository.environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("OCR_EVAL_OFFLINE", "0")
    yield repository
    server.shutdown()
    thread.join()
    server.server_close()


def refused(answer) -> str:
    assert answer.code == 2, answer.err
    return answer.err.strip().splitlines()[-1]


def test_only_what_a_run_needs_is_fetched_and_a_pinned_commit_is_asked_for_once(hub, ocr_eval):
    answer = ocr_eval("models", "pull", PINNED)
    assert answer.code == 0, answer.err
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.fetched()) == wanted
    located = weights.locate(load_model_spec(PINNED))
    assert {path.name for path in located.path.iterdir()} == wanted
    assert located.identity == f"hub:{REPO}@{COMMIT}"
    hub.log.clear()
    assert ocr_eval("models", "pull", PINNED).out == answer.out
    assert hub.log == []


def test_a_branch_is_asked_for_its_commit_and_the_run_records_it(hub, ocr_eval, tmp_path):
    run = ["finetune", "--model", REPO, "--assoc", "city-language", "--epochs", 1, "--n", 2, "--m-test", 2]
    run += ["-o", tmp_path / "out", "--json", "--dtype", "float32"]
    answer = ocr_eval(*run)
    assert answer.code == 0, answer.err
    record = json.loads(answer.out)
    assert record["model"] == "somebody--tiny"
    assert record["base_identity"] == f"hub:{REPO}@{COMMIT}"
    assert f"GET /api/models/{REPO}/revision/main" in hub.log
    hub.log.clear()
    assert ocr_eval(*run, HF_HUB_OFFLINE="1").out == answer.out
    assert hub.log == []


def test_the_command_line_obeys_the_variables_of_the_hub_library(hub):
    def pull(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ocr_eval", "models", "pull", REPO, *flags]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **hub.environment})

    refusal = pull("--offline").stderr
    assert "network is disabled" in refusal
    assert f"'ocr-eval models pull {REPO}'" in refusal
    assert hub.log == []
    fetched = pull()
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.startswith(hub.environment["HF_HOME"])
    assert pull("--offline").stdout == fetched.stdout


@pytest.mark.parametrize("status", [(403, "GatedRepo"), (401, "GatedRepo")])
def test_a_gated_repository_says_where_to_ask(hub, ocr_eval, status):
    hub.status = status
    line = refused(ocr_eval("models", "pull", PINNED))
    assert "is gated" in line
    assert f"{constants.ENDPOINT}/{REPO}" in line
    assert "hf auth login" in line
    assert hub.fetched() == []


def test_another_refusal_of_the_account(hub, ocr_eval):
    hub.status = (403, "")
    assert "The hub denies this account access to somebody/tiny" in refused(ocr_eval("models", "pull", REPO))


def test_a_repository_or_revision_that_is_not_there(hub, ocr_eval):
    assert "shows no repository somebody/small" in refused(ocr_eval("models", "pull", "somebody/small"))
    assert "has no revision 'v2'" in refused(ocr_eval("models", "pull", f"{REPO}@v2"))
    assert "has no revision 'fff" in refused(ocr_eval("models", "pull", f"{REPO}@{'f' * 40}"))


def test_a_broken_connection_is_taken_up_where_it_broke(hub, ocr_eval, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = {"model.safetensors"}
    assert ocr_eval("models", "pull", PINNED).code == 0
    half = len(hub.files["model.safetensors"]) // 2
    assert f"GET /{REPO}/resolve/{COMMIT}/model.safetensors from {half // 1000 * 1000}" in hub.log
    folder = weights.locate(load_model_spec(PINNED)).path
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_stopped_download_keeps_the_files_that_are_whole(hub, ocr_eval):
    hub.broken = {"model.safetensors"}
    assert "Try again: complete files are kept" in refused(ocr_eval("models", "pull", PINNED))
    assert weights.cached(load_model_spec(PINNED)) is None
    assert "network is disabled" in refused(ocr_eval("models", "pull", PINNED, HF_HUB_OFFLINE="1"))
    first, hub.broken = set(hub.fetched()), set()
    hub.log.clear()
    assert ocr_eval("models", "pull", PINNED, HF_HUB_OFFLINE="0").code == 0
    assert set(hub.fetched()).isdisjoint(first - {"model.safetensors"})


def test_a_cache_without_a_shard_or_a_tokenizer_is_not_whole(hub, ocr_eval):
    spec = load_model_spec(PINNED)
    assert ocr_eval("models", "pull", PINNED).code == 0
    folder = weights.cached(spec)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert weights.cached(spec) is None
    assert weights.cached(spec, TOKENIZER_FILES) == folder
    (folder / "model-2.safetensors").touch()
    assert weights.cached(spec) == folder
    index.write_text("{")
    assert weights.cached(spec) is None
    index.unlink()
    (folder / "tokenizer.json").unlink()
    assert weights.cached(spec) is None
    assert weights.cached(spec, TOKENIZER_FILES) is None


def test_a_disk_that_is_too_small_is_found_before_anything_is_fetched(hub, ocr_eval):
    hub.claimed = {"model.safetensors": shutil.disk_usage("/").total * 10}
    line = refused(ocr_eval("models", "pull", PINNED))
    assert "GB more in the hub cache" in line
    assert "set HF_HOME to a larger disk" in line
    assert hub.fetched() == []


def test_pickled_weights_are_not_loaded(hub, ocr_eval):
    del hub.files["model.safetensors"]
    assert "has no .safetensors weights" in refused(ocr_eval("models", "pull", PINNED))
    assert hub.fetched() == []


def test_a_hub_out_of_reach_is_one_line_unless_the_model_is_here(hub, ocr_eval, monkeypatch):
    endpoint, closed = constants.ENDPOINT, "http://127.0.0.1:9"
    for reachable in (False, True, False):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint if reachable else closed)
        answer = ocr_eval("models", "pull", REPO)
        if reachable:
            fetched = answer.out
        elif not hub.log:
            assert "the hub cannot be reached" in refused(answer)
    assert answer.out == fetched != ""


def test_a_check_fetches_no_weights(hub, ocr_eval):
    answer = ocr_eval("models", "check", PINNED, "--assoc", "city-language")
    assert answer.code == 0, answer.err
    assert " attention; linear modules: " in answer.out
    assert set(hub.fetched()) == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
