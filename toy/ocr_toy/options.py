"""The options that `train` and `sweep` share, and how their values become a run."""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ocr_toy.errors import ToyError, require

if TYPE_CHECKING:
    from ocr_toy.runs import RunSpec

N = TypeVar("N", int, float)
Command = Callable[..., None]

Pairs = Annotated[int, typer.Option("--n", help="Number of fact-entailment pairs.")]
Seed = Annotated[int, typer.Option(help="Seed of data and initialization.")]
Seeds = Annotated[str, typer.Option(help="1 to 10 comma-separated seeds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Figures = Annotated[Path | None, typer.Option(help="Draw the picture into this folder, as PNG, PDF and SVG.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON to this file as well.")]


@dataclass(frozen=True)
class RunFlags:
    """The flags of a run, shared by `train` and `sweep`; the defaults are the published run."""

    preset: Annotated[
        str, typer.Option(help="published, or official: the official code's exact start, seed and loss.")
    ] = "published"
    param: Annotated[str, typer.Option(help="factorized or merged.")] = "factorized"
    n_pairs: Pairs = 20
    m_train: Annotated[int, typer.Option("--m-train", help="Train subjects per pair.")] = 1
    m_test: Annotated[int, typer.Option("--m-test", help="Test subjects per pair.")] = 3
    n_noise: Annotated[int, typer.Option("--noise", help="Number of noise tokens.")] = 5
    seq_len: Annotated[int | None, typer.Option(help="Sequence length. [default: 16, or 3 without noise]")] = None
    d_h: Annotated[int, typer.Option("--d-h", help="Width of W_O and W_V (factorized).")] = 128
    trainable_kq: Annotated[bool, typer.Option("--train-kq/--fix-kq", help="Train W_KQ, or fix the attention.")] = True
    attention: Annotated[str, typer.Option(help="linear or softmax.")] = "linear"
    mlp_width: Annotated[int, typer.Option("--mlp", help="Width of an MLP after attention; 0 for none.")] = 0
    optimizer: Annotated[str, typer.Option(help="adamw or gd.")] = "adamw"
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 5e-3
    decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.03
    product_decay: Annotated[float, typer.Option(help="Weight of ||W_OV||_F^2 / 2 in the loss.")] = 0.0
    init: Annotated[str, typer.Option(help="gaussian or symmetric (merged only).")] = "gaussian"
    init_scale: Annotated[float, typer.Option(help="Standard deviation, or value, of the initialization.")] = 1e-4
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000
    batch: Annotated[int, typer.Option("--batch", help="Batch size; 0 for the full train set.")] = 252
    seed: Seed = 0
    record_every: Annotated[int | None, typer.Option(help="Steps between records. [default: a twentieth]")] = None
    precision: Annotated[str, typer.Option(help="float32 or float64.")] = "float32"


def run_flags(without: Collection[str] = (), **defaults: object) -> Callable[[Command], Command]:
    """Give a command the flags of a run, passed as `run` by name: all but `without`, with the command's `defaults`."""
    shared = [
        Parameter(of.name, Parameter.KEYWORD_ONLY, default=defaults.get(of.name, of.default), annotation=of.type)
        for of in fields(RunFlags)
        if of.name not in without
    ]

    def expand(command: Command) -> Command:
        parameters: list[Parameter] = []
        for own in signature(command).parameters.values():
            parameters += shared if own.name == "run" else [own.replace(kind=Parameter.KEYWORD_ONLY)]

        @functools.wraps(command)
        def call(**given: Any) -> None:
            command(run={flag.name: given.pop(flag.name) for flag in shared}, **given)

        call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        return call

    return expand


PRESETS = ("published", "official")


def official(param: str) -> dict[str, Any]:
    """What the official code (yixiao-huang/OCR-Theory, commit 64078c0) sets differently from the defaults here.

    Merged, as in its script: all entries of W_KQ and W_OV are 1e-4. Factorized, as in its rank sweep: Gaussian entries
    with standard deviation 1 / sqrt(128) in every matrix, 20,000 steps. Both: seed 42, and the loss -log(p + 1e-8),
    whose gradient vanishes for p below 1e-8.
    """
    from ocr_toy.runs import OFFICIAL_SCALE

    common = {"seed": 42, "loss_floor": 1e-8}
    if param == "merged":
        return common | {"init": "symmetric", "init_scale": 1e-4}
    return common | {"init": "gaussian", "init_scale": OFFICIAL_SCALE, "steps": 20_000}


def run_spec(options: dict[str, Any]) -> "RunSpec":
    """The run that the shared options of `train` and `sweep`, named as the fields of its parts, describe."""
    from ocr_toy.model import ModelSpec
    from ocr_toy.runs import RunSpec, TrainSpec
    from ocr_toy.task import MIN_SEQ_LEN, TaskSpec

    every = max(1, options["steps"] // 20) if options["record_every"] is None else options["record_every"]
    derived = {"record_every": every, "norms_every": every}
    if options["seq_len"] is None:
        derived["seq_len"] = 16 if options["n_noise"] else MIN_SEQ_LEN
    given = options | derived

    def part(kind: type[Any]) -> Any:
        return kind(**{of.name: given[of.name] for of in fields(kind) if of.name in given})

    return RunSpec(part(TaskSpec), part(ModelSpec), part(TrainSpec))


def numbers(text: str, name: str) -> list[float]:
    """Comma-separated numbers. Raises ToyError for anything else."""
    return _split(text, float, f"{name} = {text}: not numbers; give comma-separated numbers, as in 1e-3,0.1")


def whole(text: str, name: str) -> list[int]:
    """Comma-separated integers. Raises ToyError for anything else."""
    return _split(text, int, f"{name} = {text}: not integers; give them comma-separated, as in 0,1,2")


def _split(text: str, read: Callable[[str], N], fault: str) -> list[N]:
    try:
        require("_" not in text, fault)
        return [read(part) for part in text.split(",")]
    except ValueError as error:
        raise ToyError(fault) from error
