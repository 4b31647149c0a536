"""``finetune`` does one run: for several models, associations or settings, its error points to ``sweep``."""

import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from ocr_eval.cli.spec_flags import flag_of
from ocr_eval.common.errors import UserError
from ocr_eval.specs.settings import PLURAL, SETTINGS

#: Flags of one run, and the flags of ``sweep`` that take several of their values.
_SWEEP_FLAG = {
    **{flag_of(name): flag_of(PLURAL[name]) for name in ("model", "assoc")},
    **{flag_of(each.name): flag_of(each.axis) for each in SETTINGS.values() if each.name != "dtype"},
}
_SINGLE = {many: one for one, many in _SWEEP_FLAG.items() if many not in _SWEEP_FLAG}
_LISTS = {flag_of(each.name) for each in SETTINGS.values() if each.is_list}
_WHOLE = {flag_of(each.name) for each in SETTINGS.values() if each.is_whole}


class OneRun(TyperCommand):
    """A command that rejects several values for flags that take one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the words before they are parsed.

        Raises:
            UserError: a list in place of one value, or a flag of ``sweep``.
        """
        words = [] if ctx.resilient_parsing or "--help" in args else args  # not for shell completion or help
        if words and not words[0].startswith("-"):
            words = ["--assoc", *words]
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            flag, equals, value = word.partition("=")
            value = value if equals else following
            is_range = flag in _WHOLE and re.fullmatch("[0-9]+-[0-9]+", value) is not None
            is_list = "," in value and flag not in _LISTS and not Path(value).exists()
            several = flag in _SWEEP_FLAG and (is_range or is_list)
            if several or flag in _SINGLE:
                takes = f"{flag} takes one value" if several else f"'finetune' does one run and takes {_SINGLE[flag]}"
                sweep = f"'ocr-eval sweep {_SWEEP_FLAG.get(flag, flag)} {value}' with the other flags"
                if any(each.partition("=")[0] == "--facts" for each in words):  # which a sweep does not have
                    sweep = "a sweep whose --assocs names a YAML file of the table, or rerun it with another value"
                raise UserError(f"{takes}: for several, use {sweep}.")
        return super().parse_args(ctx, args)
