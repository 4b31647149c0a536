"""Shared by several commands: options, --config, the run that a command line describes, and tables."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ocr_eval.cli.spec_flags import Given, option
from ocr_eval.common import distributed, messages, yaml_files
from ocr_eval.common.errors import UserError, one_line, unknown_name
from ocr_eval.common.registry import DEFAULT_MEASURES, MEASURES
from ocr_eval.common.yaml_files import shipped_names
from ocr_eval.methods.method import ignored_by
from ocr_eval.models import hub
from ocr_eval.specs.association import Association, load_association
from ocr_eval.specs.model import ModelSpec, load_model_spec
from ocr_eval.specs.run import RunSpec, Scoring, make_run_spec, run_seeds
from ocr_eval.specs.settings import section

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_OUTPUT = Path("results")
#: The default seeds of commands that compare runs.
THREE_SEEDS = "0-2"
_MOST_WARNINGS = 10


def _names(part: str) -> Callable[[str], list[str]]:
    """Shell completion from a folder of shipped YAML files."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in shipped_names(part) if name.startswith(incomplete)]

    return complete


model_names, assoc_names = _names("models"), _names("templates")

#: Commands that accept a run's config.yaml as --config.
_TAKE_A_RUN = ("finetune", "score", "controls", "curve", "export")
RUN = "run of --config"


def _config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the flags in a YAML file as defaults; variables, and then flags on the command line, take precedence."""
    if path is None or context.resilient_parsing:
        return path

    if path.is_dir():
        raise UserError(f"--config '{path}' is a folder. Name a file, such as the config.yaml in a run's folder.")
    if not path.is_file():
        raise UserError(f"--config '{path}': there is no such file. Check the path.")
    options = {flag.lstrip("-"): p for p in context.command.params for flag in p.opts if flag.startswith("--")}
    defaults: dict[str, Any] = {}
    content = yaml_files.read_yaml(path)
    if isinstance(content.get("association"), dict):
        content = {flag: value for flag, value in _run_flags(context, path).items() if flag in options}
    for key, value in content.items():
        flag = str(key).replace("_", "-")
        parameter = options.get(flag)
        if parameter is None or flag == "config":
            raise unknown_name(f"flag in {path}", str(key), set(options) - {"config", "help"})
        if value is not None and not str(value).strip():
            raise UserError(f"{path}: '{key}' is empty. Give a value, or remove it.")
        if parameter.name in defaults:
            raise UserError(f"{path}: '{key}' is given twice, with '-' and with '_'. Give it once.")
        is_switch = getattr(parameter, "is_flag", False)
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) != is_switch or isinstance(entry, dict | list) for entry in entries):
            raise UserError(f"{path}: YAML reads '{key}' as {value!r}. Quote the word, or give a plain value.")
        if value is not None and getattr(parameter, "multiple", False):
            value = [str(entry) for entry in entries]
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        defaults[str(parameter.name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _run_flags(context: typer.Context, path: Path) -> dict[str, Any]:
    """Flags for the run of a config.yaml. ``resolve`` also needs the run itself, because no flag states all of it."""
    from ocr_eval.records.config import read_run

    if context.command.name not in _TAKE_A_RUN:
        raise UserError(
            f"--config '{path}' describes a single run, which '{context.command_path}' does not take. Give it "
            "to 'ocr-eval finetune', or give a file of flags by name."
        )
    run = read_run(path)
    context.meta[RUN] = (str(path), run)
    return {"model": str(path), "assoc": str(path)}


ConfigOption = Annotated[
    Path | None, option("--config", "-C", help="YAML file of flags, e.g. 'epochs: 8'.", callback=_config, is_eager=True)
]
_MODEL_HELP = "Model: a name ('ocr-eval models list'), YAML file, folder or org/name."
_ASSOC_HELP = "Association: a name ('ocr-eval data list') or YAML file."
ModelOption = Annotated[str, option("--model", help=_MODEL_HELP, autocompletion=model_names)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=model_names)]
AssocOption = Annotated[str | None, option("--assoc", help=_ASSOC_HELP, autocompletion=assoc_names)]
ModelsOption = Annotated[str | None, option("--models", help="Comma-separated models (default: smollm2-135m).")]
AssocsOption = Annotated[
    str | None, option("--assocs", help="Comma-separated associations (default: the paper's five).")
]

OfflineOption = Annotated[bool, option("--offline", help="Stay off the network; fail if a file has to be fetched.")]
TrustOption = Annotated[
    bool, option("--trust-remote-code", help="Run Python code from the model's repository; off by default.")
]
OutputOption = Annotated[Path, option("--output-dir", "-o", help="Output folder; runs go into its runs/.")]
JsonOption = Annotated[bool, option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, option("--quiet", "-q", help="Show no progress on stderr.")]
DryRunOption = Annotated[bool, option("--dry-run", help="Print the plan, with memory and time, and stop.")]
ForceOption = Annotated[bool, option("--force", help="Rerun even if a finished run exists.")]
ScoreAtOption = Annotated[
    str | None,
    option(
        "--score-at",
        help="After which epochs to score all probes: doubling (1, 2, 4, 8 ...), every, every:5, last, or '1,3,12'; "
        "always at 0, at the last, and when everything taught is first learned.  [default: doubling]",
    ),
]
MeasuresOption = Annotated[
    str | None, option("--measures", help="Measures: 'a,b' from 'measures list', 'default,a' for one more, or none.")
]
ScoringOption = Annotated[Scoring, option("--scoring", help="Scoring to rank by; first-token is the published one.")]

_READ = "Folders that contain runs, at any depth (default: $OCR_EVAL_OUTPUT_DIR, else results)."
RunsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="RUNS", help=_READ, envvar="OCR_EVAL_OUTPUT_DIR", show_envvar=False)
]


def warn(text: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"ocr-eval: {one_line(text)}", err=True)


def warn_skipped(complaints: Sequence[UserError]) -> None:
    """Warn about the first files that cannot be used, and how many more there are."""
    for complaint in complaints[:_MOST_WARNINGS]:
        warn(f"{complaint} Skipped.")
    if more := len(complaints[_MOST_WARNINGS:]):
        warn(f"{more:,} more files cannot be read. Skipped.")


def exit_if_damaged(complaints: Sequence[UserError]) -> None:
    """Exit with code 1 if something could not be read, but not for a run that was found twice."""
    from ocr_eval.records.find import Repeated

    if not all(isinstance(complaint, Repeated) for complaint in complaints):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Assoc:
    """The association that a command is about, given by position, --assoc, its variable or --config."""

    association: Annotated[
        str | None,
        typer.Argument(metavar="ASSOC", help="The association; the same as --assoc.", autocompletion=assoc_names),
    ] = None
    assoc: AssocOption = None

    @property
    def given(self) -> str | None:
        """Its name or file."""
        return self.association or self.assoc

    def one(self, context: typer.Context) -> str:
        """The same.

        Raises:
            UserError: there is none, or there are two different ones on the command line.
        """
        differ = self.association and self.assoc and self.association != self.assoc
        if differ and "assoc" in stated(context, "COMMANDLINE"):
            raise UserError(f"Two associations are given, '{self.association}' and --assoc '{self.assoc}'. Give one.")
        if not self.given:
            raise UserError(
                f"Which association? Give its name ('{context.command_path} country-code') or --assoc; 'ocr-eval data "
                "list' shows the shipped ones."
            )
        return self.given


def stated(context: typer.Context, *sources: str) -> list[str]:
    """The command's parameters whose values have one of these sources; by default the command line or --config."""
    among = sources or ("COMMANDLINE", "DEFAULT_MAP")
    found = {str(each.name): context.get_parameter_source(str(each.name)) for each in context.command.params}
    return [name for name, source in found.items() if source is not None and source.name in among]


