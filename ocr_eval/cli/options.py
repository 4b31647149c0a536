"""What several commands share: flags, each with its OCR_EVAL_* variable, --config, and tables for the terminal.

A flag's text becomes a value here (numbers, a run's spec, a placement of jobs), with one clear line where it cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from ocr_eval.common.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ocr_eval.analysis.bootstrap import Estimate
    from ocr_eval.execution.jobs import Executor, Placement
    from ocr_eval.specs.run import RunSpec

DEFAULT_MODEL = "smollm2-135m"

_Number = TypeVar("_Number", int, float)


def option(*flags: str, help: str, **rest: Any) -> Any:
    """An option that can also be set by the variable OCR_EVAL_ and the flag's name; flags of one name share it."""
    variable = "OCR_EVAL_" + flags[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*flags, help=help, envvar=variable, show_envvar=False, **rest)


def _names(part: str) -> Callable[[str], list[str]]:
    """Shell completion from the YAML files shipped in a folder."""

    def complete(incomplete: str) -> list[str]:
        from ocr_eval.common.yaml_files import shipped_names

        return [name for name in shipped_names(part) if name.startswith(incomplete)]

    return complete


model_names, assoc_names = _names("models"), _names("templates")

#: Commands that take a run's own config.yaml as --config.
_TAKE_A_RUN = ("finetune", "score", "controls", "curve", "export")
_RUN = "run of --config"


