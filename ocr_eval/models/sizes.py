"""What a configuration may state, checked before a library makes something of each of a hundred million layers."""

from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError, shown
from ocr_eval.common.files import read_json

#: The largest value of a field of config.json, by the end of its name.
_MOST = {
    **dict.fromkeys(("layers", "n_layer", "depth"), 1_000),
    **dict.fromkeys(("heads", "n_head", "experts"), 10_000),
    **dict.fromkeys(("_size", "_dim", "n_embd", "n_inner"), 10_000_000),
}


def refuse_impossible(folder: Path) -> None:
    """Check the sizes in a folder's config.json, if it has one.

    Raises:
        UserError: one that no model has, or the file is not readable, not JSON or too large.
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
