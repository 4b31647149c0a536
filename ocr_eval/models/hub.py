"""A repository of the model hub -> a folder in the hub library's own cache.

Only configuration, tokenizer and safetensors of the repository's root are fetched: no pickled weights, code only with
--trust-remote-code, no second copy of the weights in another layout. A pinned commit that is in the cache is used
without contacting the hub; a branch is resolved to its newest commit. The library's variables apply (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE). An interrupted download resumes, and complete files are kept.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from ocr_eval.common import yaml_files
from ocr_eval.common.errors import UserError, reason_of
from ocr_eval.common.files import read_json
from ocr_eval.common.messages import is_quiet, say
from ocr_eval.specs.model import HubWeights

TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
MODEL_FILES = [*TOKENIZER_FILES, "*.safetensors"]
#: Other layouts of the same weights: subfolders (original/, onnx/) and consolidated*.safetensors.
_IGNORED = ["*/*", "consolidated*"]
#: Every tokenizer has at least one of these files.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "tekken.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Bytes that must stay free on the disk after a download.
DISK_RESERVE = 1_000_000_000


#: The environment variable for --trust-remote-code.
TRUST = "OCR_EVAL_TRUST_REMOTE_CODE"


def offline() -> bool:
    """Whether our own variable or the hub's disables the network."""
    return _is_on("OCR_EVAL_OFFLINE") or _is_on("HF_HUB_OFFLINE")


def trusts_code() -> bool:
    """Whether models may run their own code. Every ``from_pretrained`` gets this, or it would ask on stdin."""
    return _is_on(TRUST)


def why_not_loaded(error: Exception) -> str:
    """Why a model does not load, in one line."""
    asks = "trust_remote_code" in str(error)
    return "it needs its own code; --trust-remote-code runs it" if asks else reason_of(error)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("1", "true", "yes", "on")


def cached(weights: HubWeights, files: list[str] = MODEL_FILES) -> Path | None:
    """The repository's folder if all its files are in the cache, else None. Does not use the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**_request(weights, files), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    whole = (folder / "config.json").is_file() and any(any(folder.glob(name)) for name in _TOKENIZERS)
    return folder if whole and ("*.safetensors" not in files or _has_weights(folder)) else None


def fetch(weights: HubWeights, name: str, license: str, files: list[str]) -> Path:
    """The repository's folder in the cache, fetched if needed; the folder is named after the commit.

    ``name``, what the user calls the model, and ``license`` are for messages.

    Raises:
        UserError: offline and not cached, no access, no such repository or revision, no safetensors, a disk that is
            too small (checked before anything is fetched), or a failed download; with the fix.
    """
    if offline() or _COMMIT.fullmatch(weights.revision):
        here = cached(weights, files)
        if here is not None:
            return here
    if offline():
        raise UserError(
            f"{weights.repo} is not in the hub cache, and the network is disabled. Online, run "
            f"'ocr-eval models pull {name}', then copy the cache (HF_HOME) here, or give a folder: --model ./folder."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import disable_progress_bars

    if is_quiet() or not sys.stderr.isatty():
        disable_progress_bars()
    request = _request(weights, files)
    try:
        _check_before(request, name)
        folder = Path(snapshot_download(**request))
    except (HTTPError, OSError) as error:
        raise UserError(_problem(weights, name, license, error)) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{weights.repo} has no config.json, so transformers cannot load it. Choose another.")
    return folder


def _problem(weights: HubWeights, name: str, license: str, error: Exception) -> str:
    """Why a repository could not be fetched, and the fix."""
    from huggingface_hub import constants, errors

    repo, page = weights.repo, f"{constants.ENDPOINT}/{weights.repo}"
    login = 'log in with "hf auth login" or set HF_TOKEN.'
    answer = getattr(error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error, "response", None)
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated and this account has no access ({license}). Ask for it at {page}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision '{weights.revision}'. See {page}/commits/main for those it has."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The hub shows no repository {repo} to this account. Check the name; if it is private, {login}"
    if getattr(answer, "status_code", None) in (401, 403):
        return f"The hub denies this account access to {repo} ({reason_of(error)}). Ask for it at {page}, then {login}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{repo} is incomplete in the hub cache, and the hub cannot be reached. Run 'ocr-eval models pull {name}' "
            "online, or give a folder: --model ./folder."
        )
    return f"{repo} could not be fetched: {reason_of(error)}. Try again: complete files are kept."


def _request(weights: HubWeights, files: list[str]) -> dict[str, Any]:
    return {
        "repo_id": weights.repo,
        "revision": weights.revision,
        "allow_patterns": [*files, "*.py"] if trusts_code() else files,
        "ignore_patterns": _IGNORED,
    }


def _check_before(request: dict[str, Any], name: str) -> None:
    """Raises UserError if the disk is too small for the download, or the repository has no safetensors."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(**request, dry_run=True)
    except DryRunError:  # no listing is available; the download itself reports why, or finds a cached copy
        return
    has_weights = any(file.filename.endswith(".safetensors") for file in files)
    if "*.safetensors" in request["allow_patterns"] and not has_weights:
        raise UserError(
            f"{request['repo_id']} has no .safetensors weights, and pickled weights are not loaded. "
            "Choose a revision that has them, or convert the model and give its folder: --model ./folder."
        )
    size = sum(file.file_size for file in files if file.will_download)
    if size == 0:
        return
    cache = yaml_files.expand(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if free < size + DISK_RESERVE:
        raise UserError(
            f"{name} needs {size / 1e9:.1f} GB more in the hub cache {cache}, but {free / 1e9:.1f} GB are free. "
            "Make room, or set HF_HOME to a larger disk."
        )
    if size > 1_000_000:
        say(f"Fetching {name}: {size / 1e9:.1f} GB into {cache}")


def _has_weights(folder: Path) -> bool:
    """Whether the weights are complete: every file that the index names, or any file if there is no index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(read_json(index)["weight_map"].values())
        return all((folder / name).is_file() for name in names)
    except (UserError, LookupError, TypeError, AttributeError):
        return False