def _config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the flags in a YAML file as defaults: below variables, which are below flags on the command line."""
    if path is None or context.resilient_parsing:
        return path
    from ocr_eval.common import yaml_files

    if not path.is_file():
        raise UserError(f"--config: there is no file '{path}'.")
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
        if parameter.name in defaults:
            raise UserError(f"{path}: '{key}' is given twice, with '-' and with '_'. Give it once.")
        is_switch = getattr(parameter, "is_flag", False)
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) != is_switch or isinstance(entry, dict | list) for entry in entries):
            raise UserError(f"{path}: '{key}' is read as {value!r}; quote the word or give a plain value.")
        if value is not None and getattr(parameter, "multiple", False):
            value = [str(entry) for entry in entries]
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        defaults[str(parameter.name)] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _run_flags(context: typer.Context, path: Path) -> dict[str, Any]:
    """Flags that describe the run of a config.yaml. The run is kept for ``resolve``, as no flag states all of it.

    Raises:
        UserError: a command that is not about one run, or a file that breaks a rule.
    """
    from ocr_eval.records.folder import read_run

    if context.command.name not in _TAKE_A_RUN:
        raise UserError(
            f"--config '{path}' describes a single run, which '{context.command_path}' does not take. Give it "
            "to 'ocr-eval finetune', or give a file of flags by name."
        )
    run = read_run(path)
    context.meta[_RUN] = (str(path), run)
    shape = {key.replace("_", "-"): value for key, value in run.data.model_dump(mode="json").items()}
    if context.command.name == "curve":  # it varies m_train, which is for the user to say
        del shape["m-train"]
    return {"model": str(path), "assoc": str(path), "seed": run.seed, "seeds": str(run.seed), **shape}


ConfigOption = Annotated[
    Path | None,
    option(
        "--config",
        "-C",
        help="YAML file of flags, e.g. 'epochs: 8'.",
        callback=_config,
        is_eager=True,
    ),
]
_MODEL_HELP = "Model: a name ('ocr-eval models list'), YAML file, folder or org/name."
_ASSOC_HELP = "Association: a name ('ocr-eval data list') or YAML file."
ModelOption = Annotated[str, option("--model", help=_MODEL_HELP, autocompletion=model_names)]
ModelArgument = Annotated[str, typer.Argument(help=_MODEL_HELP, autocompletion=model_names)]
AssocArgument = Annotated[
    str | None,
    typer.Argument(metavar="ASSOC", help="The association; the same as --assoc.", autocompletion=assoc_names),
]
AssocOption = Annotated[str | None, option("--assoc", help=_ASSOC_HELP, autocompletion=assoc_names)]
SeedsOption = Annotated[str, option("--seeds", help="Seeds: '0-2' or '0,3,5'.")]
SeedOption = Annotated[int, option("--seed", min=0, help="Seed of pairs, names, groups, order and initialization.")]

NOption = Annotated[int, option("--n", help="Number of pairs in use.")]
MTrainOption = Annotated[int, option("--m-train", help="Subjects per group whose entailment is taught.")]
MTrainRangeOption = Annotated[str, option("--m-train", help="Training subjects per group: '0-16' or '0,1,4'.")]
MTestOption = Annotated[int, option("--m-test", help="Subjects per group whose entailment is held out.")]
CandidatesOption = Annotated[str, option("--candidates", help="Candidates per probe: in-use, ten or all.")]
TemplatesOption = Annotated[str, option("--templates", help="Templates to train on: '0', '0,2' or 'all'.")]
ProbeTemplateOption = Annotated[int, option("--probe-template", help="Template to probe with.")]
VariantOption = Annotated[
    str, option("--variant", help="'real', or the control 'shuffled' (training entailments permuted).")
]

MethodOption = Annotated[str | None, option("--method", help="lora, qlora or full (default: the model's).")]
LrOption = Annotated[float | None, option("--lr", help="Constant learning rate (default: the model's).")]
EpochsOption = Annotated[int | None, option("--epochs", help="Passes over the training set (default: the model's).")]
BatchSizeOption = Annotated[int | None, option("--batch-size", help="Statements per step (default: the model's).")]
RankOption = Annotated[int | None, option("--rank", help="LoRA rank (default: the model's).")]
AlphaOption = Annotated[float | None, option("--alpha", help="LoRA alpha (default: the model's).")]

ModelsOption = Annotated[str | None, option("--models", help="Comma-separated models (default: smollm2-135m).")]
AssocsOption = Annotated[str | None, option("--assocs", help="Comma-separated associations (default: all shipped).")]
SweepSeedsOption = Annotated[str | None, option("--seeds", help="Seeds: '0-2' (the default) or '0,3,5'.")]
MethodsOption = Annotated[str | None, option("--methods", help="Comma-separated methods (default: the model's).")]
LrsOption = Annotated[str | None, option("--lr", help="Comma-separated learning rates (default: the model's).")]
EpochsListOption = Annotated[str | None, option("--epochs", help="Comma-separated epochs (default: the model's).")]
BatchSizesOption = Annotated[
    str | None, option("--batch-size", help="Comma-separated batch sizes (default: the model's).")
]
RanksOption = Annotated[str | None, option("--rank", help="Comma-separated LoRA ranks (default: the model's).")]
AlphasOption = Annotated[str | None, option("--alpha", help="Comma-separated LoRA alphas (default: the model's).")]
NsOption = Annotated[str | None, option("--n", help="Comma-separated numbers of pairs in use (default: 5).")]
MTrainsOption = Annotated[
    str | None, option("--m-train", help="Training subjects per group: '4' (the default) or '1-4,8'.")
]
VariantsOption = Annotated[str | None, option("--variants", help="'real' (the default), 'shuffled', or both.")]
SweepMTestOption = Annotated[int | None, option("--m-test", help="Held-out subjects per group (default: 16).")]
SweepCandidatesOption = Annotated[str | None, option("--candidates", help="in-use, ten (the default) or all.")]
SweepScoreEveryOption = Annotated[
    int | None, option("--score-every", min=1, help="Score every so many epochs (default: 1).")
]

DtypeOption = Annotated[
    str | None,
    option("--dtype", help="auto (what the device computes fast), bfloat16, float16 or float32."),
]
DeviceOption = Annotated[str, option("--device", help="auto, cpu, cuda or mps.")]
OfflineOption = Annotated[bool, option("--offline", help="Stay off the network; fail if a file has to be fetched.")]

OutputOption = Annotated[Path, option("--output-dir", "-o", help="Output folder; runs are in its runs/.")]
JsonOption = Annotated[bool, option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, option("--quiet", "-q", help="No progress on stderr.")]
DryRunOption = Annotated[bool, option("--dry-run", help="Print the plan with memory and time, and stop.")]
ForceOption = Annotated[bool, option("--force", help="Rerun even if a finished run exists.")]
ScoreEveryOption = Annotated[int, option("--score-every", min=1, help="Score every so many epochs.")]
ReportToOption = Annotated[str, option("--report-to", help="Tracker: none, trackio, wandb or tensorboard.")]

ExecutorOption = Annotated[
    str, option("--executor", help="here: this device; local: a process per device; slurm: a cluster job per pack.")
]
WorkersOption = Annotated[
    int | None,
    option("--workers", help="here: worker processes on this CPU (default: chosen automatically).", min=1),
]
DevicesOption = Annotated[str | None, option("--devices", help="local: '0,1' or 'cpu,cpu' (default: every GPU).")]
PartitionOption = Annotated[str | None, option("--partition", help="slurm: partition (default: the cluster's).")]
TimeLimitOption = Annotated[
    int | None, option("--time-limit", help="slurm: minutes until a job is requeued to resume (default: 240).")
]
GpusPerJobOption = Annotated[
    int | None, option("--gpus-per-job", help="slurm: GPUs per job (default: 1 if the partition has any).")
]
CpusPerJobOption = Annotated[
    int | None, option("--cpus-per-job", help="slurm: CPU cores per job (default: the cluster's).")
]
MemoryOption = Annotated[
    float | None, option("--memory-gb", help="slurm: memory per job, in GB (default: the cluster's).")
]
ParallelOption = Annotated[int | None, option("--parallel", help="slurm: most jobs at once (default: 256).")]
SlurmOption = Annotated[
    list[str] | None, option("--slurm", help="slurm: any sbatch option, e.g. 'account=nlp'; repeatable.")
]

ScoringOption = Annotated[str, option("--scoring", help="first-token (as published), sequence or per-token.")]


def one_assoc(context: typer.Context, argument: str | None, flag: str | None) -> str:
    """The association that a command is about, given by position, by --assoc, by its variable or by --config.

    Raises:
        UserError: none, or two different ones on the command line.
    """
    source = context.get_parameter_source("assoc")
    if argument and flag and argument != flag and source is not None and source.name == "COMMANDLINE":
        raise UserError(f"Two associations are given, '{argument}' and --assoc '{flag}'. Give one.")
    chosen = argument or flag
    if not chosen:
        raise UserError(
            f"Which association? Give its name ('{context.command_path} country-code') or --assoc; 'ocr-eval data "
            "list' shows those shipped."
        )
    return chosen


def choice(flag: str, value: str, values: tuple[str, ...]) -> str:
    """A value out of a few.

    Raises:
        UserError: another value (with a suggestion).
    """
    if value not in values:
        raise unknown_name(f"value of {flag}:", value, values)
    return value


def precision(name: str) -> str:
    """A precision in full, for any name that it goes by.

    Raises:
        UserError: no such precision (with a suggestion).
    """
    from ocr_eval.specs.model import DTYPE_ALIASES, DTYPE_NAMES

    chosen = choice("--dtype", name.lower(), DTYPE_NAMES)
    return DTYPE_ALIASES.get(chosen, chosen)


#: The most numbers that a list may name: more are a slip of the hand.
_MOST_NUMBERS = 10_000
_RANGE = re.compile(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?")


def integers(flag: str, text: str) -> list[int]:
    """The numbers of '0-2,5', in order.

    Raises:
        UserError: not of that form, a number twice, or more than 10,000 of them.
    """
    spans = []
    for part in text.split(","):
        span = _RANGE.fullmatch(part)
        if span is None:
            raise UserError(f"{flag} '{text}': give numbers like '0-2' or '0,1,4'.")
        spans.append(range(int(span[1]), int(span[2] or span[1]) + 1))
    if not all(spans):
        raise UserError(f"{flag} '{text}' has a range that ends before it begins: give numbers like '0-2'.")
    if sum(span.stop - span.start for span in spans) > _MOST_NUMBERS:
        raise UserError(f"{flag} '{text}' names more than {_MOST_NUMBERS:,} numbers: give fewer, like '0-2'.")
    numbers = sorted(chain.from_iterable(spans))
    twice = next((a for a, b in pairwise(numbers) if a == b), None)
    if twice is not None:
        raise UserError(f"{flag} '{text}' names {twice} twice: give each number once.")
    return numbers


def words(flag: str, text: str | None) -> tuple[str, ...] | None:
    """The entries of 'a,b', None for None.

    Raises:
        UserError: an empty entry.
    """
    if text is None:
        return None
    entries = tuple(part.strip() for part in text.split(","))
    if not all(entries):
        raise UserError(f"{flag} '{text}' has an empty entry: give it like 'a,b'.")
    return entries


def numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of '1e-3,2e-3', None for None.

    Raises:
        UserError: an entry that is not a number.
    """
    return _each(flag, text, float, "numbers like '1e-3,2e-3'")


