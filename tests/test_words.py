"""Wordings that kept recurring and that a native writer would not use stay out of pages, help and sources."""

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "ocr_eval/docs").glob("*.md"), ROOT / "toy/README.md"]
PAGES += [*(ROOT / "results").rglob("*.md"), *(ROOT / "data").rglob("*.yaml"), *(ROOT / "configs").rglob("*.yaml")]
SOURCES = [path for part in ("ocr_eval", "toy/ocr_toy") for path in (ROOT / part).rglob("*.[pj][y2]")]
UNIT = "(?:column|core|edit|epoch|file|group|job|lane|layer|line|method|pack|run|seed|step|subject|token|unit)"
#: A wording to avoid anywhere, and what to write.
EVERYWHERE = {
    r"go(?:es)? on\b": "resume, continue",
    r"anew\b": "again",
    r"(?:is|are|was|were|be) (?:told|said)\b": "is reported; or who says it",
    r"by commas\b": "comma-separated",
    r"(?<!there )is no (?!better|less|longer|more)": "is not a",
    r"looks? whether\b": "check",
    r"left out\b": "skipped, omitted",
    r"at the least\b": "at least",
    r"of yours\b": "your own",
    r"lies? in\b": "is in",
    rf"(?:line|nats|pass|process|row|seconds) an? {UNIT}\b(?!')": "per",
}
#: And in prose that users read.
IN_PAGES = {
    r"beside\b": "with, next to",
    r"stands?\b(?!-| alone)": "is",
    r"of (?:which|whom)\b": "a sentence of its own",
    r"whole numbers\b": "integers",
    r"foretell|foretold": "predict",
    r"the very\b": "the same",
    r"as many as\b": "the same number",
    r"is to be\b": "must be",
}


def to_avoid(paths: Iterable[Path], wordings: dict[str, str]) -> dict[str, str]:
    """Each place where a wording is, with what to write there; code of pages is not prose."""
    found = {}
    for path in paths:
        text = path.read_text()
        if path.suffix == ".yaml":  # what is for people
            text = "\n".join(re.findall(r"#.*|description: .*|^  - [A-Z].*", text, re.M))
        elif path.suffix == ".md" and path.name != "commands.md":
            text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        text = " ".join(text.split())
        for wording, better in wordings.items():
            for match in re.finditer(rf"\b{wording}", text, re.I):
                found[f"{path.relative_to(ROOT)}: {text[match.start() - 40 : match.end() + 20]}"] = better
    return found


def test_pages_and_help_are_written_as_a_native_writes():
    assert to_avoid(PAGES, EVERYWHERE | IN_PAGES) == {}


def test_sources_are_written_as_a_native_writes():
    assert len(SOURCES) > 200
    assert to_avoid(SOURCES, EVERYWHERE) == {}
