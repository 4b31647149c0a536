"""ModelSpec -> a local folder of weights, from a hub, packages of the Python index, or a path.

Packages contain GGUF files. pip fetches them without their dependencies; they are checked against the sha256 in
the model's YAML, and unpacked once to safetensors in the cache, where they load in well under a second.
A manifest lists every file of a converted model with its sha256, which is checked before each use; a file that has not
changed since is not read again.

The cache is ``$OCR_EVAL_CACHE``, or the user's cache folder. Hub repositories are fetched by models/hub.py into the hub
library's cache. Only these two modules download models.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import Timeout

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError
from ocr_eval.common.files import open_file, read_json, replacing_folder, write_atomic
from ocr_eval.common.files import remove as remove_path
from ocr_eval.common.locks import hold
from ocr_eval.common.messages import say
from ocr_eval.models import hub
from ocr_eval.specs.model import FolderWeights, HubWeights, ModelSpec, PackageWeights, ServedWeights

MANIFEST = "manifest.json"
_CONVERSION = 1  # raise when the layout of a converted model changes
#: Nanoseconds after which another change of a file is sure to change its time: a file system's clock is coarse.
_SETTLED = 2_000_000_000


@dataclass(frozen=True)
class WeightFolder:
    """Weights on disk: a folder in Hugging Face layout, and the identity of its content."""

    path: Path
    identity: str


def cache_folder() -> Path:
    """The cache folder, in which converted weights are kept."""
    chosen = os.environ.get("OCR_EVAL_CACHE")
    return yaml_files.expand(chosen) if chosen else Path(platformdirs.user_cache_dir("ocr-eval"))


#: What we put into the cache folder: converted models, remains of killed fetches, covariances, digests of files.
_OURS = re.compile(
    r"models/([a-z0-9._-]+(-[0-9a-f]{16}-v\d+|-fetch-\w+)|\.[0-9a-f]{16}\.partial)"
    r"|covariance/[0-9a-f]{32}\.safetensors|digests\.json"
)


def kept() -> dict[Path, int]:
    """Everything that we put into the cache folder, with its size in bytes; other files are ignored."""
    root = cache_folder()
    places = sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern))
    ours = [path for path in places if _OURS.fullmatch(path.relative_to(root).as_posix())]
    return {path: sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file()) for path in ours}


def clean() -> None:
    """Delete everything in ``kept``; the next use fetches or computes it again.

    Raises:
        UserError: another process is using the cache; nothing is deleted.
    """
    with ExitStack() as held:
        for lock in (path for pattern in ("*.lock", "models/*.lock") for path in cache_folder().glob(pattern)):
            try:
                held.enter_context(hold(lock, timeout=0))
            except Timeout as error:
                raise UserError(f"Another process holds {lock}. Clean the cache after it has ended.") from error
        for path in kept():
            remove_path(path)


def cached(spec: ModelSpec, files: list[str] = hub.MODEL_FILES) -> Path | None:
    """The folder of the weights on disk, or None if they would have to be fetched. Does not use the network."""
    if isinstance(spec.weights, FolderWeights):
        return Path(spec.weights.path)
    if isinstance(spec.weights, PackageWeights):
        folder = _converted_folder(spec)
        return folder if (folder / MANIFEST).is_file() else None
    if isinstance(spec.weights, ServedWeights):
        return None
    return hub.cached(spec.weights, files)


def locate(spec: ModelSpec) -> WeightFolder:
    """The weights of a model on disk, fetched if needed.

    Raises:
        UserError: no network and not cached, no access, or a damaged file; with the fix.
    """
    folder = located(spec, hub.MODEL_FILES)
    if isinstance(spec.weights, FolderWeights):
        return WeightFolder(folder, f"folder:{folder_digest(folder)}")
    if isinstance(spec.weights, PackageWeights):
        return WeightFolder(folder, f"gguf:{spec.weights.sha256}")
    assert isinstance(spec.weights, HubWeights), "served weights have no folder"
    return WeightFolder(folder, f"hub:{spec.weights.repo}@{folder.name}")


def located(spec: ModelSpec, files: list[str]) -> Path:
    """A folder with these files of a model (of packages always all files); otherwise as ``locate``."""
    if isinstance(spec.weights, FolderWeights):
        return Path(spec.weights.path)
    if isinstance(spec.weights, PackageWeights):
        return _from_packages(spec, spec.weights)
    if isinstance(spec.weights, ServedWeights):
        raise UserError(f"The weights of {spec.name} are on a server. It can be scored: --endpoint {spec.weights.url}")
    return hub.fetch(spec.weights, spec.called, spec.license, files)


def remove(spec: ModelSpec) -> None:
    """Delete the converted weights of a packaged model from the cache, so that the next use fetches them again."""
    if isinstance(spec.weights, PackageWeights):
        with _lock(spec):
            shutil.rmtree(_converted_folder(spec), ignore_errors=True)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_sha256(path: Path) -> str:
    """The sha256 of a file, cached for as long as its size, time and inode stay the same."""
    stat, place, book = path.stat(), str(path.resolve()), cache_folder() / "digests.json"
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    settled = time.time_ns() - stat.st_mtime_ns > _SETTLED
    match _digests(book).get(place):
        case [*seen, str(sha256)] if seen == mark:
            return sha256
    sha256 = file_sha256(path)
    if settled:
        with suppress(OSError, UserError):  # a cache that cannot be written only costs time
            book.parent.mkdir(parents=True, exist_ok=True)
            with hold(book.with_suffix(".lock")):
                write_atomic(book, json.dumps(_digests(book) | {place: [*mark, sha256]}, indent=0))
    return sha256


def _digests(book: Path) -> dict[str, Any]:
    """The cached digests of files; empty if their own file is missing or damaged."""
    try:
        content = read_json(book)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def folder_digest(folder: Path) -> str:
    """Identity of a model folder: names and contents of configuration, tokenizer, weights, and code if trusted."""
    patterns = [*hub.MODEL_FILES, "*.py"] if hub.trusts_code() else hub.MODEL_FILES
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder} has no .safetensors weights. Save the model with save_pretrained first.")
    lines = [f"{path.name} {_known_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_tensor(folder: Path, name: str) -> Any:
    """Read one tensor of a model on disk, and nothing else.

    Raises:
        UserError: none of the folder's files has it.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name)
    raise UserError(f"{folder} has no tensor '{name}' in safetensors files. Save the complete model.")


