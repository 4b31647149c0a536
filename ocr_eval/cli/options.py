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

from ocr_eval.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ocr_eval.executor import Executor, Placement
    from ocr_eval.intervals import Estimate
    from ocr_eval.specs import RunSpec

DEFAULT_MODEL = "smollm2-135m"

_Number = TypeVar("_Number", int, float)


def _option(*flags: str, help: str, **rest: Any) -> Any:
    """An option whose variable is OCR_EVAL_ and the flag's name."""
    variable = "OCR_EVAL_" + flags[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*flags, help=help, envvar=variable, show_envvar=False, **rest)


def _config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the flags of a YAML file as defaults; flags given on the command line go first."""
    if path is None or context.resilient_parsing:
        return path
    from ocr_eval import resources

    if not path.is_file():
        raise UserError(f"--config: there is no file '{path}'.")
    options = {flag.lstrip("-"): p for p in context.command.params for flag in p.opts if flag.startswith("--")}
    defaults: dict[str, Any] = {}
    for key, value in resources.read_yaml(path).items():
        parameter = options.get(str(key))
        if parameter is None or key == "config":
            raise unknown_name(f"flag in {path}", str(key), set(options) - {"config", "help"})
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


ConfigOption = Annotated[
    Path | None,
    _option(
        "--config", "-C", help="YAML file with flags by name (model: smollm2-135m).", callback=_config, is_eager=True
    ),
]
ModelOption = Annotated[str, _option("--model", help="A model's name ('ocr-eval models list'), YAML file or folder.")]
AssocOption = Annotated[str, _option("--assoc", help="An association's name ('ocr-eval data list') or YAML file.")]
SeedsOption = Annotated[str, _option("--seeds", help="Seeds: '0-2' or '0,3,5'.")]
SeedOption = Annotated[int, _option("--seed", min=0, help="Draws pairs, names, groups, order and initialization.")]

NOption = Annotated[int, _option("--n", help="Pairs in use.")]
MTrainOption = Annotated[int, _option("--m-train", help="Subjects a group with the entailment taught.")]
MTrainRangeOption = Annotated[str, _option("--m-train", help="Train subjects a group: '0-16' or '0,1,4'.")]
MTestOption = Annotated[int, _option("--m-test", help="Subjects a group with the entailment held out.")]
CandidatesOption = Annotated[str, _option("--candidates", help="What probes rank among: in-use, ten, all.")]
TemplatesOption = Annotated[str, _option("--templates", help="Templates trained in: '0', '0,2' or 'all'.")]
ProbeTemplateOption = Annotated[int, _option("--probe-template", help="Template that is probed.")]
VariantOption = Annotated[
    str, _option("--variant", help="'real', or the control 'shuffled' (train entailments permuted).")
]

MethodOption = Annotated[str | None, _option("--method", help="lora, qlora or full; default: the model's.")]
LrOption = Annotated[float | None, _option("--lr", help="Constant learning rate; default: the model's.")]
EpochsOption = Annotated[int | None, _option("--epochs", help="Passes over the training set; default: the model's.")]
BatchSizeOption = Annotated[int | None, _option("--batch-size", help="Statements a step; default: the model's.")]
RankOption = Annotated[int | None, _option("--rank", help="LoRA rank; default: the model's.")]
AlphaOption = Annotated[float | None, _option("--alpha", help="LoRA alpha; default: the model's.")]

ModelsOption = Annotated[str | None, _option("--models", help="Models, by commas; default: smollm2-135m.")]
AssocsOption = Annotated[
    str | None, _option("--assocs", help="Associations, by commas; default: all that are shipped.")
]
SweepSeedsOption = Annotated[str | None, _option("--seeds", help="Seeds: '0-2' (the default) or '0,3,5'.")]
MethodsOption = Annotated[str | None, _option("--methods", help="Methods, by commas; default: the model's.")]
LrsOption = Annotated[str | None, _option("--lr", help="Learning rates, by commas; default: the model's.")]
EpochsListOption = Annotated[str | None, _option("--epochs", help="Epochs, by commas; default: the model's.")]
BatchSizesOption = Annotated[str | None, _option("--batch-size", help="Batch sizes, by commas; default: the model's.")]
RanksOption = Annotated[str | None, _option("--rank", help="LoRA ranks, by commas; default: the model's.")]
AlphasOption = Annotated[str | None, _option("--alpha", help="LoRA alphas, by commas; default: the model's.")]
NsOption = Annotated[str | None, _option("--n", help="Pairs in use, by commas; default: 5.")]
MTrainsOption = Annotated[str | None, _option("--m-train", help="Subjects a group taught both: '4' or '1-4,8'.")]
VariantsOption = Annotated[str | None, _option("--variants", help="'real' (the default), 'shuffled', or both.")]
SweepMTestOption = Annotated[int | None, _option("--m-test", help="Subjects a group held out; default: 16.")]
SweepCandidatesOption = Annotated[str | None, _option("--candidates", help="in-use, ten (the default) or all.")]
SweepScoreEveryOption = Annotated[int | None, _option("--score-every", min=1, help="Epochs between scorings.")]

DtypeOption = Annotated[
    str | None,
    _option("--dtype", help="auto (what the device computes fast), bfloat16, float16 or float32."),
]
DeviceOption = Annotated[str, _option("--device", help="auto, cpu, cuda or mps.")]
OfflineOption = Annotated[bool, _option("--offline", help="Use no network; fail where it is needed.")]

OutputOption = Annotated[Path, _option("--output-dir", "-o", help="Output folder; runs lie in its runs/.")]
JsonOption = Annotated[bool, _option("--json", help="Print the result as JSON.")]
QuietOption = Annotated[bool, _option("--quiet", "-q", help="No progress on stderr.")]
DryRunOption = Annotated[bool, _option("--dry-run", help="Print the resolved plan and stop.")]
ForceOption = Annotated[bool, _option("--force", help="Do it again even if it is done.")]
ScoreEveryOption = Annotated[int, _option("--score-every", min=1, help="Epochs between scorings.")]
ReportToOption = Annotated[str, _option("--report-to", help="Tracker: none, trackio, wandb or tensorboard.")]

ExecutorOption = Annotated[
    str, _option("--executor", help="here: on this device; local: one a device; slurm: one a job of a cluster.")
]
WorkersOption = Annotated[
    int | None,
    _option("--workers", help="here: processes that share the CPU's cores; default: as many as pay.", min=1),
]
DevicesOption = Annotated[str | None, _option("--devices", help="local: '0,1' or 'cpu,cpu'; default: every GPU.")]
PartitionOption = Annotated[str | None, _option("--partition", help="slurm: partition; default: the cluster's.")]
TimeLimitOption = Annotated[
    int | None, _option("--time-limit", help="slurm: minutes until a job is queued again to go on; default: 240.")
]
GpusPerJobOption = Annotated[
    int | None, _option("--gpus-per-job", help="slurm: GPUs; default: 1 if the partition has any.")
]
CpusPerJobOption = Annotated[int | None, _option("--cpus-per-job", help="slurm: CPU cores; default: the cluster's.")]
MemoryOption = Annotated[float | None, _option("--memory-gb", help="slurm: memory of a job; default: the cluster's.")]
ParallelOption = Annotated[int | None, _option("--parallel", help="slurm: jobs at once at most; default: 256.")]
SlurmOption = Annotated[
    list[str] | None, _option("--slurm", help="slurm: any option of sbatch, 'account=nlp'; may be repeated.")
]

ScoringOption = Annotated[str, _option("--scoring", help="first-token (the published one), sequence or per-token.")]


def choice(flag: str, value: str, values: tuple[str, ...]) -> str:
    """A value out of a few.

    Raises:
        UserError: another value (with a suggestion).
    """
    if value not in values:
        raise unknown_name(f"value of {flag}:", value, values)
    return value


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
        UserError: an entry that is no number.
    """
    return _each(flag, text, float, "numbers like '1e-3,2e-3'")


