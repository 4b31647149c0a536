"""``finetune`` and ``score``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ocr_eval.cli import options as o
from ocr_eval.cli.execution_flags import Machine
from ocr_eval.cli.external import Elsewhere
from ocr_eval.cli.facts import OwnFacts
from ocr_eval.cli.spec_flags import Given, Settings, expanded, flag_of, option
from ocr_eval.common.errors import UserError
from ocr_eval.common.registry import DEFAULT_MEASURES
from ocr_eval.specs import schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocr_eval.planning.estimate import Plan
    from ocr_eval.records.folder import RunFolder
    from ocr_eval.records.record import Record
    from ocr_eval.scoring.ranks import Scores
    from ocr_eval.specs.model import Device, TrainSpec
    from ocr_eval.specs.run import RunSpec


@expanded
def finetune(
    context: typer.Context,
    *,
    named: o.Assoc,
    own: OwnFacts,
    yes: Annotated[bool, option("--yes", "-y", help="Start even if it takes over ten minutes.")] = False,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, Settings()],
    machine: Machine,
    output_dir: o.OutputOption = o.DEFAULT_OUTPUT,
    score_at: o.ScoreAtOption = None,
    measures: o.MeasuresOption = None,
    force: o.ForceOption = False,
    dry_run: o.DryRunOption = False,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Teach an association or your own facts, and score the model.

    Rerunning an interrupted run resumes it; a finished run is loaded, not repeated, unless --force is given. --config
    also takes the config.yaml of a run, which repeats that run; flags override it.
    """
    asked = o.measures(measures)
    machine.begin()
    table = own.association(model, named.given)
    spec = o.resolve(context, model, table or named.one(context), settings)
    scored = schedule.checked(score_at or schedule.DEFAULT, "--score-at", spec.train.epochs)
    if dry_run:
        _show_plan(spec, output_dir, machine.device, as_json, scored)
        return
    from ocr_eval.records.folder import RunFolder

    finished = _finished(spec, output_dir, force)
    if finished is not None:
        folder, record, was_done = finished, finished.record(), True
    else:
        from ocr_eval.execution.execute import finetune as run_finetune
        from ocr_eval.execution.run_pack import Execution

        if table is not None:
            _announce(spec, output_dir, machine.device, scored, yes)

        done, was_done = run_finetune(spec, output_dir, Execution(machine.device, force, scored, measures=asked))
        folder, record = RunFolder(done.folder), done.record
    missing = [name for name in asked or () if name != DEFAULT_MEASURES and name not in record.measures]
    if missing and was_done:
        names = ",".join(missing)
        o.warn(f"This run finished without {names}. Measure it: ocr-eval explain {done.folder} --measure {names}")
    if as_json:
        typer.echo(record.to_json(), nl=False)
        return
    losses = [line.train_loss for line in folder.metrics() if line.train_loss is not None]
    typer.echo(_summary(record, spec.train, losses))
    if not machine.quiet:
        _show_curve(folder.path, record)
    typer.echo(f"{'done before' if was_done else 'written to'}: {folder.path}")


def _plan(spec: RunSpec, output: Path | None, device: Device, score_at: str) -> Plan:
    """The plan of a run, in the precision that it will have, or of a scoring; a UserError if it would be rejected."""
    from ocr_eval.execution.execute import Bases
    from ocr_eval.execution.live_run import check
    from ocr_eval.planning.estimate import make_plan
    from ocr_eval.planning.workload import tokenizer_at_hand

    if output is not None:
        tokenizer, is_real = tokenizer_at_hand(spec.model)
        check(spec, tokenizer if is_real else None)
    (settled,) = Bases(device).settle([spec], output)
    return make_plan(spec, output, device, score_at, settled.precision)


#: Runs on the user's own facts that take more seconds than this need --yes.
_LONG = 600.0


def _announce(spec: RunSpec, output: Path, device: Device, score_at: str, yes: bool) -> None:
    """Say what is taught and asked, and how long it takes; raises a UserError if that is long and --yes is missing."""
    from ocr_eval.common.messages import duration, say

    plan = _plan(spec, output, device, score_at)
    task = plan.work.task
    asked = len(task.probes_of(task.finding.name))
    say(
        f"{len(task.train):,} facts are taught and {len(task.probes):,} asked, {asked:,} of them for the finding, "
        f"{task.finding.name}; about {duration(plan.seconds)} on {plan.device.type}"
    )
    if plan.seconds > _LONG and not yes:
        raise UserError(f"This takes about {duration(plan.seconds)}. Add --yes, or teach fewer --columns or --epochs.")