# Packages of the Python index


def _converted_folder(spec: ModelSpec) -> Path:
    assert isinstance(spec.weights, PackageWeights)
    return cache_folder() / "models" / f"{spec.name}-{spec.weights.sha256[:16]}-v{_CONVERSION}"


def _lock(spec: ModelSpec) -> AbstractContextManager[object]:
    folder = _converted_folder(spec)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {folder.parent} cannot be created ({error.strerror}). Set OCR_EVAL_CACHE to another."
        ) from error
    return hold(folder.with_name(f"{folder.name}.lock"))


def _from_packages(spec: ModelSpec, weights: PackageWeights) -> Path:
    folder = _converted_folder(spec)
    with _lock(spec):
        if (folder / MANIFEST).is_file():
            _check_manifest(folder, spec)
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{spec.name}-fetch-") as scratch:
            gguf = _fetch_gguf(spec, weights, Path(scratch))
            say(f"Unpacking {spec.name} to safetensors (once, about 20 s)")
            with replacing_folder(folder) as partial:
                _convert(gguf, partial)
                files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
                manifest = {"gguf_sha256": weights.sha256, "files": files}
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


def _fetch_gguf(spec: ModelSpec, weights: PackageWeights, scratch: Path) -> Path:
    """Download the packages, join their parts and check the whole against its sha256."""
    whole = scratch / "model.gguf"
    requirements = [f"{part.package}=={part.version}" for part in weights.parts]
    if hub.offline():
        problem = f"is not in the cache ({cache_folder()}) and the network is disabled."
        raise UserError(f"{spec.name} {problem} {_way_out(spec)}")
    say(f"Fetching {spec.name}: {', '.join(requirements)}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.splitlines() or ["?"]
        last = ([line for line in lines if line.startswith("ERROR")] or lines)[-1].strip()
        raise UserError(f"{spec.name} could not be fetched: pip says '{last}'. {_way_out(spec)}")
    with whole.open("wb") as joined:
        for part in weights.parts:
            wheel = next(scratch.glob(f"{re.sub('[-_.]+', '_', part.package)}-{part.version}-*.whl"), None)
            if wheel is None:
                problem = f"pip downloaded no wheel of {part.package} {part.version}"
                raise UserError(f"{spec.name}: {problem}. {_way_out(spec)}")
            with zipfile.ZipFile(wheel) as archive:
                if part.file not in archive.namelist():
                    raise UserError(f"{spec.name}: {wheel.name} has no file '{part.file}'. Correct the model's YAML.")
                with archive.open(part.file) as source:
                    shutil.copyfileobj(source, joined)
            wheel.unlink()
    found = file_sha256(whole)
    if found != weights.sha256:
        raise UserError(
            f"{spec.name}: the fetched weights have sha256 {found[:16]}... and the model's YAML expects "
            f"{weights.sha256[:16]}...; nothing was kept. Check the package versions in the YAML."
        )
    return whole


def _way_out(spec: ModelSpec) -> str:
    return (
        f"On a machine with network run 'ocr-eval models pull {spec.name}' and copy its cache folder here "
        "(OCR_EVAL_CACHE), or give pip a folder with the wheels (PIP_NO_INDEX=1 PIP_FIND_LINKS=folder)."
    )


def _convert(gguf: Path, target: Path) -> None:
    """Unpack a GGUF file to bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from ocr_eval.models.loading import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config._name_or_path = ""
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _check_manifest(folder: Path, spec: ModelSpec) -> None:
    """Raises UserError if a file is missing or differs from what was converted."""
    try:
        files: dict[str, str] = read_json(folder / MANIFEST)["files"]
        damaged = [name for name, sha256 in files.items() if _known_sha256(folder / name) != sha256]
    except (UserError, OSError, LookupError, TypeError, AttributeError):
        damaged = [MANIFEST]
    if damaged:
        raise UserError(
            f"{folder / damaged[0]} is damaged or missing (its sha256 is not the one it was saved with). "
            f"Fetch it again with: ocr-eval models pull {spec.name} --force"
        )