def whole_numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """The whole numbers of '8,16', None for None.

    Raises:
        UserError: an entry that is no whole number.
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
    """Where the flags of a command say that its jobs run; flags that were not given are None.

    Raises:
        UserError: no such executor, a flag of another one, or a value that fits no machine.
    """
    from ocr_eval.executor import EXECUTORS, Placement

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
                raise UserError(f"--{key.replace('_', '-')} goes with --executor {owner}, and this is '{name}'.")
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

    from ocr_eval import processes, progress

    progress.be_quiet(quiet or not processes.is_first())
    if not processes.is_first():
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
    templates: str = "0",
    probe_template: int = 0,
    variant: str = "real",
    dtype: str | None = None,
    **train: Any,
) -> RunSpec:
    """The run that a command's flags describe; training flags that were not given are None.

    Raises:
        UserError: a name or a value that does not exist or fit.
    """
    from ocr_eval.association import load_association
    from ocr_eval.specs import DTYPE_ALIASES, DTYPE_NAMES, load_model_spec, make_run_spec

    spec = load_model_spec(model)
    if dtype is not None:
        name = choice("--dtype", dtype, DTYPE_NAMES)
        spec = spec.model_copy(update={"dtype": DTYPE_ALIASES.get(name, name)})
    association = load_association(assoc)
    data = {
        "n": n,
        "m_train": m_train,
        "m_test": m_test,
        "candidates": choice("--candidates", candidates, ("in-use", "ten", "all")),
        "templates": _template_indices(templates, len(association.fact.templates)),
        "probe_template": probe_template,
        "variant": choice("--variant", variant, ("real", "shuffled")),
    }
    given = {key: value for key, value in train.items() if value is not None}
    return make_run_spec(spec, association, data, given, seed)


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
