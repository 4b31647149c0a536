"""``finetune`` does one run: lists of models, associations or seeds are pointed to ``sweep``, with the command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from ocr_eval.cli.spec_flags import flag_of
from ocr_eval.common.errors import UserError
from ocr_eval.specs.settings import PLURAL, SETTINGS

#: Flags of one run, and what ``sweep`` calls those that it takes several of.
_SWEEP_FLAG = {
    **{flag_of(name): flag_of(PLURAL[name]) for name in ("model", "assoc")},
    **{flag_of(each.name): flag_of(each.axis) for each in SETTINGS.values() if each.name != "dtype"},
}
_LISTS = {flag_of(each.name) for each in SETTINGS.values() if each.is_list}
_WHOLE = {flag_of(each.name) for each in SETTINGS.values() if each.is_whole}
_SEVERAL_NUMBERS = re.compile(r"[0-9]+-[0-9]+")


class OneRun(TyperCommand):
    """A command that refuses several values where it takes one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the words before they are parsed.

        Raises:
            UserError: a list in place of one value, or a flag of ``sweep``; names the sweep to run.
        """
        if ctx.resilient_parsing or "--help" in args:  # a shell asks for completions, or a person for help
            return super().parse_args(ctx, args)
        switches = {
            flag for parameter in self.params if getattr(parameter, "is_flag", False) for flag in parameter.opts
        }
        given = _flags(args, switches | {"--help"})
        for flag, value in given:
            several = flag in _SWEEP_FLAG and _is_several(flag, value)
            if several or (flag in _SWEEP_FLAG.values() and flag not in _SWEEP_FLAG):
                single = next(one for one, many in _SWEEP_FLAG.items() if flag in (one, many))
                takes = f"{flag} takes one value" if several else f"'finetune' does one run and takes {single}"
                sweep = {option for p in ctx.parent.command.commands["sweep"].params for option in p.opts}
                raise UserError(f"{takes}: for several, use '{_sweep(given, sweep - {'--config', '-C'})}'.")
        return super().parse_args(ctx, args)


def _is_several(flag: str, value: str) -> bool:
    is_range = flag in _WHOLE and _SEVERAL_NUMBERS.fullmatch(value) is not None
    return is_range or ("," in value and flag not in _LISTS and not Path(value).exists())


def _flags(words: Sequence[str], switches: set[str]) -> list[tuple[str, str]]:
    """The flags of a command line with their values; the association may stand without its flag."""
    flags, rest = [], iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            flags.append(("--assoc", word))
        elif word in switches or equals:
            flags.append((flag, value))
        else:
            flags.append((flag, next(rest, "")))
    return flags


def _sweep(given: Sequence[tuple[str, str]], takes: set[str]) -> str:
    """The ``sweep`` of the same flags."""
    named = [
        (_SWEEP_FLAG.get(flag, flag), value.replace(",", "+") if flag in _LISTS else value) for flag, value in given
    ]
    return shlex.join(["ocr-eval", "sweep", *(word for pair in named if pair[0] in takes for word in pair if word)])