def whole_numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """The whole numbers of '8,16', None for None.

    Raises:
        UserError: an entry that is not a whole number.
    """
    return _each(flag, text, int, "whole numbers like '8,16'")


def _each(flag: str, text: str | None, read: Callable[[str], _Number], wanted: str) -> tuple[_Number, ...] | None:
    entries = words(flag, text)
    try:
        return None if entries is None else tuple(read(entry) for entry in entries)
    except ValueError as error:
        raise UserError(f"{flag} '{text}': give {wanted}.") from error


def placement(
    executor: str,
    *,
    devices: str | None = None,
    partition: str | None = None,
    time_limit: int | None = None,
    gpus_per_job: int | None = None,
    cpus_per_job: int | None = None,
    memory_gb: float | None = None,
    parallel: int | None = None,
    slurm: list[str] | None = None,
) -> Placement:
    """Where a command's jobs run, by its flags; flags that were not given are None.

    Raises:
        UserError: no such executor, a flag of another one, or a value out of range.
    """
    from ocr_eval.execution.jobs import EXECUTORS, Placement

    name = cast("Executor", choice("--executor", executor, EXECUTORS))
    given = {
        "partition": partition,
        "time_limit": time_limit,
        "gpus_per_job": gpus_per_job,
        "cpus_per_job": cpus_per_job,
        "memory_gb": memory_gb,
        "parallel": parallel,
        "slurm": slurm or None,
    }
    for owner, keys in (("local", {"devices": devices}), ("slurm", given)):
        for key, value in keys.items():
            if value is not None and name != owner:
                raise UserError(f"--{key.replace('_', '-')} goes with --executor {owner}, not with '{name}'.")
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    values["slurm_options"] = tuple(values.pop("slurm", ()))
    if devices is not None:
        values["devices"] = tuple(part.strip() for part in devices.split(",") if part.strip())
    return Placement(executor=name, **values)


