"""The ``ocr-eval`` command and its exit codes: 0 done, 1 failed or incomplete, 2 bad input, 130 interrupted."""

import errno
import io
import json
import os
import re
import signal
import sys
from typing import Annotated, Any

import typer
import typer.main
import yaml
from ocr_toy.cli import app as toy
from ocr_toy.errors import Stopped, ToyError
from safetensors import SafetensorError
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from ocr_eval.cli import (
    data,
    demo,
    explain,
    facts,
    finetune_score,
    models,
    registries,
    results,
    studies,
    sweep,
    variables,
)
from ocr_eval.cli.one_run import OneRun
from ocr_eval.cli.options import JsonOption
from ocr_eval.cli.retention import retention
from ocr_eval.cli.spec_flags import option
from ocr_eval.common.distributed import is_alone, is_first
from ocr_eval.common.errors import RunFailed, UserError, closest, one_line, reason_of, shown
from ocr_eval.common.registry import MEASURES, METHODS, PREVENTIONS


class _Commands(TyperGroup):
    """All commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(str(error)) from error

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands in groups, each with its summary."""
        width = max(map(len, self.commands))
        for group in _GROUPS:
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (f"{name:{width}}", command.get_short_help_str(formatter.width - width - 6))
                        for name, command in self.commands.items()
                        if getattr(command, "rich_help_panel", None) == group
                    ]
                )


#: The groups of commands in help.
_GROUPS = ("Teach", "Score", "Look", "Study", "Extend")