def measures(text: str | None) -> tuple[str, ...] | None:
    """Names of measures: empty for ``none``, None for None.

    Raises:
        UserError: there is no measure of that name.
    """
    names = () if text == "none" else words("--measures", text)
    known = [DEFAULT_MEASURES, *MEASURES.names()]
    for name in names or ():
        if name not in known:
            raise unknown_name("measure", name, known)
        if name != DEFAULT_MEASURES:
            MEASURES.get(name)
    return names


def words(flag: str, text: str | None, each_once: bool = True) -> tuple[str, ...] | None:
    """The entries of 'a,b', None for None.

    Raises:
        UserError: an empty entry, or a repeated one.
    """
    if text is None:
        return None
    entries = tuple(part.strip() for part in text.split(","))
    if not all(entries):
        raise UserError(f"{flag} '{text}' has an empty entry. Write it as 'a,b'.")
    ((entry, count),) = Counter(entries).most_common(1)
    if each_once and count > 1:
        raise UserError(f"{flag} '{text}' names {entry} twice. Give each once.")
    return entries


def begin(quiet: bool = False, offline: bool = False) -> None:
    """Set environment variables and filters that must be set before any library is imported."""
    messages.be_quiet(quiet or not distributed.is_first())
    if not distributed.is_first():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # By default GNU OpenMP's threads spin for so long at each of the thousands of small parallel regions of a step that
    # one other busy process on the machine makes training 10 to 60 times slower; a limit of 3,000 spins costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if offline or hub.offline():
        os.environ["HF_HUB_OFFLINE"] = "1"


def resolve(context: typer.Context, model: str | ModelSpec, assoc: str | Association, settings: Given) -> RunSpec:
    """The run that a command's flags describe; other settings are those of a run given as --config, or the defaults.

    Raises:
        UserError: a name that does not exist, or an invalid value.
    """
    path, run = context.meta.get(RUN, ("", None))
    if isinstance(model, str):
        model = run.model if run and model == path else load_model_spec(model)
    spec = model.model_copy(update=section("model", settings))
    if isinstance(assoc, str):
        assoc = run.association if run and assoc == path else load_association(assoc)
    data, train = section("data", settings), section("train", settings)
    if run is None:
        return make_run_spec(spec, assoc, data, train, *run_seeds(section("run", settings)))
    kept = train.get("method", run.train.method) == run.train.method
    if not kept and "rank" in ignored_by(run.train):  # the rate of full fine-tuning suits no adapter
        train = {"lr": spec.train.lr, "batch_size": spec.train.batch_size, **train}
    defaults = spec.model_copy(update={"train": run.train})
    seeds = run_seeds(section("run", settings), run.seed, run.train_seed)
    described = make_run_spec(defaults, assoc, {**run.data.model_dump(), **data}, train, *seeds)
    return described.model_copy(update={"model": spec})


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a plain table for the terminal."""
    from tabulate import tabulate

    return tabulate(rows, header, tablefmt="simple", disable_numparse=True)
