"""The cache folder: what of it is ours is listed and deleted, and nothing else."""

import json

import pytest

from ocr_eval.common.locks import hold

MODEL = "models/tiny-0123456789abcdef-v1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OCR_EVAL_CACHE", str(tmp_path))
    for name, size in {
        f"{MODEL}/model.safetensors": 3000,
        "models/tiny-fetch-x1/model.gguf": 200,
        f"covariance/{'ab' * 16}.safetensors": 10,
        "digests.json": 2,
        "models/my-own-model/model.safetensors": 7,
        "notes.txt": 1,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_ours_is_listed_with_its_size(ocr_eval, cache):
    told = json.loads(ocr_eval("cache", "--json").out)
    assert (told["folder"], told["bytes"]) == (str(cache), 3212)
    assert told["entries"][str(cache / MODEL)] == 3000
    assert len(told["entries"]) == 4
    assert "my-own-model" not in ocr_eval("cache").out


def test_nothing_is_deleted_before_it_is_named_and_agreed_to(ocr_eval, cache):
    before = files(cache)
    answer = ocr_eval("cache", "--clean")
    assert answer.code == 2
    assert MODEL in answer.out
    assert "--yes" in answer.err
    assert ocr_eval("cache", "--yes").code == 2
    assert files(cache) == before


def test_only_what_is_ours_is_deleted(ocr_eval, cache):
    assert ocr_eval("cache", "--clean", "--yes").code == 0
    assert [name for name in files(cache) if not name.endswith(".lock")] == [
        "models/my-own-model/model.safetensors",
        "notes.txt",
    ]
    assert ocr_eval("cache", "--clean", "--yes").code == 0, "an empty cache is clean"


def test_a_cache_in_use_is_left_alone(ocr_eval, cache):
    before = files(cache)
    with hold(cache / f"{MODEL}.lock"):
        assert ocr_eval("cache", "--clean", "--yes").code == 2
    assert set(before) <= set(files(cache))