app = typer.Typer(
    name="ocr-eval",
    cls=_Commands,
    help="Measure what else a language model learns when it is taught facts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=OneRun, rich_help_panel="Teach")(finetune_score.finetune)
_SEEN = (results.table, results.figures, results.compare, results.scorecard, retention, results.report)
for panel, commands in {
    "Teach": (sweep.sweep, sweep.status, demo.demo),
    "Score": (finetune_score.score, facts.beliefs),
    "Look": (facts.audit, explain.explain, *_SEEN),
    "Study": (studies.controls, studies.curve),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(data.app, name="data", rich_help_panel="Extend")
app.add_typer(models.app, name="models", rich_help_panel="Extend")
for registry, about in (
    (METHODS, "List and show methods of teaching facts."),
    (PREVENTIONS, "List and show preventions of unwanted inference."),
    (MEASURES, "List and show measures of a trained model."),
):
    app.add_typer(registries.door(registry, about), name=f"{registry.noun}s", rich_help_panel="Extend")
app.add_typer(toy, name="toy", rich_help_panel="Study")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from ocr_eval import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(rich_help_panel="Extend")
def doctor(as_json: JsonOption = False) -> None:
    """Show versions, devices, memory, caches and network state."""
    from ocr_eval.cli.doctor import examine

    found = examine()
    shown = json.dumps(found, indent=2) if as_json else yaml.safe_dump(found, sort_keys=False, width=120).rstrip()
    typer.echo(shown)


@app.command(rich_help_panel="Extend")
def cache(
    clean: Annotated[bool, option("--clean", help="Delete everything listed, after confirmation.")] = False,
    yes: Annotated[bool, option("--yes", "-y", help="Delete without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show or clear the model cache.

    Hub repositories are in the hub library's own cache ('hf cache ls'). Files that ocr-eval did not write are kept.
    """
    from ocr_eval.models import weights

    if yes and not clean:
        raise UserError("--yes needs --clean. Add --clean, or drop --yes.")
    found, folder = weights.kept(), weights.cache_folder()
    if as_json:
        sizes = {str(path): size for path, size in found.items()}
        typer.echo(json.dumps({"folder": str(folder), "bytes": sum(found.values()), "entries": sizes}, indent=2))
    else:
        lines = [f"{size / 1e6:10,.1f} MB  {path.relative_to(folder)}" for path, size in found.items()]
        typer.echo("\n".join([f"{sum(found.values()) / 1e6:10,.1f} MB  {folder}", *lines]))
    if not clean or not found:
        return
    if not (yes or (sys.stdin and sys.stdin.isatty() and typer.confirm("Delete everything listed?", err=True))):
        raise UserError("Nothing was deleted. Add --yes to delete everything listed; it is fetched again when needed.")
    weights.clean()
    typer.echo("deleted", err=True)


INTERRUPTED = 130
PROGRAM = "ocr-eval"
#: The commands that make runs, and resume them when they are repeated.
_RESUMED = ("finetune", "sweep", "demo", "controls", "curve")
#: Set by a shell that requests completions.
COMPLETION = "_OCR_EVAL_COMPLETE"


def main() -> None:
    """Run the command line and exit with its exit code. SIGTERM acts like Ctrl-C.

    Exceptions: if SIGTERM is ignored, or under a launcher of several processes, which uses it to end them.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and is_alone():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name may not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run()
    for number in (signal.SIGINT, signal.SIGTERM):  # there is nothing left to interrupt
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors that the user can fix are one line on stderr."""
    if "NO_COLOR" in os.environ:
        os.environ["TERM"] = "dumb"
    command = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else arguments
    if COMPLETION not in os.environ and "--worker" not in given and is_first():  # these would repeat the warnings
        for warning in variables.warnings(command):
            print(f"ocr-eval: {warning}", file=sys.stderr)
    if any("\0" in word for word in given):
        return _fail("A value contains a NUL character, which names cannot have. Remove it.", 2)
    try:
        _refuse_empty(given)
        code = command(given, prog_name=PROGRAM, standalone_mode=False)
    except TyperException as error:
        if error.format_message().startswith("Usage:"):  # no arguments: the help itself
            print(error.format_message(), file=sys.stderr)
            return 2
        return _fail(_usage_problem(error), 2)
    except (UserError, ToyError) as error:
        return _fail(str(error), 2)
    except RunFailed as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, Abort, Stopped) as error:
        kept = " Finished work is kept; rerun the command to resume." if given[:1] and given[0] in _RESUMED else ""
        text = str(error) or f"Interrupted.{kept}"
        again = " Drop --force then, or finished runs start over." if "--force" in given else ""
        return _fail(text + again, INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (OSError, SafetensorError) as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) in full or any(f"os error {number}" in str(error) for number in full):
            return _fail("The disk is full. Free some space and rerun the command, which then resumes.", 1)
        return _fail(_file_problem(error), 2)
    except MemoryError:
        return _fail("There is not enough memory for this. Do less at once, or use a machine with more.", 1)
    except UnicodeEncodeError as error:
        return _fail(f"{shown(error.object)} cannot be written as text. Use a name in plain letters.", 2)
    return code if isinstance(code, int) else 0


def _refuse_empty(words: list[str]) -> None:
    """Raise a UserError if a word is empty, as from an unset shell variable: no flag accepts that."""
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not (value if equals and flag.startswith("-") else word).strip():
            of = flag if equals else before if before.startswith("-") else ""
            raise UserError(f"{f'The value of {of}' if of else 'An argument'} is empty. Give one, or drop it.")


def _usage_problem(error: TyperException) -> str:
    """What is wrong with a command line, the value at fault, and the command whose help explains it."""
    from pydantic import ValidationError

    text = error.format_message().strip()
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is None:
        return text
    if isinstance(error.__cause__, ValidationError) and isinstance(error, typer.BadParameter) and error.param:
        given = error.__cause__.errors()[0]["input"]
        flag = error.param.opts[0]
        source = context.get_parameter_source(str(error.param.name))
        if source is not None and source.name == "DEFAULT_MAP":
            flag = f"{flag}' in '{context.params.get('config')}"
        elif source is not None and source.name == "ENVIRONMENT":
            flag = str(error.param.envvar)
        problem = error.message.removeprefix("Value error, ")
        if problem.startswith(f"{given!r} is not one of"):
            close = closest(str(given), re.findall(r"'(.*?)'", problem)[1:])
            problem += f" Did you mean '{close}'?" if close else ""
        text = f"Invalid value for '{flag}': {given!r}. {problem}"
    if text.startswith("No such option: -"):  # the library would list whatever is spelled a little alike
        text = _unknown_flag(context, str(getattr(error, "option_name", "")))
    return f"{text.rstrip('.')}{'' if text.endswith('?') else '.'} See '{context.command_path} --help'."


def _unknown_flag(context: typer.Context, flag: str) -> str:
    """What to write in place of a flag that a command does not have."""
    name, command = flag.lstrip("-"), context.command
    if any(each.param_type_name == "argument" and each.name == name for each in command.params):
        return f"No such option: {flag}. Give {name.upper()} without a flag."
    names = [each.lstrip("-") for param in command.params for each in param.opts if each.startswith("--")]
    if close := closest(name, names):
        return f"No such option: {flag}. Did you mean '--{close}'?"
    others = variables.commands(context.find_root().command)
    owner = next((words for words, other in others if any(flag in param.opts for param in other.params)), None)
    return f"No such option: {flag}." + (f" It is one of '{PROGRAM}{owner}'." if owner else "")


#: The fix for a file problem, by error number.
_FIXES = {
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "There is a file in place of a folder: choose another path.",
    errno.EISDIR: "There is a folder in place of a file: remove it, or choose another path.",
}


def _file_problem(error: Exception) -> str:
    """What is wrong with a file, and how to fix it."""
    if not isinstance(error, OSError) or error.errno is None:
        return f"{reason_of(error)}. Check the files given to the command."
    where = f"'{error.filename}': " if error.filename is not None else ""
    return f"{where}{error.strerror}. {_FIXES.get(error.errno, 'Check its permissions, or choose another.')}"


def _fail(message: str, code: int) -> int:
    print(f"ocr-eval: {one_line(message)}", file=sys.stderr)
    return code