def _finished(spec: RunSpec, output: Path, force: bool) -> RunFolder | None:
    """The folder of this run if it is finished and must not be repeated.

    It is found without importing the training code, which takes seconds. Also None if it is finished in several
    precisions, so that the device has to decide which one is meant.

    Raises:
        Busy: another process is working on it.
    """
    from ocr_eval.common.distributed import is_alone
    from ocr_eval.models import weights
    from ocr_eval.records.folder import RunFolder
    from ocr_eval.records.hold import is_held
    from ocr_eval.specs.model import PRECISIONS

    kin = RunFolder.of(output, spec, "*").path
    begun = [RunFolder(path) for path in kin.parent.glob(kin.name)]
    if not is_alone() or not any(folder.is_done() or is_held(folder.path) for folder in begun):
        return None  # several processes agree on it later; and hashing the weights takes long
    identity = weights.locate(spec.model).identity
    asked = PRECISIONS if spec.model.dtype == "auto" else (spec.model.dtype,)
    folders = [RunFolder.of(output, spec, spec.in_precision(dtype).fingerprint(identity)) for dtype in asked]
    done = [folder for folder in folders if folder.is_done()]
    if len(done) == 1 and not force:
        return done[0]
    held = next((folder for folder in folders if is_held(folder.path)), None)
    if held is not None:
        with held.lock():  # raises, unless it was just released
            pass
    return None


def _show_plan(
    spec: RunSpec, output: Path | None, device: Device, as_json: bool, score_at: str = schedule.DEFAULT
) -> None:
    """Print the plan of a run, or of a scoring; exit code 1 if it does not fit into memory."""
    plan = _plan(spec, output, device, score_at)
    typer.echo(json.dumps(plan.as_json(), indent=2) + "\n" if as_json else plan.as_text(), nl=False)
    if not plan.fits:
        raise typer.Exit(1)


def _summary(record: Record, train: TrainSpec, losses: list[float]) -> str:
    from ocr_eval.analysis.finding import remedy
    from ocr_eval.report.tables import unlearned

    finding, learned = record.finding("first-token"), "learned what it was taught"
    if missing := unlearned(record):
        learned = f"{missing.upper()} NOT LEARNED: do not interpret the rank. {remedy(losses, train)}"
    return (
        f"{record.model} {record.association} ({record.kind}) seed {record.seeds}: "
        f"held-out mean rank {finding.mean_rank:.2f}, null {finding.null_rank:.2f}, "
        f"OCR score {record.held_out['first-token'].ocr_score:+.2f}; {learned}"
    )


def _show_curve(folder: Path, record: Record) -> None:
    """Draw a finished run's mean rank by epoch in the terminal."""
    from ocr_eval.records.find import FinishedRun
    from ocr_eval.records.run_files import metrics_of
    from ocr_eval.report.chart import Curve, charts

    try:
        curve = Curve.of([(record, metrics_of(FinishedRun(folder, record), "first-token"))], "first-token")
    except UserError as error:
        o.warn(f"{error} The curve is not drawn.")
        return
    typer.echo(f"\n{charts([curve] if curve else [], sys.stdout)}\n")


#: The settings that a scoring depends on.
_SCORED = ("seed", "n", "m_train", "m_test", "candidates", "probe_template", "method", "dtype", "attention")


