"""Reading a model's folder with transformers: quietly, without the network, and its own code only if trusted."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from ocr_eval.common.errors import UserError, shown
from ocr_eval.common.files import read_json
from ocr_eval.models.hub import trusts_code

#: Maximum values of fields of config.json, by the end of their names: no library should try to build more.
_MOST = {
    **dict.fromkeys(("layers", "n_layer", "depth"), 1_000),
    **dict.fromkeys(("heads", "n_head", "experts"), 10_000),
    **dict.fromkeys(("_size", "_dim", "n_embd", "n_inner"), 10_000_000),
}


def from_folder(kind: Any, folder: Path, **given: Any) -> Any:
    """What one of transformers' Auto classes reads from a folder.

    Raises:
        UserError: config.json has an impossible size, or is unreadable, not JSON or too large.
        Exception: whatever the libraries raise about arbitrary files.
    """
    _refuse_impossible(folder / "config.json")
    with quiet_transformers():
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=trusts_code(), **given)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the library's bars and advice off the terminal while loading; exceptions still come through."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _refuse_impossible(path: Path) -> None:
    sections: list[Any] = [read_json(path)] if path.is_file() else []
    while sections:
        section = sections.pop()
        for key, value in section.items() if isinstance(section, dict) else ():
            sections.append(value)
            most = next((most for ending, most in _MOST.items() if key.endswith(ending)), None)
            if most is not None and isinstance(value, int | float) and not value <= most:
                raise UserError(f"{path} has '{key}': {shown(value)}; no model has more than {most:,}.")
