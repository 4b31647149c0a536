"""Fonts for names in scripts that matplotlib's own font lacks, such as Chinese, Japanese and Korean."""

import unicodedata
from contextlib import suppress
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, get_font
from matplotlib.text import Text

from ocr_eval.common.messages import warn

_warned = False


def spell(figure: Figure) -> None:
    """Add fonts of this machine to the texts of a figure that need them.

    The first character that no font has causes the only warning; such characters are drawn as boxes.
    """
    global _warned
    for text in figure.findobj(Text):
        own, written = text.get_fontfamily(), frozenset(filter(str.isprintable, text.get_text()))
        lacking = written.difference(*(_characters(findfont(FontProperties(family=[each]))) for each in own))
        if not lacking:
            continue
        families, none = _fonts(lacking)
        text.set_fontfamily([*own, *families])
        if none and not _warned:
            _warned = True
            warn(
                f"No font of this machine has '{none[0]}' ({unicodedata.name(none[0], 'unnamed')}); figures show boxes "
                "instead. Install a font with such characters: Noto Sans CJK for Chinese, Japanese and Korean."
            )


@cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(path).get_charmap()))


@cache
def _fonts(lacking: frozenset[str]) -> tuple[list[str], list[str]]:
    """Installed families that have these characters together, and the characters that none has."""
    found: dict[str, frozenset[str]] = {}
    for path in findSystemFonts():
        with suppress(OSError, RuntimeError, ValueError):  # of a format that matplotlib cannot draw
            if lacking & _characters(path):
                fontManager.addfont(path)  # its list may be older than the font
                found[get_font(path).family_name] = _characters(path)
    families = []
    for name in sorted(found, key=lambda name: (-len(lacking & found[name]), name)):
        if lacking & found[name]:
            families.append(name)
            lacking -= found[name]
    return families, sorted(lacking)
