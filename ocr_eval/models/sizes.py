"""Limits on the sizes in a configuration, checked before a library tries to build, say, a hundred million layers."""

from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError, shown
from ocr_eval.common.files import read_json

#: Maximum values of fields of config.json, by the end of their names.
_MOST = {
    **dict.fromkeys(("layers", "n_layer", "depth"), 1_000),
    **dict.fromkeys(("heads", "n_head", "experts"), 10_000),
    **dict.fromkeys(("_size", "_dim", "n_embd", "n_inner"), 10_000_000),
}


def refuse_impossible(folder: Path) -> None:
    """Check the sizes in a folder's config.json, if it has one.

    Raises:
        UserError: a size is impossible, or the file is unreadable, not JSON or too large.
    """
    path = folder / "config.json"
    sections: list[Any] = [read_json(path)] if path.is_file() else []
    while sections:
        section = sections.pop()
        for key, value in section.items() if isinstance(section, dict) else ():
            sections.append(value)
            most = next((most for ending, most in _MOST.items() if key.endswith(ending)), None)
            if most is not None and isinstance(value, int | float) and not value <= most:
                raise UserError(f"{path} has '{key}': {shown(value)}; no model has more than {most:,}.")