@expanded
def score(
    context: typer.Context,
    *,
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Folder of a run whose adapter to score again.")
    ] = None,
    adapter: Annotated[Path | None, option("--adapter", help="Folder of a PEFT adapter; --model is its base.")] = None,
    plus: Annotated[
        Path | None, option("--plus", metavar="RUN", help="Add what this run learned over the same base (grafting).")
    ] = None,
    minus: Annotated[Path | None, option("--minus", metavar="RUN", help="Subtract what this run learned.")] = None,
    elsewhere: Elsewhere,
    assoc: o.AssocOption = None,
    model: o.ModelOption = o.DEFAULT_MODEL,
    settings: Annotated[Given, Settings(_SCORED)],
    machine: Machine,
    dry_run: o.DryRunOption = False,
    as_json: o.JsonOption = False,
    config: o.ConfigOption = None,
) -> None:
    """Score a finished run, an adapter, or an untouched model.

    Without --name nothing is written. All settings come from the run, if you give one. Without an adapter the model is
    scored as it is; --method qlora scores over the 4-bit base, as the adapter was trained. With --data the manifest of
    the exported training set determines the probes. With --endpoint a server is queried; its key is read from
    OCR_EVAL_API_KEY or OPENAI_API_KEY, and --dry-run shows the cost.
    """
    machine.begin()
    from ocr_eval.common.registry import METHODS
    from ocr_eval.records.folder import kind_of
    from ocr_eval.records.reopen import read_trained

    trained_over, grafted = None, [(sign, other) for sign, other in ((1, plus), (-1, minus)) if other is not None]
    if run is not None:
        _refuse_beside_a_run(context)
        spec, finished = read_trained(run)
        adapter, trained_over = finished.learned, finished.record().base_identity
        grafted = _to_graft(run, grafted) if grafted else []
    elif grafted:
        raise UserError("--plus and --minus change what a run learned. Give its folder: ocr-eval score RUN --plus RUN.")
    else:
        here = {"method", "attention"} & settings.keys() | ({"adapter"} if adapter is not None else set())
        meant = elsewhere.model(context, model, here)
        exported = elsewhere.run(context, meant, assoc, settings)
        if exported is None and assoc is None:
            raise UserError("What should be scored? Give a run's folder, --data of an export, or --model and --assoc.")
        method, is_adapter = settings.get("method"), adapter is not None and kind_of(adapter) == "adapter"
        if is_adapter and method is not None and METHODS.choose(method).thing.needs.whole:
            raise UserError(f"--method {method} has no adapter. Drop one of the two, or name the adapter's method.")
        spec = exported or o.resolve(context, meant, str(assoc), settings)
    if dry_run and elsewhere.endpoint is not None:
        _show_cost(spec, elsewhere.texts, as_json)
        return
    if dry_run:
        _show_plan(spec, None, machine.device, as_json)
        return
    folder = None
    if run is None and elsewhere.name is not None:
        from ocr_eval.execution.external import record_external, record_served

        name, output = elsewhere.name, elsewhere.output_dir
        if elsewhere.endpoint is not None:
            done = record_served(spec, name, output, elsewhere.texts)
        else:
            done = record_external(spec, adapter, name, output, machine.device)
        folder, scores = done.folder, done.record.final
    elif elsewhere.endpoint is not None:
        from ocr_eval.execution.external import rescore_served

        scores = rescore_served(spec, elsewhere.texts)
    else:
        from ocr_eval.execution.execute import open_view, rescore

        scores = rescore(spec, open_view(spec, adapter, machine.device, trained_over, grafted))
    if as_json:
        from ocr_eval.records.record import to_plain

        typer.echo(json.dumps(to_plain(scores), indent=2))
        return
    added = "".join(f" {'plus' if sign == 1 else 'minus'} {folder}" for sign, folder in grafted)
    what = f"{spec.model.name}{'' if adapter is None else ' with ' + str(adapter)}{added}"
    typer.echo(f"{what}, {spec.association.name}, seed {spec.seeds}")
    typer.echo(_score_lines(scores))
    if folder is not None:
        typer.echo(f"written to: {folder}")


def _to_graft(run: Path, others: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """The adapters of ``others``, checked for adding to, or subtracting from, that of a run."""
    from ocr_eval.methods.method import method_of
    from ocr_eval.methods.peft_files import read_adapter_file
    from ocr_eval.records.reopen import read_trained

    adapters, bases = {}, {}
    for folder in (run, *(other for _, other in others)):
        spec, finished = read_trained(folder)
        adapters[folder] = learned = finished.learned
        bases[folder] = finished.record().base_identity, method_of(spec.train).needs.quantized
        in_peft = learned.name != "model" and method_of(spec.train).in_peft
        if not in_peft or not read_adapter_file(learned).is_plain:
            raise UserError(f"{folder} has no plain LoRA adapter, and only these can be added. Use --method lora.")
        if bases[folder] != bases[run]:
            raise UserError(f"{folder} was trained over another base than {run}. Give runs of one model.")
    return [(sign, adapters[other]) for sign, other in others]


def _show_cost(spec: RunSpec, per_request: int, as_json: bool) -> None:
    """Print what a scoring would request from a server, without contacting it."""
    from ocr_eval.data.task import build_task
    from ocr_eval.scoring.served import cost, texts_of

    asked = cost(texts_of(build_task(spec).probes), per_request)
    typer.echo(json.dumps(asdict(asked)) if as_json else str(asked))


#: Flags of ``score`` that do not determine what is scored, and so are allowed with a run's folder.
_BESIDE_A_RUN = {f.name for f in fields(Machine)} | {"run", "plus", "minus", "dry_run", "as_json", "config"}


def _refuse_beside_a_run(context: typer.Context) -> None:
    """Raise a UserError if a flag or --config sets something that a run's folder already determines."""
    if idle := [name for name in o.stated(context) if name not in _BESIDE_A_RUN]:
        raise UserError(
            f"{flag_of(idle[0])} has no effect with a run's folder, which sets model, data and adapter. Drop it, or "
            "give --assoc and --adapter instead of the folder."
        )


def _score_lines(scores: Scores) -> str:
    from tabulate import tabulate

    rows = [
        [scoring, quantity, s.probes, s.mean_rank, s.null_rank, s.ocr_score, f"{s.top1:.0%}", s.ties]
        for scoring, by_quantity in scores.items()
        for quantity, s in by_quantity.items()
    ]
    header = ["scoring", "quantity", "probes", "mean rank", "null rank", "OCR score", "top-1", "ties"]
    return tabulate(rows, header, floatfmt=("", "", "", ".2f", ".2f", "+.2f", "", ""), tablefmt="simple")
