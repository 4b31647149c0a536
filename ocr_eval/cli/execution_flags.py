"""Flags for how runs are executed: the machine, processes or jobs, measures and trackers."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated

from ocr_eval.cli import options as o
from ocr_eval.cli.spec_flags import flag_of, option
from ocr_eval.common.errors import UserError
from ocr_eval.execution.jobs import Executor, Placement
from ocr_eval.execution.tracking import ReportTo
from ocr_eval.models.hub import TRUST
from ocr_eval.specs import schedule
from ocr_eval.specs.model import Device

if TYPE_CHECKING:
    from ocr_eval.specs.grid import Grid


@dataclass(frozen=True)
class Machine:
    """Where a command computes, and whether it shows progress."""

    device: Annotated[Device, option("--device", help="Where to compute.")] = "auto"
    offline: o.OfflineOption = False
    trust_remote_code: o.TrustOption = False
    quiet: o.QuietOption = False

    def begin(self) -> None:
        """Set environment variables and filters that must be set before any library is imported."""
        o.begin(self.quiet, self.offline)
        if self.trust_remote_code:
            os.environ[TRUST] = "1"


@dataclass(frozen=True)
class Jobs:
    """Where a command's jobs run; flags that are not given are None."""

    executor: Annotated[
        Executor,
        option("--executor", help="here: this device; local: a process per device; slurm: a cluster job per pack."),
    ] = "here"
    workers: Annotated[
        int | None,
        option("--workers", help="here: worker processes on this CPU (default: chosen automatically).", min=1),
    ] = None
    devices: Annotated[str | None, option("--devices", help="local: '0,1' or 'cpu,cpu' (default: every GPU).")] = None
    partition: Annotated[str | None, option("--partition", help="slurm: partition (default: the cluster's).")] = None
    time_limit: Annotated[
        int | None,
        option("--time-limit", min=1, help="slurm: minutes until a job is requeued to resume (default: 240)."),
    ] = None
    gpus_per_job: Annotated[
        int | None, option("--gpus-per-job", min=0, help="slurm: GPUs per job (default: 1 if the partition has any).")
    ] = None
    cpus_per_job: Annotated[
        int | None, option("--cpus-per-job", min=1, help="slurm: CPU cores per job (default: the cluster's).")
    ] = None
    memory_gb: Annotated[
        float | None, option("--memory-gb", min=0.001, help="slurm: memory per job, in GB (default: the cluster's).")
    ] = None
    parallel: Annotated[int | None, option("--parallel", min=1, help="slurm: maximum jobs at once (default: 256).")] = (
        None
    )
    slurm: Annotated[
        list[str] | None, option("--slurm", help="slurm: any sbatch option, e.g. 'account=nlp'; repeatable.")
    ] = None

    def placement(self) -> Placement:
        """Where the jobs run.

        Raises:
            UserError: a flag belongs to another executor, or --memory-gb is too large.
        """
        values = {each.name: getattr(self, each.name) for each in fields(Jobs) if each.name != "executor"}
        given = {key: value for key, value in values.items() if value not in (None, [])}
        for key in given:
            owner = {"workers": "here", "devices": "local"}.get(key, "slurm")
            if self.executor != owner:
                raise UserError(f"{flag_of(key)} needs --executor {owner}, not '{self.executor}'.")
        given.pop("workers", None)
        if self.memory_gb is not None and not self.memory_gb < 1e6:
            raise UserError(f"--memory-gb {self.memory_gb} is too large. Give the memory of a job in GB.")
        if self.devices is not None:
            given["devices"] = o.words("--devices", self.devices, each_once=False)
        return Placement(executor=self.executor, **{**given, "slurm": tuple(self.slurm or ())})


@dataclass(frozen=True)
class Means(Jobs, Machine):
    """How a command executes several runs; none of this changes what is learned."""

    score_at: o.ScoreAtOption = None
    measures: o.MeasuresOption = None
    report_to: Annotated[ReportTo, option("--report-to", help="Tracker to report the runs to.")] = "none"
    force: o.ForceOption = False
    dry_run: o.DryRunOption = False

    def __post_init__(self) -> None:
        schedule.checked(self.scored_at, "--score-at")

    @property
    def scored_at(self) -> str:
        """After which epochs all probes are scored."""
        return self.score_at or schedule.DEFAULT

    def flags(self) -> list[str]:
        """The same as flags of a worker's command."""
        flags = ["--device", self.device, "--report-to", self.report_to, "--score-at", self.scored_at]
        flags += ["--measures", self.measures] if self.measures is not None else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        return [*flags, "--offline"] if self.offline else flags

    def of(self, grid: Grid) -> Means:
        """These, completed with a grid's schedule of scorings and its measures."""
        measures = None if grid.measures is None else ",".join(grid.measures) or "none"
        return replace(self, score_at=self.score_at or grid.score_at, measures=self.measures or measures)