def begin(quiet: bool = False, offline: bool = False) -> None:
    """Switches that must be set before any library is imported."""
    import logging
    import os
    import sys
    import warnings

    from ocr_eval.common import distributed, messages

    messages.be_quiet(quiet or not distributed.is_first())
    if not distributed.is_first():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises to install optional kernels
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # By default GNU OpenMP's threads spin so long at each of the thousands of small parallel regions of a step
    # that one busy neighbour on the machine makes training 10 to 60 times slower; 3,000 turns cost nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if offline or os.environ.get("OCR_EVAL_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        os.environ["HF_HUB_OFFLINE"] = "1"


def resolve(
    model: str,
    assoc: str,
    seed: int,
    *,
    n: int,
    m_train: int,
    m_test: int,
    candidates: str,
    templates: str | None = None,
    probe_template: int | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    context: typer.Context | None = None,
    **train: Any,
) -> RunSpec:
    """The run that a command's flags describe; training flags that were not given are None.

    Args:
        context: of a command that takes a run's config.yaml as --config: what no flag says is then that run's.

    Raises:
        UserError: a name or a value that does not exist or fit.
    """
    from ocr_eval.common.registry import METHODS
    from ocr_eval.methods.method import method_of
    from ocr_eval.specs.association import load_association
    from ocr_eval.specs.model import load_model_spec
    from ocr_eval.specs.run import make_run_spec

    path, run = context.meta.get(_RUN, ("", None)) if context else ("", None)
    spec = run.model if run and model == path else load_model_spec(model)
    if dtype is not None:
        spec = spec.model_copy(update={"dtype": precision(dtype)})
    association = run.association if run and assoc == path else load_association(assoc)
    data: dict[str, Any] = {
        "n": n,
        "m_train": m_train,
        "m_test": m_test,
        "candidates": choice("--candidates", candidates, ("in-use", "ten", "all")),
        "probe_template": probe_template,
        "variant": None if variant is None else choice("--variant", variant, ("real", "shuffled")),
        "templates": None if templates is None else _template_indices(templates, association.wordings),
    }
    data = {key: value for key, value in data.items() if value is not None}
    given = {key: value for key, value in train.items() if value is not None}
    if run is None:
        return make_run_spec(spec, association, data, given, seed)
    method = METHODS.choose(given.get("method", run.train.method)).thing
    if (
        method_of(run.train).needs.whole and not method.needs.whole
    ):  # rates and batches of full training suit no adapter
        given = {"lr": spec.train.lr, "batch_size": spec.train.batch_size, **given}
    defaults = spec.model_copy(update={"train": run.train})
    described = make_run_spec(defaults, association, {**run.data.model_dump(), **data}, given, seed)
    return described.model_copy(update={"model": spec})


def _template_indices(text: str, count: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(count))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--templates '{text}': give indices like '0' or '0,2', or 'all'.") from error


def interval_text(estimate: Estimate) -> str:
    """``+0.50 [+0.40, +0.60]``."""
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a plain table for the terminal."""
    from tabulate import tabulate

    text: str = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    return text
