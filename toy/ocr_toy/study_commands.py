"""The commands that check theory against measurements (claims, mitigations, related systems, open questions); figures.

torch, cvxpy and matplotlib are imported inside the commands, so that help is fast.
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocr_toy import options as o
from ocr_toy.console import app, emit, prepare, say, tenths
from ocr_toy.errors import require

if TYPE_CHECKING:
    from ocr_toy.report import Check, Report


@app.command()
def check(
    grid: Annotated[list[str] | None, typer.Option(help="n,m_train,m_test of Theorems 1 and 2; repeatable.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also mitigate, complete and systems, with seeds 0, 1, 2.")
    ] = False,
    solver: Annotated[str, typer.Option(help="SCS or CLARABEL.")] = "SCS",
    ranks: Annotated[str, typer.Option(help="Widths d_h of claim 5, 3 or more.")] = "3,4",
    rank_steps: Annotated[int, typer.Option(help="Training steps of claim 5.")] = 20_000,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
    output: o.Output = None,
    figures: Annotated[
        Path | None, typer.Option(help="With --all: draw its pictures into this folder, as PNG, PDF and SVG.")
    ] = None,
) -> None:
    """Check claims 1 to 8 of the theory against measurements.

    Prints the number from theory, the measured number, the tolerance, and pass or fail. With --all, every named check.
    """
    from ocr_toy.check import DEFAULT_GRID, CheckSpec, run_checks

    sizes = []
    for text in grid or ():
        found = o.whole(text, "grid")
        require(len(found) == 3, f"grid = {text}: not three numbers; use n,m_train,m_test as in 3,1,3")
        sizes.append((found[0], found[1], found[2]))
    spec = CheckSpec(
        grid=tuple(sizes) or DEFAULT_GRID,
        solver=solver.upper(),
        ranks=tuple(o.whole(ranks, "ranks")),
        rank_steps=rank_steps,
        seed=seed,
    )
    require(everything or figures is None, f"figures = {figures}: needs --all; toy figures draws the claims")
    prepare(output, figures)
    done = []
    for result in run_checks(spec, say):
        done.append(result)
        if not as_json:
            print(_verdict(result), flush=True)
    document: dict[str, Any] = {"spec": asdict(spec), "checks": _documents(done)}
    if everything:
        seeds = [seed, seed + 1, seed + 2]
        done += _run(_studies(SYSTEMS, seeds), document, as_json, figures)
    emit(document, as_json, output, [])
    _end(done)


def _verdict(found: "Check") -> str:
    name = f"claim {found.claim}" if isinstance(found.claim, int) else found.claim
    return (
        f"{name}  {'pass' if found.passed else 'FAIL'}  theory {found.relation} {found.theory:<9.5g}"
        f" measured {found.measured:<11.5g} tolerance {found.tolerance:<8.3g} {found.name}"
    )


def _documents(done: "Sequence[Check]") -> list[dict[str, Any]]:
    return [asdict(c) | {"passed": c.passed} for c in done]


def _end(done: "Sequence[Check]") -> None:
    """Say how many checks passed, and exit 1 unless all did."""
    failed = sum(not c.passed for c in done)
    say(f"{len(done) - failed} of {len(done)} checks passed")
    if failed:
        raise typer.Exit(1)


SYSTEMS: dict[str, str] = {
    "mitigate": "remedies",
    "complete": "completion",
    "open-side": "open_side",
    "reversal": "reversal_curse",
    "attention-svm": "attention_svm",
    "in-context": "in_context",
    "stages": "stages",
    "scan-and-snap": "scan_and_snap",
    "grokking": "grokking",
}
"""The module whose `report` runs each study, by name; the claims are separate."""


def _studies(names: "Iterable[str]", seeds: list[int], **more: Any) -> "Iterator[Report]":
    """Run studies one after another, the only one with its own further choices."""
    for name in names:
        yield importlib.import_module(f"ocr_toy.{SYSTEMS[name]}").report(seeds, say, **more)


def _run(
    studies: "Iterable[Report]", document: dict[str, Any], as_json: bool, figures: Path | None = None
) -> "list[Check]":
    """Run every study, add it to the document, print its results and draw its picture; returns the checks of all."""
    document["reports"] = {}
    done: list[Check] = []
    for found in studies:
        done += found.checks
        document["reports"][found.name] = found.data | {"source": found.source, "checks": _documents(found.checks)}
        if not as_json:
            print("\n".join([f"{found.name}: {found.source}", *found.lines, *map(_verdict, found.checks)]), flush=True)
        if figures is not None:
            from ocr_toy.figures import save_report

            for path in save_report(found, figures):
                say(str(path))
    return done


def _reports(
    names: "Iterable[str]", seeds: str, as_json: bool, output: Path | None, figures: Path | None, **more: Any
) -> None:
    """Run studies as a separate command; exit 1 unless every check passes."""
    chosen = o.whole(seeds, "seeds")
    prepare(output, figures)
    document: dict[str, Any] = {"seeds": chosen}
    done = _run(_studies(names, chosen, **more), document, as_json, figures)
    emit(document, as_json, output, [])
    _end(done)


@app.command()
def mitigate(
    method: Annotated[
        str,
        typer.Option(
            help="decay, product-decay, schatten, label-noise, abstaining, competing, unequal, price, or all."
        ),
    ] = "all",
    seeds: o.Seeds = "0,1,2",
    as_json: o.AsJson = False,
    output: o.Output = None,
    figures: o.Figures = None,
) -> None:
    """Predict what removes the transfer, and compare with runs.

    Prints the closed form, the prediction at the run's loss, the runs, and the cost. Exits 1 if a prediction fails.
    """
    only = {} if method == "all" else {"methods": (method,)}
    _reports(["mitigate"], seeds, as_json, output, figures, **only)


@app.command()
def complete(
    n: o.Pairs = 5,
    seeds: o.Seeds = "0,1,2",
    as_json: o.AsJson = False,
    output: o.Output = None,
    figures: o.Figures = None,
) -> None:
    """Complete one block three ways: reasoning, reversal and two-hop.

    Prints convex optimum and gradient descent of both models, inside the answer set and over all answers.
    """
    _reports(["complete"], seeds, as_json, output, figures, n=n)


@app.command()
def systems(
    system: Annotated[
        str,
        typer.Option(help="open-side, reversal, attention-svm, in-context, stages, scan-and-snap, grokking, or all."),
    ] = "all",
    seeds: o.Seeds = "0,1,2",
    as_json: o.AsJson = False,
    output: o.Output = None,
    figures: o.Figures = None,
) -> None:
    """Run related systems from the literature.

    Prints each published or derived number next to the measured one.
    """
    known = [name for name in SYSTEMS if name not in ("mitigate", "complete")]
    require(system == "all" or system in known, f"system = {system}: unknown; use one of {', '.join(known)}, all")
    _reports(known if system == "all" else [system], seeds, as_json, output, figures)


@app.command("open")
def open_questions(
    question: Annotated[str, typer.Option(help="kq, softmax, mlp, optimizer, delay, or all.")] = "all",
    seeds: Annotated[str, typer.Option(help="2 to 10 comma-separated seeds.")] = "0,1,2,3,4",
    as_json: o.AsJson = False,
    output: o.Output = None,
) -> None:
    """Run experiments on questions the paper leaves open.

    Prints means and 95 % intervals over seeds.
    """
    from ocr_toy.experiments import QUESTIONS, run_question

    names = list(QUESTIONS) if question == "all" else [question]
    chosen = o.whole(seeds, "seeds")
    prepare(output)
    document: dict[str, Any] = {"seeds": chosen, "questions": {}}
    lines = []
    for name in names:
        outcomes = run_question(name, chosen, say)
        document["questions"][name] = [asdict(found) for found in outcomes]
        lines.append(name)
        for found in outcomes:
            delay = "never" if found.delay is None else str(found.delay)
            lines.append(
                f"  {found.name}: train loss {found.train_loss}, test loss {found.test_loss}, test accuracy"
                f" {found.test_accuracy}, transfer {found.transfer}, delay {delay}"
                f" ({found.crossed} of {found.seeds} cross)"
            )
    emit(document, as_json, output, lines)


@app.command()
def figures(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("results/toy"),
    rank_sweep: Annotated[
        Path | None, typer.Option(help="A rank sweep written by: sweep --over d_h --output. [default: run it]")
    ] = None,
    rank_steps: Annotated[int, typer.Option(help="Training steps of the rank sweep, if it is run.")] = 20_000,
    solver: Annotated[str, typer.Option(help="SCS or CLARABEL.")] = "SCS",
    seed: Annotated[int, typer.Option(help="Seed of all runs except the rank sweep (seeds 0, 1, 2).")] = 0,
) -> None:
    """Draw every figure as PNG, PDF and SVG.

    Prints the paths of the files.
    """
    from ocr_toy import figures as drawing
    from ocr_toy import sweep as sweeps
    from ocr_toy.convex import require_solver
    from ocr_toy.files import read_json
    from ocr_toy.runs import RunSpec, TrainSpec

    require_solver(solver.upper())
    require(seed >= 0, f"seed = {seed}: cannot be negative; use seed >= 0")
    prepare(None, output)
    if rank_sweep is None:
        base = RunSpec(train=TrainSpec(steps=rank_steps, record_every=max(1, rank_steps // 20)))
        say(f"rank sweep of {rank_steps} steps")
        results = sweeps.run_sweep(base, "d_h", sweeps.DEFAULT_VALUES["d_h"], [0, 1, 2], tenths())
        ranks = sweeps.RankSweep(sweeps.points(sweeps.rows(results, "d_h")), rank_steps, base.task.n_pairs)
    else:
        ranks = sweeps.rank_sweep(read_json(rank_sweep))
    measured = drawing.measure(ranks, solver.upper(), seed, say)
    for path in drawing.save_all(measured, output):
        print(path)
